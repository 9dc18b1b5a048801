/* A small GGUF file in memory, built key by key: twelve layers, every type of tensor, a tokenizer,
 * a gate, or one of several files. */
#ifndef DMS_TEST_GGUF_BUILDER_H
#define DMS_TEST_GGUF_BUILDER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t bytes[65536];
    size_t n;
    uint64_t keys;            /* so far */
    uint64_t tensors, offset; /* tensors listed so far, and where the next one's bytes begin */
} gguf_builder;

static inline void gguf_put(gguf_builder *b, const void *bytes, size_t n)
{
    if (b->n + n > sizeof(b->bytes))
        abort();
    memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

static inline void gguf_put_u32(gguf_builder *b, uint32_t x)
{
    gguf_put(b, &x, 4);
}

static inline void gguf_put_u64(gguf_builder *b, uint64_t x)
{
    gguf_put(b, &x, 8);
}

static inline void gguf_put_text(gguf_builder *b, const char *text)
{
    gguf_put_u64(b, strlen(text));
    gguf_put(b, text, strlen(text));
}

static inline void gguf_put_name(gguf_builder *b, const char *key)
{
    gguf_put_text(b, key);
    b->keys++;
}

static inline void gguf_put_key(gguf_builder *b, const char *family, const char *name, uint32_t x)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", family, name);
    gguf_put_name(b, key);
    gguf_put_u32(b, strstr(name, "epsilon") || strstr(name, "freq_base") ? 6 : 4);
    gguf_put_u32(b, x);
}

static inline void gguf_put_key_text(gguf_builder *b, const char *name, const char *text)
{
    gguf_put_name(b, name);
    gguf_put_u32(b, 8);
    gguf_put_text(b, text);
}

static inline void gguf_put_key_texts(gguf_builder *b, const char *name, const char *texts)
{
    uint64_t n = 0;
    const char *end = texts;
    for (; *end; end += strlen(end) + 1)
        n++;
    gguf_put_name(b, name);
    gguf_put_u32(b, 9);
    gguf_put_u32(b, 8);
    gguf_put_u64(b, n);
    for (; *texts; texts += strlen(texts) + 1)
        gguf_put_text(b, texts);
}

/* One tensor of the list, of `bytes` bytes. rows 0: a vector. */
static inline void gguf_put_tensor(gguf_builder *b, const char *name, uint64_t cols, uint64_t rows,
                                   uint32_t type, uint64_t bytes)
{
    gguf_put_text(b, name);
    gguf_put_u32(b, rows ? 2 : 1);
    gguf_put_u64(b, cols);
    if (rows)
        gguf_put_u64(b, rows);
    gguf_put_u32(b, type);
    gguf_put_u64(b, b->offset);
    b->offset += (bytes + 31) / 32 * 32;
    b->tensors++;
}

static inline void gguf_put_meta(gguf_builder *b, const char *family, const char *pre)
{
    static const int32_t kinds[] = {3, 1, 1, 1, 4};
    const float eps = 1e-6f, base = 10000;
    uint32_t eps_bits, base_bits;
    memcpy(&eps_bits, &eps, 4);
    memcpy(&base_bits, &base, 4);
    gguf_put_key_text(b, "general.architecture", family);
    gguf_put_key(b, family, "block_count", 12);
    gguf_put_key(b, family, "context_length", 64);
    gguf_put_key(b, family, "embedding_length", 32);
    gguf_put_key(b, family, "feed_forward_length", 32);
    gguf_put_key(b, family, "attention.head_count", 2);
    gguf_put_key(b, family, "attention.head_count_kv", 1);
    gguf_put_key(b, family,
                 strcmp(family, "gpt2") ? "attention.layer_norm_rms_epsilon"
                                        : "attention.layer_norm_epsilon",
                 eps_bits);
    gguf_put_key(b, family, "rope.freq_base", base_bits);
    gguf_put_key(b, "general", "alignment", 32);
    gguf_put_key_text(b, "tokenizer.ggml.model", "gpt2");
    gguf_put_key_text(b, "tokenizer.ggml.pre", pre);
    gguf_put_key_texts(b, "tokenizer.ggml.tokens", "<s>\0a\0b\0ab\0<u>\0");
    gguf_put_name(b, "tokenizer.ggml.token_type");
    gguf_put_u32(b, 9);
    gguf_put_u32(b, 5);
    gguf_put_u64(b, 5);
    gguf_put(b, kinds, sizeof(kinds));
    gguf_put_key_texts(b, "tokenizer.ggml.merges", "a b\0");
    gguf_put_key(b, "tokenizer.ggml", "bos_token_id", 0);
    gguf_put_key_text(b, "tokenizer.chat_template", "{{ messages }}");
}

