#include "checkpoints/gguf_pre.h"

#include <stdio.h>
#include <string.h>

/* Patterns: the tokenizer.json files of GPT-2, SmolLM2, Llama 3 and Qwen 2; DEFAULT is llama.cpp's
 * for files that name no model's (llama-vocab.cpp, llm_tokenizer_bpe). */
typedef enum { BYTE_LEVEL, DIGITS, SPLIT_LLAMA3, SPLIT_QWEN2, DEFAULT } splitter;

/* DeepSeek-R1's distils have Qwen 2's splits and Llama 3's. The first of a kind is what is written.
 */
static const dms_gguf_pre known[] = {{"gpt-2", BYTE_LEVEL, false, false, false},
                                     {"smollm", DIGITS, false, false, false},
                                     {"llama-bpe", SPLIT_LLAMA3, true, false, true},
                                     {"llama3", SPLIT_LLAMA3, true, false, true},
                                     {"llama-v3", SPLIT_LLAMA3, true, false, true},
                                     {"smaug-bpe", SPLIT_LLAMA3, false, false, false},
                                     {"qwen2", SPLIT_QWEN2, false, true, false},
                                     {"deepseek-r1-qwen", SPLIT_QWEN2, false, true, false},
                                     {"default", DEFAULT, false, false, false}};

#define SPLIT_PATTERN(digits)                                            \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

const dms_gguf_pre *dms_gguf_pre_find(const char *text, size_t n)
{
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (strlen(known[i].name) == n && !memcmp(known[i].name, text, n))
            return &known[i];
    return NULL;
}

const char *dms_gguf_pre_names(void)
{
    return "gpt-2, smollm, llama-bpe, llama3, llama-v3, smaug-bpe, qwen2, deepseek-r1-qwen and "
           "default";
}

static json_t *byte_level(bool use_regex)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *split(const char *pattern)
{
    return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern,
                     "behavior", "Isolated", "invert", 0);
}

json_t *dms_gguf_pre_make(const dms_gguf_pre *pre)
{
    switch ((splitter)pre->splitter) {
    case BYTE_LEVEL:
        return byte_level(true);
    case DIGITS:
        return json_pack("{s:s, s:[{s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type",
                         "Digits", "individual_digits", 1, byte_level(true));
    case SPLIT_LLAMA3:
        return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers",
                         split(SPLIT_PATTERN("\\p{N}{1,3}")), byte_level(false));
    case SPLIT_QWEN2:
        return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers",
                         split(SPLIT_PATTERN("\\p{N}")), byte_level(false));
    default:
        return json_pack("{s:s, s:[o, o, o, o, o]}", "type", "Sequence", "pretokenizers",
                         split("[\\p{P}\\$\\+<=>\\^~\\|]+"),
                         split("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                               "|\\s+(?!\\S)"),
                         split("\\p{N}+"), split("[0-9][0-9][0-9]"), byte_level(false));
    }
}

static bool truth(const json_t *item, const char *key, bool fallback)
{
    const json_t *v = json_object_get(item, key);
    return json_is_boolean(v) ? json_is_true(v) : fallback;
}

static bool is(const json_t *item, const char *key, const char *text)
{
    const char *found = json_string_value(json_object_get(item, key));
    return found && !strcmp(found, text);
}

/* One step in our own words, where it is one of those that decide splits; NULL for others. */
static json_t *step_of(const json_t *item)
{
    const char *pattern =
        json_string_value(json_object_get(json_object_get(item, "pattern"), "Regex"));
    if (is(item, "type", "ByteLevel") && !truth(item, "add_prefix_space", true))
        return json_string(truth(item, "use_regex", true) ? "bytes of words" : "bytes");
    if (is(item, "type", "Digits") && truth(item, "individual_digits", false))
        return json_string("\\p{N}");
    if (is(item, "type", "Split") && pattern && is(item, "behavior", "Isolated") &&
        !truth(item, "invert", false))
        return json_string(pattern);
    return NULL;
}

/* A pre_tokenizer as the list of its steps, without what does not change tokens. */
static json_t *steps_of(const json_t *pre)
{
    json_t *list = json_array();
    const json_t *parts = json_object_get(pre, "pretokenizers");
    const bool sequence = is(pre, "type", "Sequence");
    for (size_t i = 0; list && i < (sequence ? json_array_size(parts) : 1); i++)
        if (json_array_append_new(list, step_of(sequence ? json_array_get(parts, i) : pre))) {
            json_decref(list);
            return NULL;
        }
    return list;
}

/* Steps of one of ours: NULL only without memory. */
static json_t *known_steps(const dms_gguf_pre *pre)
{
    json_t *made = dms_gguf_pre_make(pre), *steps = made ? steps_of(made) : NULL;
    json_decref(made);
    return steps;
}

dms_status dms_gguf_pre_of(const dms_gguf_pre **out, const json_t *tokenizer)
{
    const bool ignore =
        json_is_true(json_object_get(json_object_get(tokenizer, "model"), "ignore_merges"));
    json_t *steps = steps_of(json_object_get(tokenizer, "pre_tokenizer"));
    dms_status status = DMS_OK;
    *out = NULL;
    for (size_t i = 0; !status && !*out && i < sizeof(known) / sizeof(*known); i++) {
        json_t *wanted = known_steps(&known[i]);
        if (!wanted)
            status = dms_fail(DMS_ERR_NOMEM, "no memory to compare pre-tokenisers");
        else if (steps && known[i].ignore_merges == ignore && json_equal(steps, wanted))
            *out = &known[i];
        json_decref(wanted);
    }
    json_decref(steps);
    return status;
}
