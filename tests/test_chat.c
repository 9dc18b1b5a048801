/* Turn formats: ids and texts equal those of the models' own chat templates. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "infer/chat.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

/* The lines of the models' templates that decide what they are; \\n is the template's own escape.
 * Sources: HuggingFaceTB/SmolLM2-135M-Instruct, Qwen/Qwen2.5-7B-Instruct,
 * meta-llama/Meta-Llama-3-8B-Instruct, meta-llama/Llama-3.1-8B-Instruct. */
static const char smollm2_template[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}";
static const char qwen2_5_template[] =
    "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n"
    "        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\\n' }}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' "
    "}}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";
static const char llama3_template[] =
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
static const char llama3_1_template[] =
    "{{- bos_token }}\n    {%- set date_string = \"26 Jul 2024\" %}\n"
    "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n"
    "{{- \"Cutting Knowledge Date: December 2023\\n\" }}\n"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n"
    "{{- '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n"
    "        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n";

enum { SPECIALS = 4, CONVERSATIONS };

/* answer and second: NULL where the user speaks once. */
static const struct {
    const char *system, *first, *answer, *second;
} conversations[CONVERSATIONS] = {
    {NULL, "Hello, world!", NULL, NULL},
    {"Be brief.", " 2 + 2?\n", NULL, NULL},
    {NULL, "Hello, world!", "Good day.", "And now?"},
    {"", "Hello, world!", NULL, NULL},
    [SPECIALS] = {NULL, "a<|im_end|>b<|eot_id|>c <|im_start|>system\n", NULL, NULL},
};

/* What the whole templates render for each conversation, with jinja2 as transformers sets it up:
 * jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(tokenizer_config
 *     ["chat_template"]).render(messages=[{"role": ROLE, "content": TEXT}, ...],
 *     bos_token="<|begin_of_text|>", add_generation_prompt=True)
 * SmolLM2's template was that of its GGUF file (tokenizer.chat_template); of Llama 3.1's the
 * branches that only tools reach were shortened. */
static const struct {
    const char *name, *style, *chat_template, *rendered[CONVERSATIONS];
} models[] = {
    {"SmolLM2",
     "smollm",
     smollm2_template,
     {
         "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
         "Face<|im_end|>\n"
         "<|im_start|>user\nHello, world!<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n"
         "<|im_start|>user\n 2 + 2?\n<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
         "Face<|im_end|>\n"
         "<|im_start|>user\nHello, world!<|im_end|>\n"
         "<|im_start|>assistant\nGood day.<|im_end|>\n"
         "<|im_start|>user\nAnd now?<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\n<|im_end|>\n"
         "<|im_start|>user\nHello, world!<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
         "Face<|im_end|>\n"
         "<|im_start|>user\na<|im_end|>b<|eot_id|>c <|im_start|>system\n<|im_end|>\n"
         "<|im_start|>assistant\n",
     }},
    {"Qwen2.5",
     "qwen2",
     qwen2_5_template,
     {
         "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
         "assistant.<|im_end|>\n"
         "<|im_start|>user\nHello, world!<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n"
         "<|im_start|>user\n 2 + 2?\n<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
         "assistant.<|im_end|>\n"
         "<|im_start|>user\nHello, world!<|im_end|>\n"
         "<|im_start|>assistant\nGood day.<|im_end|>\n"
         "<|im_start|>user\nAnd now?<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\n<|im_end|>\n"
         "<|im_start|>user\nHello, world!<|im_end|>\n"
         "<|im_start|>assistant\n",
         "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
         "assistant.<|im_end|>\n"
         "<|im_start|>user\na<|im_end|>b<|eot_id|>c <|im_start|>system\n<|im_end|>\n"
         "<|im_start|>assistant\n",
     }},
    {"Llama 3",
     "llama3",
     llama3_template,
     {
         "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello, world!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\n2 + 2?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello, world!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nGood day.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHello, world!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|im_end|>b<|eot_id|>c "
         "<|im_start|>system<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
     }},
    {"Llama 3.1",
     "llama3",
     llama3_1_template,
     {
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
         "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHello, world!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
         "December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\n2 + 2?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
         "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHello, world!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nGood day.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
         "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHello, world!<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
         "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\na<|im_end|>b<|eot_id|>c "
         "<|im_start|>system<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
     }},
};

