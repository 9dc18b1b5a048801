/* Long added tokens: found as the definition finds them, in time linear in the text. */
#include <stdlib.h>
#include <string.h>

#include "data/added.h"
#include "data/finder.h"
#include "tests/rig.h"

enum { MOST = 40, ROOM = 4000 };

typedef struct {
    dms_text texts[MOST];
    const dms_text *pointers[MOST];
    int32_t ids[MOST];
    int n;
} many;

static unsigned next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(*seed >> 33);
}

/* Of few letters, so that much of it repeats. */
static void put_random(char *out, size_t n, unsigned letters, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (char)('a' + (next_random(seed) % 7 ? 0 : next_random(seed) % letters));
}

/* Different texts: parts of `text`, and others. */
static void make_texts(many *m, const char *text, size_t n, size_t longest, uint64_t *seed)
{
    char other[ROOM];
    m->n = 0;
    for (int i = 0; i < MOST; i++) {
        const size_t length = 1 + next_random(seed) % longest;
        const char *from = text + next_random(seed) % (n - length);
        put_random(other, length, 2, seed);
        from = i % 3 ? from : other;
        int k = 0;
        while (k < m->n && (m->texts[k].n != length || memcmp(m->texts[k].bytes, from, length)))
            k++;
        if (k < m->n)
            continue;
        m->texts[m->n] = (dms_text){0};
        must(dms_text_append(&m->texts[m->n], from, length));
        m->pointers[m->n] = &m->texts[m->n];
        m->ids[m->n] = 1000 - m->n;
        m->n++;
    }
}

static int32_t longest_by_definition(const many *m, const char *text, size_t n, size_t at)
{
    int best = -1;
    for (int i = 0; i < m->n; i++)
        if (m->texts[i].n <= n - at && !memcmp(text + at, m->texts[i].bytes, m->texts[i].n) &&
            (best < 0 || m->texts[i].n > m->texts[best].n))
            best = i;
    return best < 0 ? -1 : m->ids[best];
}

Test(finder, finds_the_longest_at_each_place)
{
    uint64_t seed = 5;
    for (int round = 0; round < 60; round++) {
        char text[ROOM];
        many m;
        dms_finder *f = NULL;
        const size_t n = 200 + next_random(&seed) % 1500;
        put_random(text, n, 1 + (unsigned)round % 3, &seed);
        make_texts(&m, text, n, round % 2 ? 150 : 7, &seed);
        must(dms_finder_open(&f, m.pointers, m.ids, m.n));
        for (size_t skip = 1; skip < 200; skip += 66) {
            dms_finder_begin(f);
            for (size_t at = 0; at < n; at += skip)
                cr_assert_eq(dms_finder_at(f, text, n, at), longest_by_definition(&m, text, n, at),
                             "round %d, place %zu", round, at);
        }
        dms_finder_close(f);
        for (int i = 0; i < m.n; i++)
            dms_text_free(&m.texts[i]);
    }
}

static dms_added *open_added(const char *const *contents, int n, const char *flags)
{
    dms_added *a = NULL;
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        json_t *entry = json_loads(flags, 0, NULL);
        json_object_set_new(entry, "content", json_string(contents[i]));
        json_object_set_new(entry, "id", json_integer(i));
        json_array_append_new(list, entry);
    }
    must(dms_added_open(&a, list, false, NULL, "test"));
    json_decref(list);
    return a;
}

/* Compared byte by byte at each place this would take some 10^12 steps, which is hours. */
Test(finder, takes_linear_time_where_long_tokens_nearly_match_everywhere)
{
    enum { TOKEN = 1 << 20, TEXT = 4 << 20 };
    char *token = malloc(TOKEN + 2), *text = malloc(TEXT + TOKEN + 2);
    memset(token, 'z', TOKEN);
    memcpy(token + TOKEN, "!", 2);
    memset(text, 'z', TEXT);
    memcpy(text + TEXT, token, TOKEN + 2);
    dms_added *a = open_added((const char *const[]){"zz", token}, 2, "{\"normalized\": false}");
    dms_added_match m = {0};
    int64_t found = 0;
    while (dms_added_next(a, &m, text, TEXT + TOKEN + 1, true) && m.id == 0)
        found++;
    cr_expect_eq(found, TEXT / 2);
    cr_expect(m.id == 1 && m.start == TEXT && m.end == TEXT + TOKEN + 1);
    dms_added_close(a);
    free(token);
    free(text);
}

Test(finder, takes_linear_time_where_a_token_strips_spaces_that_are_tokens)
{
    enum { TEXT = 4 << 20 };
    char *text = malloc(TEXT);
    memset(text, ' ', TEXT);
    dms_added *a =
        open_added((const char *const[]){" "}, 1, "{\"normalized\": false, \"rstrip\": true}");
    dms_added_match m = {0};
    int64_t found = 0;
    while (dms_added_next(a, &m, text, TEXT, true))
        found++;
    cr_expect_eq(found, TEXT);
    cr_expect_eq(m.end, TEXT);
    dms_added_close(a);
    free(text);
}
