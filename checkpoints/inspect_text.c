#include "checkpoints/inspect_text.h"

#include "checkpoints/inspect_view.h"

/* The `problem` of a part, on a line of its own. */
static void put_problem(FILE *out, const json_t *part)
{
    if (!json_is_string(dms_view_at(part, "problem")))
        return;
    dms_view_go_on(out);
    dms_view_string(out, part, "problem");
}

/* ---- a model -------------------------------------------------------------------------------- */

static void put_head(FILE *out, const json_t *v)
{
    static const char *const formats[][2] = {{"huggingface", "Hugging Face folder"},
                                             {"gguf", "GGUF"},
                                             {"safetensors", "safetensors file"},
                                             {"dms", "dms.c checkpoint (HDF5)"}};
    dms_view_string(out, v, "path");
    fputc('\n', out);
    dms_view_label(out, "format");
    bool known = false;
    for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++)
        if (dms_view_is(v, "format", formats[i][0])) {
            fputs(formats[i][1], out);
            known = true;
        }
    if (!known)
        dms_view_string(out, v, "format");
    fputs(", ", out);
    dms_view_size(out, v, "file_bytes");
    if (dms_view_int(v, "files") > 1)
        fprintf(out, " in %lld files", dms_view_int(v, "files"));
    fputc('\n', out);
}

static void put_weights(FILE *out, const json_t *v)
{
    const json_t *weights = dms_view_at(v, "weights");
    const long long tensors = dms_view_int(weights, "tensors");
    const char *type;
    json_t *totals;
    char text[32];
    dms_view_label(out, "weights");
    fprintf(out, "%lld tensor%s, %s parameters, ", tensors, dms_view_plural(tensors),
            dms_view_count_text(text, dms_view_int(weights, "parameters")));
    dms_view_size(out, weights, "bytes");
    json_object_foreach(dms_view_at(weights, "types"), type, totals)
    {
        const long long n = dms_view_int(totals, "tensors");
        dms_view_go_on(out);
        fprintf(out, "%-7s %5lld tensor%-1s %16s parameters ", type, n, dms_view_plural(n),
                dms_view_count_text(text, dms_view_int(totals, "parameters")));
        fprintf(out, "%10s", dms_view_size_text(text, dms_view_real(totals, "bytes")));
    }
    fputc('\n', out);
}

static void put_rope(FILE *out, const json_t *rope)
{
    const json_t *scaling = dms_view_at(rope, "scaling");
    fprintf(out, " with base %g", dms_view_real(rope, "theta"));
    if (json_is_object(scaling))
        fprintf(out, " (llama3 scaling by %g from %lld)", dms_view_real(scaling, "factor"),
                dms_view_int(scaling, "original_positions"));
}

static const char *biases(const json_t *n)
{
    const bool qkv = json_is_true(dms_view_at(n, "qkv_bias")),
               o = json_is_true(dms_view_at(n, "o_bias"));
    return qkv && o ? ", biases on q, k, v, o" : qkv ? ", biases on q, k, v" : "";
}

static void put_network(FILE *out, const json_t *n)
{
    char text[32];
    dms_view_string(out, n, "model_type");
    fprintf(out, ": %lld layers of width %lld, %lld query and %lld KV heads of %lld",
            dms_view_int(n, "layers"), dms_view_int(n, "width"), dms_view_int(n, "heads"),
            dms_view_int(n, "kv_heads"), dms_view_int(n, "head_dim"));
    dms_view_go_on(out);
    dms_view_string(out, n, "ffn_kind");
    fprintf(out, " of %lld, ", dms_view_int(n, "ffn"));
    dms_view_string(out, n, "norm");
    fprintf(out, "%s%s", json_is_true(dms_view_at(n, "qk_norm")) ? ", q and k normed" : "",
            biases(n));
    dms_view_go_on(out);
    dms_view_string(out, n, "position_kind");
    if (json_is_object(dms_view_at(n, "rope")))
        put_rope(out, dms_view_at(n, "rope"));
    fprintf(out, ", %lld positions, vocabulary ", dms_view_int(n, "positions"));
    fprintf(out, "%s, head %s", dms_view_count_text(text, dms_view_int(n, "vocabulary")),
            json_is_true(dms_view_at(n, "tied")) ? "tied" : "of its own");
}

static void put_architecture(FILE *out, const json_t *v)
{
    const json_t *n = dms_view_at(v, "architecture");
    dms_view_label(out, "network");
    if (!json_is_object(n))
        fputs("no config", out);
    else if (dms_view_at(n, "layers"))
        put_network(out, n);
    else
        fputs("not one that runs here", out);
    put_problem(out, n);
    fputc('\n', out);
}

