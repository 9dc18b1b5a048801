/* Whole conversations: ids and texts equal those of the models' own chat templates, as jinja2
 * renders them (tests/chat/make.py). */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "infer/chat.h"
#include "tests/rig.h"

#define QWEN3_REASONING                                                                       \
    "content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')"           \
    "content.split('</think>')[-1].lstrip('\\n') {%- if loop.index0 > ns.last_query_index %}" \
    "{%- if loop.last or (not loop.last and reasoning_content) %}"                            \
    "'\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n'"
/* Turns, as the templates write them: \n a line's end in the text, \\n the template's escape. */
#define CHATML_TURN \
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
#define QWEN2_5_TURN \
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
#define QWEN3_SYSTEM "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
#define QWEN3_TURN "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
#define QWEN_ANSWER "{{- '<|im_start|>assistant\\n' }}"
#define LLAMA3_DATES                                      \
    "{{- \"Cutting Knowledge Date: December 2023\\n\" }}" \
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}"
#define LLAMA3_TURN                                                              \
    "{{- '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}" \
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
#define R1_HEAD "{{bos_token}}{{ns.system_prompt}}{{'<\uFF5CUser\uFF5C>' + message['content']}}"
#define R1_DROP "{% set content = content.split('</think>')[-1] %}"
#define R1_TURN \
    "{{'<\uFF5CAssistant\uFF5C>' + content + '<\uFF5Cend\u2581of\u2581sentence\uFF5C>'}}"

/* The lines of the templates that decide what they are; \\n is the template's own escape. Sources:
 * HuggingFaceTB/SmolLM2-*-Instruct, Qwen/Qwen2-*, Qwen2.5-*, Qwen3-*, Qwen3-*-Instruct-2507,
 * meta-llama/Meta-Llama-3-*, Llama-3.1-*, Llama-3.2-*, deepseek-ai/DeepSeek-R1-Distill-* (three
 * versions). */
static const struct {
    const char *name, *tokenizer, *chat_template;
} models[] = {
    {"smollm2", "qwen3",
     "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
     "<|im_end|>\n' }}" CHATML_TURN
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"},
    {"qwen2", "qwen3",
     "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}" CHATML_TURN
     "{{ '<|im_start|>assistant\n' }}"},
    {"qwen2.5", "qwen3",
     "{{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}"
     "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}" QWEN2_5_TURN
         QWEN_ANSWER},
    {"qwen3", "qwen3",
     QWEN3_SYSTEM QWEN3_TURN QWEN3_REASONING QWEN_ANSWER
     "{%- if enable_thinking is defined and enable_thinking is false %}"
     "{{- '<think>\\n\\n</think>\\n\\n' }}"},
    {"qwen3_2507", "qwen3", QWEN3_SYSTEM QWEN3_TURN QWEN_ANSWER},
    {"llama3", "deepseek_r1_llama",
     "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
     "message['content'] | trim + '<|eot_id|>' %}"
     "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"},
    {"llama3.1", "deepseek_r1_llama",
     "{%- set date_string = \"26 Jul 2024\" %}" LLAMA3_DATES LLAMA3_TURN},
    {"llama3.2", "deepseek_r1_llama",
     "{%- set date_string = strftime_now(\"%d %b %Y\") %}" LLAMA3_DATES LLAMA3_TURN},
    {"deepseek_r1", "deepseek_r1_qwen",
     R1_HEAD R1_DROP R1_TURN "{{'<\uFF5CAssistant\uFF5C><think>\\n'}}"},
    {"deepseek_r1_first", "deepseek_r1_llama",
     R1_HEAD R1_DROP R1_TURN "{{'<\uFF5CAssistant\uFF5C>'}}"},
    {"deepseek_r1_keeps", "deepseek_r1_llama",
     R1_HEAD R1_TURN "{{'<\uFF5CAssistant\uFF5C><think>\\n'}}"},
};

/* With the special tokens of Llama 3, which the small tokenizers lack. */
static dms_tokenizer *open_tokenizer(const char *name)
{
    static const char *const llama[] = {"<|begin_of_text|>", "<|start_header_id|>",
                                        "<|end_header_id|>", "<|eot_id|>"};
    char path[1024];
    dms_tokenizer *t;
    snprintf(path, sizeof(path), DMS_SOURCE_DIR "/tests/tokenizers/%s.json", name);
    json_t *file = json_load_file(path, JSON_ALLOW_NUL, NULL);
    cr_assert(file, "%s does not open", path);
    json_t *added = json_object_get(file, "added_tokens");
    const size_t n = json_object_size(json_object_get(json_object_get(file, "model"), "vocab")) +
                     json_array_size(added);
    for (size_t i = 0; i < COUNT(llama); i++)
        json_array_append_new(added, json_pack("{s:i,s:s,s:b,s:b}", "id", (int)(n + i), "content",
                                               llama[i], "special", 1, "normalized", 0));
    char *json = json_dumps(file, JSON_COMPACT);
    must(dms_tokenizer_open(&t, json, strlen(json), name));
    free(json);
    json_decref(file);
    return t;
}

static dms_chat chats[COUNT(models)];

static void open_chats(void)
{
    const char *folder = getenv("DMS_CHAT_TEMPLATES"); /* of whole templates, NAME.jinja */
    for (size_t i = 0; i < COUNT(models); i++) {
        char path[1024], text[1 << 16];
        const char *chat_template = models[i].chat_template;
        if (folder) {
            snprintf(path, sizeof(path), "%s/%s.jinja", folder, models[i].name);
            FILE *file = fopen(path, "rb");
            cr_assert(file, "%s is missing", path);
            text[fread(text, 1, sizeof(text) - 1, file)] = 0;
            fclose(file);
            chat_template = text;
        }
        must(dms_chat_recognise(&chats[i], open_tokenizer(models[i].tokenizer), chat_template));
        if (strstr(chat_template, "strftime_now"))
            strcpy(chats[i].date, "26 Jul 2024");
    }
}

static void close_chats(void)
{
    for (size_t i = 0; i < COUNT(models); i++)
        dms_tokenizer_close(chats[i].tokenizer);
}

static const dms_chat *find_chat(const char *name)
{
    for (size_t i = 0; i < COUNT(models); i++)
        if (!strcmp(models[i].name, name))
            return &chats[i];
    cr_assert_fail("no model %s", name);
    return NULL;
}

static void check_case(const json_t *c, const char *line)
{
    dms_message messages[16] = {0};
    dms_chat chat = *find_chat(json_string_value(json_object_get(c, "name")));
    const json_t *list = json_object_get(c, "messages"), *text = json_object_get(c, "text");
    const size_t n = json_array_size(list);
    dms_tokens got = {0}, want = {0};
    dms_text said = {0};
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(list, i);
        messages[i] = (dms_message){json_string_value(json_object_get(m, "role")),
                                    json_string_value(json_object_get(m, "content")),
                                    json_string_value(json_object_get(m, "reasoning_content"))};
    }
    chat.skip_thinking = !json_is_true(json_object_get(c, "thinking"));
    must(dms_chat_render(&chat, &got, messages, n, json_is_true(json_object_get(c, "answer"))));
    must(dms_tokenizer_encode(chat.tokenizer, &want, json_string_value(text),
                              json_string_length(text), true));
    must(dms_tokenizer_decode(chat.tokenizer, &said, got.ids, got.n, false));
    cr_expect(said.n == json_string_length(text) &&
                  !memcmp(said.bytes, json_string_value(text), said.n),
              "%s\n%.*s", line, (int)said.n, said.bytes);
    cr_expect(got.n == want.n && !memcmp(got.ids, want.ids, (size_t)got.n * sizeof(*got.ids)),
              "ids differ: %s", line);
    dms_tokens_free(&got);
    dms_tokens_free(&want);
    dms_text_free(&said);
}