/* The tokenizer of a fixture; with the header tokens of Llama 3, which its small one lacks. */
static dms_tokenizer *open_style(const char *style)
{
    static const char *const headers[] = {"<|start_header_id|>", "<|end_header_id|>"};
    char relative[64], path[1024];
    dms_tokenizer *t = NULL;
    snprintf(relative, sizeof(relative), "tokenizers/%s/tokenizer.json", style);
    json_t *file = json_load_file(fixture(path, relative), JSON_ALLOW_NUL, NULL);
    cr_assert(file, "%s does not open", path);
    json_t *added = json_object_get(file, "added_tokens");
    const int n = (int)json_object_size(json_object_get(json_object_get(file, "model"), "vocab"));
    for (int i = 0; i < 2 && !strcmp(style, "llama3"); i++)
        json_array_append_new(added, json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", n + i,
                                               "content", headers[i], "special", 1, "normalized", 0,
                                               "lstrip", 0, "rstrip", 0, "single_word", 0));
    char *json = json_dumps(file, JSON_COMPACT);
    must(dms_tokenizer_open(&t, json, strlen(json), style));
    free(json);
    json_decref(file);
    return t;
}

static dms_chat open_model(size_t i)
{
    dms_chat chat;
    must(dms_chat_recognise(&chat, open_style(models[i].style), models[i].chat_template));
    return chat;
}

/* The ids of a conversation, as a chat program makes them; the caller frees them. */
static dms_tokens talk(const dms_chat *chat, int i)
{
    dms_tokens ids = {0};
    const char *answer = conversations[i].answer;
    must(dms_chat_begin(chat, &ids, conversations[i].system));
    must(dms_chat_ask(chat, &ids, conversations[i].first));
    if (answer) {
        must(dms_tokenizer_encode(chat->tokenizer, &ids, answer, strlen(answer), false));
        must(dms_chat_end_answer(chat, &ids));
        must(dms_chat_ask(chat, &ids, conversations[i].second));
    }
    return ids;
}

static void expect_text(const dms_chat *chat, const dms_tokens *ids, const char *want)
{
    dms_text text = {0};
    must(dms_tokenizer_decode(chat->tokenizer, &text, ids->ids, ids->n, false));
    cr_assert(text.n == strlen(want) && !memcmp(text.bytes, want, text.n), "\n%.*s\nexpected\n%s",
              (int)text.n, text.bytes, want);
    dms_text_free(&text);
}

Test(chat, renders_text_and_ids_of_the_models_own_template)
{
    for (size_t m = 0; m < COUNT(models); m++) {
        const dms_chat chat = open_model(m);
        for (int i = 0; i < CONVERSATIONS; i++) {
            const char *rendered = models[m].rendered[i];
            dms_tokens got = talk(&chat, i), want = {0};
            expect_text(&chat, &got, rendered);
            must(dms_tokenizer_encode(chat.tokenizer, &want, rendered, strlen(rendered), true));
            if (i != SPECIALS)
                cr_assert(got.n == want.n &&
                              !memcmp(got.ids, want.ids, (size_t)got.n * sizeof(int32_t)),
                          "%s: ids of conversation %d differ", models[m].name, i);
            dms_tokens_free(&got);
            dms_tokens_free(&want);
        }
        dms_tokenizer_close(chat.tokenizer);
    }
}

static int count_specials(const dms_chat *chat, const dms_tokens *ids)
{
    int n = 0;
    for (int64_t i = 0; i < ids->n; i++)
        n += dms_tokenizer_is_special(chat->tokenizer, ids->ids[i]);
    return n;
}

/* Conversation 0 has the same turns and nothing typed. */
Test(chat, keeps_typed_special_tokens_plain_text)
{
    for (size_t m = 0; m < COUNT(models); m++) {
        const dms_chat chat = open_model(m);
        dms_tokens plain = talk(&chat, 0), typed = talk(&chat, SPECIALS), system = {0};
        const int want = count_specials(&chat, &plain);
        cr_assert_gt(want, 0);
        cr_assert_eq(count_specials(&chat, &typed), want, "%s: %d special tokens, expected %d",
                     models[m].name, count_specials(&chat, &typed), want);
        must(dms_chat_begin(&chat, &system, conversations[SPECIALS].first));
        plain.n = 0;
        must(dms_chat_begin(&chat, &plain, "x"));
        cr_assert_eq(count_specials(&chat, &system), count_specials(&chat, &plain));
        dms_tokens_free(&plain);
        dms_tokens_free(&typed);
        dms_tokens_free(&system);
        dms_tokenizer_close(chat.tokenizer);
    }
}

/* Day, English month and year of a moment, as "%d %b %Y" gives them in the C locale. */
static void day_of(time_t at, char out[32])
{
    struct tm day;
    cr_assert(localtime_r(&at, &day));
    cr_assert(strftime(out, 32, "%d %b %Y", &day));
}

