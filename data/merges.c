#include "data/merges.h"

#include <stdlib.h>

#include "data/buffer.h"
#include "data/keys.h"

/* The two texts of one entry, in either of its forms; false where it has neither. */
typedef struct {
    const char *text[2];
    size_t n[2];
} operands;

static bool read_operands(operands *o, const json_t *entry)
{
    if (json_is_array(entry) && json_array_size(entry) == 2) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *text = json_array_get(entry, i);
            o->text[i] = json_string_value(text);
            o->n[i] = json_string_length(text);
        }
        return o->text[0] && o->text[1];
    }
    const char *text = json_string_value(entry);
    if (!text)
        return false;
    const char *end = text + json_string_length(entry);
    const char *space = memchr(text, ' ', (size_t)(end - text));
    if (!space || memchr(space + 1, ' ', (size_t)(end - space - 1)))
        return false;
    *o = (operands){{text, space + 1}, {(size_t)(space - text), (size_t)(end - space - 1)}};
    return true;
}

static int32_t find_in_model(const dms_vocab *vocab, const char *text, size_t n)
{
    const int32_t id = dms_vocab_find(vocab, text, n);
    return id >= 0 && dms_vocab_get(vocab, id)->in_model ? id : -1;
}

static void put(dms_merges *m, uint64_t pair, int32_t rank, int32_t merged)
{
    uint64_t slot = dms_hash_mix(pair) & m->mask;
    while (m->slots[slot].pair != UINT64_MAX && m->slots[slot].pair != pair)
        slot = (slot + 1) & m->mask;
    m->slots[slot] = (dms_merge){pair, rank, merged};
}

/* `joined` is scratch for the merged text. */
static dms_status put_entry(dms_merges *m, const json_t *list, size_t rank, const dms_vocab *vocab,
                            dms_text *joined, const char *origin)
{
    operands o;
    if (!read_operands(&o, json_array_get(list, rank)))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: model.merges[%zu] is %s, expected \"a b\" or [\"a\", \"b\"]", origin,
                        rank, dms_key_type(json_array_get(list, rank)));
    int32_t ids[2];
    joined->n = 0;
    for (int i = 0; i < 2; i++) {
        ids[i] = find_in_model(vocab, o.text[i], o.n[i]);
        if (ids[i] < 0)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: model.merges[%zu] joins \"%.64s\" (%s operand), "
                            "which is not in the vocabulary",
                            origin, rank, o.text[i], i ? "second" : "first");
        DMS_TRY(dms_text_append(joined, o.text[i], o.n[i]));
    }
    const int32_t merged = find_in_model(vocab, joined->bytes, joined->n);
    if (merged < 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: model.merges[%zu] makes \"%.*s\", which is not in the "
                        "vocabulary",
                        origin, rank, (int)(joined->n < 64 ? joined->n : 64), joined->bytes);
    put(m, (uint64_t)(uint32_t)ids[0] << 32 | (uint32_t)ids[1], (int32_t)rank, merged);
    return DMS_OK;
}

dms_status dms_merges_open(dms_merges *m, const json_t *list, const dms_vocab *vocab,
                           const char *origin)
{
    dms_text joined = {0};
    dms_status status = DMS_OK;
    if (!json_is_array(list))
        return dms_fail(DMS_ERR_FORMAT, "%s: model.merges is %s, expected an array", origin,
                        dms_key_type(list));
    const size_t n = json_array_size(list);
    uint64_t n_slots = 16;
    while (n_slots < 2 * (uint64_t)n)
        n_slots *= 2;
    *m = (dms_merges){malloc(n_slots * sizeof(*m->slots)), n_slots - 1};
    if (!m->slots || n > INT32_MAX)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for %zu merges", n));
    for (uint64_t i = 0; i < n_slots; i++)
        m->slots[i].pair = UINT64_MAX;
    for (size_t rank = 0; rank < n; rank++)
        DMS_TRY_OR(failed, put_entry(m, list, rank, vocab, &joined, origin));
    dms_text_free(&joined);
    return DMS_OK;
failed:
    dms_text_free(&joined);
    dms_merges_close(m);
    return status;
}

void dms_merges_close(dms_merges *m)
{
    free(m->slots);
    *m = (dms_merges){0};
}