/* "<|im_start|> 1, <|im_end|> 2, ...", broken into lines; the first of many. */
static void put_specials(FILE *out, const json_t *list)
{
    enum { SHOWN = 20 };
    const size_t n = json_array_size(list);
    int column = DMS_VIEW_WIDTH;
    for (size_t i = 0; i < n && i < SHOWN; i++) {
        char id[40];
        const json_t *text = dms_view_at(json_array_get(list, i), "text");
        const int tail =
            snprintf(id, sizeof(id), " %lld%s", dms_view_int(json_array_get(list, i), "id"),
                     i + 1 < n ? "," : "");
        const int columns = dms_view_text(NULL, text) + tail;
        if (column + 1 + columns > DMS_VIEW_WIDTH) {
            dms_view_go_on(out);
            column = DMS_VIEW_MARGIN;
        } else {
            fputc(' ', out);
            column++;
        }
        dms_view_text(out, text);
        fputs(id, out);
        column += columns;
    }
    if (n > SHOWN)
        fputs(" ... (--json shows all)", out);
}

static void put_id(FILE *out, const json_t *t, const char *name, const char *key)
{
    if (json_is_integer(dms_view_at(t, key)))
        fprintf(out, ", %s %lld", name, dms_view_int(t, key));
}

static void put_tokenizer(FILE *out, const json_t *v)
{
    const json_t *t = dms_view_at(v, "tokenizer"), *specials = dms_view_at(t, "special_tokens");
    dms_view_label(out, "tokenizer");
    if (!json_is_object(t)) {
        fputs("none\n", out);
        return;
    }
    dms_view_string(out, t, "kind");
    fputs(json_is_string(dms_view_at(t, "kind")) ? ", " : "", out);
    dms_view_count(out, t, "vocabulary_entries");
    fputs(" entries, ", out);
    dms_view_count(out, t, "merges");
    fputs(" merges, ", out);
    dms_view_size(out, t, "bytes");
    dms_view_go_on(out);
    fprintf(out, "%lld added tokens, %zu of them special", dms_view_int(t, "added_tokens"),
            json_array_size(specials));
    put_id(out, t, "begin of text", "begin_of_text");
    put_id(out, t, "end of text", "end_of_text");
    put_specials(out, specials);
    put_problem(out, t);
    fputc('\n', out);
}

static void put_chat(FILE *out, const json_t *v)
{
    const json_t *c = dms_view_at(v, "chat_template");
    dms_view_label(out, "chat template");
    if (!json_is_object(c)) {
        fputs("none\n", out);
        return;
    }
    dms_view_string(out, c, "format");
    fputs(", ", out);
    dms_view_size(out, c, "bytes");
    if (json_is_string(dms_view_at(c, "system"))) {
        dms_view_go_on(out);
        fputs("system message: ", out);
        dms_view_string(out, c, "system");
    }
    put_problem(out, c);
    fputc('\n', out);
}

/* Keys that describe no gate. */
static void put_keys(FILE *out, json_t *keys)
{
    const char *name;
    json_t *value;
    bool first = true;
    fputs("no gate that runs here", out);
    json_object_foreach(keys, name, value)
    {
        json_t *key = json_string(name);
        fputs(first ? "; keys " : ", ", out);
        dms_view_text(out, key);
        json_decref(key);
        first = false;
    }
}

static void put_gate(FILE *out, const json_t *v)
{
    const json_t *d = dms_view_at(v, "dms");
    dms_view_label(out, "dms");
    if (!json_is_object(d)) {
        fputs("no gate: not retrofitted\n", out);
        return;
    }
    if (dms_view_is(d, "gate", "none") || !json_is_string(dms_view_at(d, "gate"))) {
        put_keys(out, dms_view_at(d, "keys"));
    } else {
        dms_view_string(out, d, "gate");
        fprintf(out, " gate, window %lld, scale %g, offset %g", dms_view_int(d, "window"),
                dms_view_real(d, "alpha_scale"), dms_view_real(d, "alpha_offset"));
        if (json_is_number(dms_view_at(d, "cr")))
            fprintf(out, ", made for ratio %g", dms_view_real(d, "cr"));
        dms_view_go_on(out);
        fprintf(out, "a decision governs %s",
                dms_view_int(d, "shift") ? "the token before its own" : "its own token (shift 0)");
        fputs(", layout ", out);
        dms_view_string(out, d, "layout");
    }
    if (dms_view_int(d, "gate_tensors"))
        fprintf(out, ", %lld tensors of its own", dms_view_int(d, "gate_tensors"));
    put_problem(out, d);
    fputc('\n', out);
}