Test(chat_conversations, render_text_and_ids_of_the_models_own_templates)
{
    char *line = NULL;
    size_t room = 0, n = 0;
    FILE *file = fopen(DMS_SOURCE_DIR "/tests/chat/cases.jsonl", "rb");
    cr_assert(file);
    open_chats();
    for (; getline(&line, &room, file) > 0; n++) {
        json_t *c = json_loads(line, 0, NULL);
        check_case(c, line);
        json_decref(c);
    }
    cr_expect(n > 200, "only %zu cases", n);
    close_chats();
    free(line);
    fclose(file);
}

/* What is asked turn by turn gives the ids of the whole, where answers have no reasoning. */
Test(chat_conversations, turn_by_turn_are_the_same_ids)
{
    const dms_message all[] = {{"system", "Be kind.", NULL},
                               {"user", "Hi", NULL},
                               {"assistant", "Good day.", NULL},
                               {"user", "And now?", NULL}};
    open_chats();
    for (size_t i = 0; i < COUNT(models); i++) {
        dms_tokens whole = {0}, turns = {0};
        const dms_chat *c = &chats[i];
        if (c->opens_thinking) /* there answers begin with a thought */
            continue;
        must(dms_chat_render(c, &whole, all, 4, true));
        must(dms_chat_begin(c, &turns, "Be kind."));
        must(dms_chat_ask(c, &turns, "Hi"));
        must(dms_tokenizer_encode(c->tokenizer, &turns, "Good day.", 9, false));
        must(dms_chat_end_answer(c, &turns));
        must(dms_chat_ask(c, &turns, "And now?"));
        cr_expect(whole.n == turns.n &&
                      !memcmp(whole.ids, turns.ids, (size_t)whole.n * sizeof(*whole.ids)),
                  "%s", models[i].name);
        dms_tokens_free(&whole);
        dms_tokens_free(&turns);
    }
    close_chats();
}

Test(chat_conversations, refuse_a_role_that_they_do_not_know)
{
    dms_tokens ids = {0};
    open_chats();
    cr_expect_eq(dms_chat_render(&chats[0], &ids, &(dms_message){"tool", "4", NULL}, 1, false),
                 DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "message 0 has the role \"tool\""), "%s", dms_error_text());
    dms_tokens_free(&ids);
    close_chats();
}
