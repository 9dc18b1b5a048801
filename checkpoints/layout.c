#include "checkpoints/layout.h"

#include <stdio.h>
#include <string.h>

#include "checkpoints/model_type.h"

typedef struct {
    const char *ours, *theirs;
    int part, parts;
    bool transposed;
} pair;

/* modeling_gpt2.py of transformers: Conv1D keeps its matrix [in, out]; c_attn is q, k and v side by
 * side. */
static const pair gpt2_whole[] = {{"embed_tokens.weight", "wte.weight", 0, 1, false},
                                  {"embed_positions.weight", "wpe.weight", 0, 1, false},
                                  {"norm.weight", "ln_f.weight", 0, 1, false},
                                  {"norm.bias", "ln_f.bias", 0, 1, false},
                                  {0}};
static const pair gpt2_layer[] = {
    {"input_layernorm.weight", "ln_1.weight", 0, 1, false},
    {"input_layernorm.bias", "ln_1.bias", 0, 1, false},
    {"self_attn.q_proj.weight", "attn.c_attn.weight", 0, 3, true},
    {"self_attn.k_proj.weight", "attn.c_attn.weight", 1, 3, true},
    {"self_attn.v_proj.weight", "attn.c_attn.weight", 2, 3, true},
    {"self_attn.q_proj.bias", "attn.c_attn.bias", 0, 3, false},
    {"self_attn.k_proj.bias", "attn.c_attn.bias", 1, 3, false},
    {"self_attn.v_proj.bias", "attn.c_attn.bias", 2, 3, false},
    {"self_attn.o_proj.weight", "attn.c_proj.weight", 0, 1, true},
    {"self_attn.o_proj.bias", "attn.c_proj.bias", 0, 1, false},
    {"post_attention_layernorm.weight", "ln_2.weight", 0, 1, false},
    {"post_attention_layernorm.bias", "ln_2.bias", 0, 1, false},
    {"mlp.up_proj.weight", "mlp.c_fc.weight", 0, 1, true},
    {"mlp.up_proj.bias", "mlp.c_fc.bias", 0, 1, false},
    {"mlp.down_proj.weight", "mlp.c_proj.weight", 0, 1, true},
    {"mlp.down_proj.bias", "mlp.c_proj.bias", 0, 1, false},
    {"self_attn.dms_proj_alpha_norm.weight", "attn.dms_proj_alpha_norm.weight", 0, 1, false},
    {"self_attn.dms_proj_alpha.weight", "attn.dms_proj_alpha.weight", 0, 1, false},
    {"self_attn.dms_proj_alpha.bias", "attn.dms_proj_alpha.bias", 0, 1, false},
    {0}};

static const struct {
    const char *model_type;
    const pair *whole, *layer;
} families[] = {{"gpt2", gpt2_whole, gpt2_layer}};

/* The family of a config and its lists; false where its names are ours. */
typedef struct {
    const dms_model_type *type;
    const pair *whole, *layer;
} naming;

static bool find_naming(naming *out, const json_t *config)
{
    out->type = dms_model_type_of(config);
    for (size_t i = 0; out->type && i < sizeof(families) / sizeof(*families); i++)
        if (!strcmp(out->type->name, families[i].model_type)) {
            out->whole = families[i].whole;
            out->layer = families[i].layer;
            return true;
        }
    return false;
}

static const pair *find_pair(const pair *list, const char *ours)
{
    for (; list->ours; list++)
        if (!strcmp(list->ours, ours))
            return list;
    return NULL;
}

/* Where the rest begins of model.layers.N.REST; NULL for other names. */
static const char *below_layer(int *layer, const char *ours)
{
    static const char prefix[] = "model.layers.";
    int used = 0;
    if (strncmp(ours, prefix, sizeof(prefix) - 1) != 0 ||
        sscanf(ours + sizeof(prefix) - 1, "%4d.%n", layer, &used) != 1 || !used)
        return NULL;
    return ours + sizeof(prefix) - 1 + used;
}

static bool find_in(dms_layout_place *out, const naming *n, const char *ours)
{
    int layer = 0;
    const char *rest = below_layer(&layer, ours), *prefix = n->type->prefix;
    const bool whole = !rest && !strncmp(ours, "model.", 6);
    const pair *p = rest ? find_pair(n->layer, rest) : whole ? find_pair(n->whole, ours + 6) : NULL;
    if (!p)
        return false;
    if (rest)
        snprintf(out->name, sizeof(out->name), "%s%s%d.%s", prefix, n->type->in_layers, layer,
                 p->theirs);
    else
        snprintf(out->name, sizeof(out->name), "%s%s", prefix, p->theirs);
    out->bare = out->name + strlen(prefix);
    out->part = p->part;
    out->parts = p->parts;
    out->transposed = p->transposed;
    return true;
}