static void put_checkpoint(FILE *out, const json_t *v)
{
    const json_t *c = dms_view_at(v, "checkpoint");
    const char *name;
    json_t *value;
    if (!json_is_object(c))
        return;
    dms_view_label(out, "checkpoint");
    bool first = true;
    json_object_foreach(dms_view_at(c, "numbers"), name, value)
    {
        json_t *key = json_string(name);
        fputs(first ? "" : ", ", out);
        dms_view_text(out, key);
        json_decref(key);
        fprintf(out, " %.9g", json_number_value(value));
        first = false;
    }
    json_object_foreach(dms_view_at(c, "groups"), name, value)
    {
        char size[32];
        json_t *key = json_string(name);
        if (!first)
            dms_view_go_on(out);
        first = false;
        dms_view_pad(out, 12 - dms_view_text(out, key));
        json_decref(key);
        fprintf(out, "%5lld tensor%-1s %10s", dms_view_int(value, "tensors"),
                dms_view_plural(dms_view_int(value, "tensors")),
                dms_view_size_text(size, dms_view_real(value, "bytes")));
    }
    if (json_is_string(dms_view_at(c, "teacher_path"))) {
        dms_view_go_on(out);
        fputs("teacher ", out);
        dms_view_string(out, c, "teacher_path");
    }
    fputc('\n', out);
}

static void put_texts(FILE *out, const json_t *v)
{
    json_t *texts = dms_view_at(v, "texts");
    const char *name;
    json_t *bytes;
    if (!json_object_size(texts))
        return;
    dms_view_label(out, "texts");
    bool first = true;
    json_object_foreach(texts, name, bytes)
    {
        char size[32];
        json_t *key = json_string(name);
        if (!first)
            dms_view_go_on(out);
        first = false;
        dms_view_pad(out, 26 - dms_view_text(out, key));
        json_decref(key);
        fprintf(out, "%10s", dms_view_size_text(size, json_number_value(bytes)));
    }
    fputc('\n', out);
}

static void put_integrity(FILE *out, const json_t *v)
{
    const json_t *i = dms_view_at(v, "integrity");
    dms_view_label(out, "integrity");
    fputs("opened: ", out);
    dms_view_string(out, i, "opening");
    dms_view_go_on(out);
    if (json_is_string(dms_view_at(i, "problem")))
        fputs("CORRUPT:", out);
    else if (!json_is_true(dms_view_at(i, "verified")))
        fputs("the values are not checked (--verify)", out);
    else
        fprintf(out, "verified: %s%s",
                json_is_string(dms_view_at(i, "checksums")) ? "every CRC-32 is right"
                                                            : "no checksums here",
                dms_view_at(i, "not_finite") ? ", every value is finite" : "");
    put_problem(out, i);
    fputc('\n', out);
}

static void put_tensors(FILE *out, const json_t *list)
{
    int width = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const int n = dms_view_text(NULL, dms_view_at(json_array_get(list, i), "name"));
        width = n > width ? n : width;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        char size[32];
        const json_t *t = json_array_get(list, i);
        dms_view_pad(out, width + 2 - dms_view_text(out, dms_view_at(t, "name")));
        dms_view_pad(out, 8 - dms_view_text(out, dms_view_at(t, "type")));
        fprintf(out, "%10s  ", dms_view_size_text(size, dms_view_real(t, "bytes")));
        dms_view_shape(out, dms_view_at(t, "shape"));
        fputc('\n', out);
    }
}

static void put_model(FILE *out, const json_t *v)
{
    put_head(out, v);
    put_weights(out, v);
    put_architecture(out, v);
    put_tokenizer(out, v);
    put_chat(out, v);
    put_gate(out, v);
    put_checkpoint(out, v);
    put_texts(out, v);
    put_integrity(out, v);
    if (json_array_size(dms_view_at(v, "tensor_list")))
        fputc('\n', out);
    put_tensors(out, dms_view_at(v, "tensor_list"));
}

/* ---- the other views ------------------------------------------------------------------------ */

static void put_shard(FILE *out, const json_t *v)
{
    put_head(out, v);
    dms_view_label(out, "tokens");
    dms_view_count(out, v, "tokens");
    fprintf(out, " ids of %lld bytes, vocabulary ", dms_view_int(v, "id_bytes"));
    dms_view_count(out, v, "vocabulary");
    fputc('\n', out);
    dms_view_label(out, "tokenizer");
    if (json_is_null(dms_view_at(v, "tokenizer_crc32"))) {
        fputs("not named: the ids are taken for those of a model's own", out);
    } else {
        fputs("the tokenizer.json of CRC-32 ", out);
        dms_view_string(out, v, "tokenizer_crc32");
    }
    fputc('\n', out);
    put_integrity(out, v);
}

void dms_inspect_print(FILE *out, const json_t *view)
{
    if (dms_view_is(view, "view", "model"))
        put_model(out, view);
    else if (dms_view_is(view, "view", "shard"))
        put_shard(out, view);
    else if (dms_view_is(view, "view", "diff"))
        dms_view_diff(out, view);
    else
        dms_view_families(out, view);
}
