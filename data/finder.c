/* Aho and Corasick's automaton (CACM 18(6), 1975) of the texts read backwards, run backwards: in
 * the state that it has at a place, it knows the longest text that begins there. A text is gone
 * through in windows as long as the longest of them, and each is entered from as far behind its
 * end: further back than any of them reaches. */
#include "data/finder.h"

#include <stdlib.h>
#include <string.h>

#include "data/hash.h"

typedef struct {
    int32_t parent, fail, found; /* found: the longest text that ends here, or -1 */
    uint8_t byte;
} node;

struct dms_finder {
    node *nodes; /* 0 is the root */
    int32_t n;
    int32_t *edges; /* hashed by parent and byte: a child, 0 for none */
    uint64_t mask;
    size_t longest, from, to; /* the window */
    int32_t *window;          /* [longest]: what is found at from, from + 1, ... */
};

/* The place in `edges` of the child, or of where it would be. */
static uint64_t find_edge(const dms_finder *f, int32_t parent, uint8_t byte)
{
    uint64_t at = dms_hash_mix((uint64_t)parent << 8 | byte) & f->mask;
    for (; f->edges[at]; at = (at + 1) & f->mask) {
        const node *child = &f->nodes[f->edges[at]];
        if (child->parent == parent && child->byte == byte)
            break;
    }
    return at;
}

/* The state after one more byte. */
static int32_t step(const dms_finder *f, int32_t state, uint8_t byte)
{
    for (;; state = f->nodes[state].fail) {
        const int32_t child = f->edges[find_edge(f, state, byte)];
        if (child || !state)
            return child;
    }
}

/* All nodes of less depth are there. */
static int32_t add_child(dms_finder *f, int32_t parent, uint8_t byte)
{
    const uint64_t edge = find_edge(f, parent, byte);
    if (f->edges[edge])
        return f->edges[edge];
    const int32_t fail = parent ? step(f, f->nodes[parent].fail, byte) : 0;
    f->nodes[f->n] = (node){parent, fail, f->nodes[fail].found, byte};
    return f->edges[edge] = f->n++;
}

/* A text on its way into the automaton. */
typedef struct {
    const dms_text *text;
    int32_t id, state;
} entry;

static int longest_first(const void *x, const void *y)
{
    const size_t a = ((const entry *)x)->text->n, b = ((const entry *)y)->text->n;
    return (a < b) - (a > b);
}

/* Depth by depth, each text's bytes from its last on. */
static void add_all(dms_finder *f, entry *entries, int64_t n)
{
    qsort(entries, (size_t)n, sizeof(*entries), longest_first);
    f->nodes[0].found = -1;
    f->n = 1;
    for (size_t depth = 0; depth < f->longest; depth++)
        for (int64_t i = 0; i < n && entries[i].text->n > depth; i++) {
            entry *e = &entries[i];
            const size_t left = e->text->n - depth;
            e->state = add_child(f, e->state, (uint8_t)e->text->bytes[left - 1]);
            if (left == 1)
                f->nodes[e->state].found = e->id;
        }
}

static dms_status allocate(dms_finder *f, size_t bytes)
{
    uint64_t places = 4;
    if (bytes >= 1 << 30)
        return dms_fail(DMS_ERR_FORMAT, "the added tokens have %zu bytes, expected less than 2^30",
                        bytes);
    while (places < 2 * bytes)
        places *= 2;
    f->mask = places - 1;
    f->nodes = calloc(bytes + 1, sizeof(*f->nodes));
    f->edges = calloc(places, sizeof(*f->edges));
    f->window = calloc(f->longest, sizeof(*f->window));
    if (!f->nodes || !f->edges || !f->window)
        return dms_fail(DMS_ERR_NOMEM, "no memory for added tokens");
    return DMS_OK;
}

dms_status dms_finder_open(dms_finder **out, const dms_text *const *texts, const int32_t *ids,
                           int64_t n)
{
    dms_status status = DMS_OK;
    size_t bytes = 0;
    dms_finder *f = calloc(1, sizeof(*f));
    entry *entries = calloc((size_t)n + 1, sizeof(*entries));
    if (!f || !entries)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for added tokens"));
    for (int64_t i = 0; i < n; i++) {
        entries[i] = (entry){texts[i], ids[i], 0};
        bytes += texts[i]->n;
        f->longest = texts[i]->n > f->longest ? texts[i]->n : f->longest;
    }
    DMS_TRY_OR(failed, allocate(f, bytes));
    add_all(f, entries, n);
    free(entries);
    *out = f;
    return DMS_OK;
failed:
    free(entries);
    dms_finder_close(f);
    return status;
}

void dms_finder_close(dms_finder *f)
{
    if (!f)
        return;
    free(f->nodes);
    free(f->edges);
    free(f->window);
    free(f);
}

void dms_finder_begin(dms_finder *f)
{
    f->from = f->to = 0;
}

static void fill_window(dms_finder *f, const char *text, size_t n, size_t at)
{
    int32_t state = 0;
    f->from = at;
    f->to = n - at < f->longest ? n : at + f->longest;
    for (size_t i = n - f->to < f->longest ? n : f->to + f->longest; i-- > at;) {
        state = step(f, state, (uint8_t)text[i]);
        if (i < f->to)
            f->window[i - at] = f->nodes[state].found;
    }
}

int32_t dms_finder_at(dms_finder *f, const char *text, size_t n, size_t at)
{
    if (at < f->from || at >= f->to)
        fill_window(f, text, n, at);
    return f->window[at - f->from];
}