/* ggml's type numbers, and the bytes of a block of 32 (types up to 8 and 20) or 256. */
static inline void gguf_put_blocks(gguf_builder *b)
{
    static const uint8_t types[][2] = {{2, 18},   {3, 20},   {6, 22},   {7, 24},
                                       {8, 34},   {20, 18},  {10, 84},  {11, 110},
                                       {12, 144}, {13, 176}, {14, 210}, {23, 136}};
    char name[64];
    for (uint32_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        snprintf(name, sizeof(name), "blk.%u.ffn_up.weight", i);
        gguf_put_tensor(b, name, i < 6 ? 32 : 256, 1, types[i][0], types[i][1]);
    }
}

/* An array of n F32 zeros. */
static inline void gguf_put_key_zeros(gguf_builder *b, const char *name, uint64_t n)
{
    gguf_put_name(b, name);
    gguf_put_u32(b, 9);
    gguf_put_u32(b, 6);
    gguf_put_u64(b, n);
    for (uint64_t i = 0; i < n; i++)
        gguf_put_u32(b, 0);
}

/* Both gates' keys and arrays: widths as in gguf_put_meta, so many KV heads. */
static inline void gguf_put_gate(gguf_builder *b, uint64_t groups)
{
    gguf_put_key(b, "dms", "window_size", 16);
    gguf_put_key(b, "dms", "alpha_scale", 100);
    gguf_put_key_text(b, "dms.alpha_per", "head");
    gguf_put_key_zeros(b, "dms.blk.0.alpha_norm.weight", 32);
    gguf_put_key_zeros(b, "dms.blk.0.alpha.weight", 32 * groups);
    gguf_put_key_zeros(b, "dms.blk.0.alpha.bias", groups);
    gguf_put_key_zeros(b, "dms.blk.0.rows.weight", 32 * groups);
}

/* This file is number `no` of `count`. */
static inline void gguf_put_split(gguf_builder *b, uint16_t no, uint16_t count, uint32_t tensors)
{
    gguf_put_name(b, "split.no");
    gguf_put_u32(b, 2);
    gguf_put(b, &no, 2);
    gguf_put_name(b, "split.count");
    gguf_put_u32(b, 2);
    gguf_put(b, &count, 2);
    gguf_put_name(b, "split.tensors.count");
    gguf_put_u32(b, 5);
    gguf_put_u32(b, tensors);
}

static inline void gguf_begin(gguf_builder *b)
{
    *b = (gguf_builder){0};
    gguf_put(b, "GGUF", 4);
    gguf_put_u32(b, 3);
    gguf_put_u64(b, 0);
    gguf_put_u64(b, 0);
}

static inline void gguf_put_attention(gguf_builder *b)
{
    gguf_put_tensor(b, "token_embd.weight", 32, 5, 1, 320);
    gguf_put_tensor(b, "blk.0.attn_q.weight", 32, 32, 8, 32 * 34);
    gguf_put_tensor(b, "blk.0.attn_k.bias", 16, 0, 0, 64);
    gguf_put_tensor(b, "output_norm.weight", 32, 0, 30, 64);
}

/* The counts, and the tensors' bytes. */
static inline void gguf_end(gguf_builder *b)
{
    memcpy(b->bytes + 8, &b->tensors, 8);
    memcpy(b->bytes + 16, &b->keys, 8);
    while (b->n % 32)
        gguf_put(b, "", 1);
    for (uint64_t i = 0; i < b->offset; i++)
        gguf_put(b, &(uint8_t){(uint8_t)(i * 37)}, 1);
}

static inline void gguf_build(gguf_builder *b, const char *family, const char *pre)
{
    gguf_begin(b);
    gguf_put_meta(b, family, pre);
    gguf_put_attention(b);
    gguf_put_blocks(b);
    gguf_end(b);
}

#endif