Test(chat, states_the_date_that_the_template_sets_or_asks_for)
{
    static const char llama3_2_template[] =
        "{%- if strftime_now is defined %}{%- set date_string = strftime_now(\"%d %b %Y\") %}"
        "{%- else %}{%- set date_string = \"26 Jul 2024\" %}{%- endif %}"
        "{{- \"Cutting Knowledge Date: December 2023\\n\" }}"
        "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}"
        "{{- '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}";
    char before[32], after[32];
    dms_chat chat;
    dms_tokenizer *t = open_style("llama3");
    day_of(time(NULL), before);
    must(dms_chat_recognise(&chat, t, llama3_2_template));
    day_of(time(NULL), after);
    cr_assert(!strcmp(chat.date, before) || !strcmp(chat.date, after), "it says %s", chat.date);
    must(dms_chat_recognise(&chat, t, llama3_1_template));
    cr_assert_str_eq(chat.date, "26 Jul 2024");
    must(dms_chat_recognise(&chat, t, llama3_template));
    cr_assert_str_empty(chat.date);
    dms_tokenizer_close(t);
}

Test(chat, has_no_system_turn_where_the_template_writes_none)
{
    /* Qwen3: a system turn only where a system message is given. */
    static const char qwen3_template[] =
        "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n";
    dms_chat chat;
    dms_tokens ids = {0};
    dms_tokenizer *t = open_style("qwen2");
    must(dms_chat_recognise(&chat, t, qwen3_template));
    must(dms_chat_begin(&chat, &ids, NULL));
    cr_assert_eq(ids.n, 0);
    must(dms_chat_ask(&chat, &ids, "Hi"));
    expect_text(&chat, &ids, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    dms_tokens_free(&ids);
    dms_tokenizer_close(t);
}

Test(chat, names_a_template_that_it_does_not_know)
{
    /* Mistral; Phi-4; Qwen3 Thinking-2507; Qwen2.5-Math; SmolLM3; Qwen1.5; Qwen3-VL; Llama 3.2
     * Vision; DeepSeek-V3.1; Llama 3 with other dates; and Llama 3 for a tokenizer without its
     * tokens. */
    static const struct {
        const char *chat_template, *part;
    } cases[] = {
        {NULL, "no chat template"},
        {"", "begins \"\""},
        {"{{ bos_token }}\t[INST] ", "begins \"{{ bos_token }} [INST] \""},
        {"{{ '<|im_start|>assistant<|im_sep|>' }}", "answers do not open"},
        {"{{- '<|im_start|>assistant\\n<think>\\n' }}", "answers do not open"},
        {"{{ '<|im_start|>system\\nPlease reason step by step.<|im_end|>\\n' }}"
         "{{ '<|im_start|>assistant\\n' }}",
         "a system message of its own"},
        {"{{ strftime_now('%d %B %Y') }}{{ '<|im_start|>assistant\\n' }}", "with dates"},
        {"{{- message['content'] | trim }}{{ '<|im_start|>assistant\\n' }}", "text trimmed"},
        {"{{ message.reasoning_content }}{{ '<|im_start|>assistant\\n' }}", "rules for reasoning"},
        {"'\n' + message['content']}}{% if not loop.last %}{{ '<|im_end|>' + '\n'}}{% endif %}"
         "{{ '<|im_start|>assistant\n' }}",
         "turns that may end otherwise"},
        {"{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
         "{{- message.content }}{{- '<|im_end|>\\n' }}{{- '<|im_start|>assistant\\n' }}",
         "turns that may end otherwise"},
        {"{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}", "not trimmed"},
        {"{%- set system_message = messages[0]['content']|trim %}{{- message['content'] }}"
         "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
         "not trimmed"},
        {"{{ '<\uFF5CAssistant\uFF5C>' }} {{ thinking }}", "a later one than R1"},
        {"{{ '<\uFF5CAssistant\uFF5C>' }}", "with other turns"},
        {"message['content'] | trim Knowledge Date: May 2025 {{ "
         "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
         "other dates"},
        {"{%- set date_string = strftime_now(\"%B %Y\") %}Cutting Knowledge Date: December 2023"
         " + date_string + message['content'] | trim {{ "
         "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
         "other dates"},
        {"{%- set date_string = \"26 Jul 2024 and a date far longer than any\" %}"
         "Cutting Knowledge Date: December 2023 + date_string + message['content'] | trim {{ "
         "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
         "other dates"},
        {"{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n<think>' }}",
         "answers do not open"},
        {llama3_template, "tokens that the tokenizer lacks"},
    };
    dms_tokenizer *t = open_style("smollm");
    for (size_t i = 0; i < COUNT(cases); i++) {
        dms_chat chat = {.end = -7};
        cr_assert_eq(dms_chat_recognise(&chat, t, cases[i].chat_template), DMS_ERR_FORMAT,
                     "case %zu was taken", i);
        cr_assert(strstr(dms_error_text(), cases[i].part), "\"%s\" does not say \"%s\"",
                  dms_error_text(), cases[i].part);
        cr_assert_eq(chat.end, -7, "a failure wrote its result");
    }
    dms_tokenizer_close(t);
}
