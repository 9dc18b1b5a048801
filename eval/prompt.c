#include "eval/prompt.h"

#include <inttypes.h>
#include <string.h>

static dms_status add_token(dms_tokens *out, int32_t id)
{
    if (id < 0)
        return DMS_OK;
    DMS_TRY(dms_tokens_reserve(out, 1));
    out->ids[out->n++] = id;
    return DMS_OK;
}

/* Leaves the last `keep` of the tokens from `first` on. */
static void cut_left(dms_tokens *t, int64_t first, int64_t keep, bool *cut)
{
    const int64_t drop = t->n - first - keep;
    if (drop <= 0)
        return;
    memmove(t->ids + first, t->ids + first + drop, (size_t)keep * sizeof(*t->ids));
    t->n -= drop;
    *cut = true;
}

static dms_status check_room(const dms_prompt_style *style, const dms_item *item, int64_t answer)
{
    if (answer < style->longest)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "item %s wants an answer of %" PRId64 " tokens, the model is open for %" PRId64
                    " in all; open a longer context",
                    item->id, answer, style->longest);
}

/* A model reads at least one token: an empty prompt is an end-of-text. */
static dms_status begin_somehow(dms_tokens *out, int64_t first, const dms_prompt_style *style,
                                const dms_item *item)
{
    if (out->n > first)
        return DMS_OK;
    DMS_TRY(add_token(out, dms_tokenizer_end_of_text(style->tokenizer)));
    return out->n > first
               ? DMS_OK
               : dms_fail(DMS_ERR_ARG,
                          "item %s has an empty prompt, and the tokenizer has no end-of-text",
                          item->id);
}

static dms_status write_turns(dms_tokens *out, const dms_prompt_style *style, const dms_item *item)
{
    const dms_message turn = {.role = "user", .content = item->prompt};
    if (!style->chat) {
        if (!item->prompt)
            return dms_fail(DMS_ERR_ARG, "item %s is a conversation; it wants the chat template",
                            item->id);
        DMS_TRY(add_token(out, style->begin));
        return dms_tokenizer_encode(style->tokenizer, out, item->prompt, strlen(item->prompt),
                                    true);
    }
    return dms_chat_render(style->chat, out, item->messages ? item->messages : &turn,
                           item->messages ? item->n_messages : 1, true);
}

/* Plain text and the answer's prefix are tokenised as one. */
static dms_status write_joined(dms_tokens *out, const dms_prompt_style *style, const dms_item *item)
{
    dms_text whole = {0};
    dms_item joined = *item;
    dms_status status = dms_text_format(&whole, "%s%s", item->prompt, item->answer_prefix);
    if (!status)
        status = dms_text_end(&whole);
    joined.prompt = whole.bytes;
    if (!status)
        status = write_turns(out, style, &joined);
    dms_text_free(&whole);
    return status;
}

dms_status dms_prompt_write(dms_tokens *out, bool *cut, const dms_prompt_style *style,
                            const dms_item *item, int64_t max_new)
{
    const int64_t first = out->n;
    const char *prefix = item->answer_prefix ? item->answer_prefix : "";
    DMS_TRY(check_room(style, item, max_new));
    if (*prefix && !style->chat && item->prompt) {
        DMS_TRY(write_joined(out, style, item));
    } else {
        DMS_TRY(write_turns(out, style, item));
        DMS_TRY(dms_tokenizer_encode(style->tokenizer, out, prefix, strlen(prefix), false));
    }
    DMS_TRY(begin_somehow(out, first, style, item));
    cut_left(out, first, style->longest - max_new, cut);
    return DMS_OK;
}

static dms_status add_tokens(dms_tokens *out, const int32_t *ids, int64_t n)
{
    DMS_TRY(dms_tokens_reserve(out, n));
    memcpy(out->ids + out->n, ids, (size_t)n * sizeof(*ids));
    out->n += n;
    return DMS_OK;
}

/* The text as one, divided where the tokens of its first `boundary` bytes alone would end. */
static dms_status split(dms_tokens *context, dms_tokens *given, const dms_prompt_style *style,
                        const dms_text *text, size_t boundary, const char *id)
{
    int64_t n;
    dms_tokens alone = {0}, whole = {0};
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_tokenizer_encode(style->tokenizer, &alone, text->bytes, boundary, true));
    DMS_TRY_OR(done, dms_tokenizer_encode(style->tokenizer, &whole, text->bytes, text->n, true));
    if (!whole.n) {
        status =
            dms_fail(DMS_ERR_ARG, "item %s has a context and a choice that are both empty", id);
        goto done;
    }
    n = alone.n < whole.n ? alone.n : whole.n - 1;
    DMS_TRY_OR(done, add_token(context, style->begin));
    DMS_TRY_OR(done, add_tokens(context, whole.ids, n));
    DMS_TRY_OR(done, add_tokens(given, whole.ids + n, whole.n - n));
done:
    dms_tokens_free(&alone);
    dms_tokens_free(&whole);
    return status;
}

static dms_status split_text(dms_tokens *context, dms_tokens *given, const dms_prompt_style *style,
                             const dms_item *item, size_t i)
{
    const char *prefix = item->answer_prefix ? item->answer_prefix : "";
    const char *delimiter = item->delimiter ? item->delimiter : "";
    dms_text text = {0};
    dms_status status =
        dms_text_format(&text, "%s%s%s%s", item->prompt, prefix, delimiter, item->texts[i]);
    const dms_span stem = {text.bytes, strlen(item->prompt) + strlen(prefix)};
    if (!status)
        status = split(context, given, style, &text, dms_choice_context(stem), item->id);
    dms_text_free(&text);
    return status;
}

dms_status dms_prompt_choice(dms_tokens *context, dms_tokens *given, bool *cut,
                             const dms_prompt_style *style, const dms_item *item, size_t i)
{
    if (style->chat || !item->prompt)
        return dms_fail(DMS_ERR_ARG,
                        "item %s is a choice: its context is plain text, without a "
                        "chat template",
                        item->id);
    DMS_TRY(split_text(context, given, style, item, i));
    DMS_TRY(begin_somehow(context, 0, style, item));
    DMS_TRY(check_room(style, item, given->n));
    cut_left(context, 0, style->longest - given->n, cut);
    return DMS_OK;
}