bool dms_layout_find(dms_layout_place *out, const json_t *config, const char *ours)
{
    naming n;
    return find_naming(&n, config) && find_in(out, &n, ours);
}

bool dms_layout_back(dms_layout_place *out, char ours[96], const json_t *config, const char *theirs,
                     int part)
{
    naming n;
    int layer = 0, used = 0;
    if (!find_naming(&n, config))
        return false;
    const char *prefix = n.type->prefix, *layers = n.type->in_layers;
    theirs += !strncmp(theirs, prefix, strlen(prefix)) ? strlen(prefix) : 0;
    const bool in_layer = !strncmp(theirs, layers, strlen(layers)) &&
                          sscanf(theirs + strlen(layers), "%4d.%n", &layer, &used) == 1 && used;
    const char *rest = in_layer ? theirs + strlen(layers) + used : theirs;
    const pair *p = in_layer ? n.layer : n.whole;
    while (p->ours && (strcmp(p->theirs, rest) != 0 || p->part != part))
        p++;
    if (!p->ours)
        return false;
    if (in_layer)
        snprintf(ours, 96, "model.layers.%d.%s", layer, p->ours);
    else
        snprintf(ours, 96, "model.%s", p->ours);
    return find_in(out, &n, ours);
}

bool dms_layout_is_gate(const char *name)
{
    return strstr(name, ".dms_proj_alpha") != NULL;
}

bool dms_layout_shape(int64_t ours[DMS_MAX_RANK], const dms_layout_place *place, int rank,
                      const int64_t *theirs)
{
    if (place->transposed && rank != 2)
        return false;
    for (int i = 0; i < rank; i++)
        ours[i] = theirs[place->transposed ? 1 - i : i];
    if (rank && ours[0] % place->parts)
        return false;
    if (rank)
        ours[0] /= place->parts;
    return rank || place->parts == 1;
}

/* out[i, j] = in[j, i]: in tiles, so that both sides stay in the cache. Strides in elements. */
typedef struct {
    char *out;
    const char *in;
    int64_t rows, cols, out_stride, in_stride; /* of out */
    size_t bytes;
} turn;

static void transpose(const turn *t)
{
    enum { TILE = 32 };
    for (int64_t r = 0; r < t->rows; r += TILE)
        for (int64_t c = 0; c < t->cols; c += TILE)
            for (int64_t i = r; i < t->rows && i < r + TILE; i++)
                for (int64_t j = c; j < t->cols && j < c + TILE; j++)
                    memcpy(t->out + (size_t)(i * t->out_stride + j) * t->bytes,
                           t->in + (size_t)(j * t->in_stride + i) * t->bytes, t->bytes);
}

void dms_layout_take(void *ours, const void *theirs, const dms_layout_place *place,
                     const dms_layout_size *size)
{
    const int64_t rows = size->shape[0], cols = size->shape[1];
    const size_t bytes = size->element_bytes;
    if (place->transposed)
        transpose(&(turn){ours, (const char *)theirs + (size_t)(place->part * rows) * bytes, rows,
                          cols, cols, rows * place->parts, bytes});
    else
        memcpy(ours, (const char *)theirs + (size_t)(place->part * rows * cols) * bytes,
               (size_t)(rows * cols) * bytes);
}

void dms_layout_put(void *theirs, const void *ours, const dms_layout_place *place,
                    const dms_layout_size *size)
{
    const int64_t rows = size->shape[0], cols = size->shape[1];
    const size_t bytes = size->element_bytes;
    if (place->transposed)
        transpose(&(turn){(char *)theirs + (size_t)(place->part * rows) * bytes, ours, cols, rows,
                          rows * place->parts, cols, bytes});
    else
        memcpy((char *)theirs + (size_t)(place->part * rows * cols) * bytes, ours,
               (size_t)(rows * cols) * bytes);
}

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

bool dms_layout_leaves_out(const json_t *config, const char *name)
{
    const dms_model_type *type = dms_model_type_of(config);
    const bool gpt2 = type && !strcmp(type->name, "gpt2");
    return (gpt2 && ends_with(name, ".attn.bias")) || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq") ||
           (!strcmp(name, "lm_head.weight") && dms_model_type_is_tied(config));
}
