/* dms-tokenize: text to token shards, shards to text, and a look at single tokens. */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/source.h"
#include "data/encode.h"
#include "data/program.h"
#include "data/shard.h"
#include "data/tokenizer.h"
#include "infer/chat.h"

static const char help[] =
    "dms-tokenize MODEL -o OUT.tok FILE...      text to a token shard\n"
    "dms-tokenize MODEL --count FILE...         the number of tokens of each document\n"
    "dms-tokenize MODEL --text TEXT             the ids of TEXT\n"
    "dms-tokenize MODEL --decode FILE.tok...    token shards to text\n"
    "\n"
    "MODEL is a Hugging Face folder, a GGUF file, one of our checkpoints, or a tokenizer.json.\n"
    "FILE is text or JSON Lines (*.jsonl), plain or gzip, or a folder of such files. A text is "
    "one\n"
    "document; so is each line, {\"text\": ...} or {\"messages\": [{\"role\", \"content\"}, ...]}, "
    "which\n"
    "is written in the model's turn format.\n"
    "\n"
    "  -o, --output FILE      the shard to write\n"
    "      --separator TOKEN  ends each document [the model's end-of-text token]\n"
    "      --plain            special tokens in the text are text\n"
    "      --count, --text, --decode   see above\n"
    "  -h, --help             this page\n"
    "\n"
    "Example: dms-tokenize SmolLM2-135M.gguf -o train.tok novels/\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

typedef enum { WRITE, COUNT, TEXT, DECODE } task;

typedef struct {
    task task;
    const char *model, *output, *separator, *text;
    char **files;
    int n_files;
    bool plain;
} options;

/* A model's tokenizer and the token that ends its texts, or -1. */
typedef struct {
    dms_tokenizer *tokenizer;
    int32_t end_of_text;
    char *chat_template; /* or NULL */
    dms_chat chat;       /* recognised at the first conversation: tokenizer is NULL before */
} model;

static dms_status parse(options *o, int argc, char **argv)
{
    static const struct option known[] = {
        {"output", required_argument, NULL, 'o'}, {"separator", required_argument, NULL, 's'},
        {"plain", no_argument, NULL, 'p'},        {"count", no_argument, NULL, 'c'},
        {"text", required_argument, NULL, 't'},   {"decode", no_argument, NULL, 'd'},
        {"help", no_argument, NULL, 'h'},         {0},
    };
    int c, n_tasks = 0;
    opterr = 0;
    while ((c = getopt_long(argc, argv, "o:h", known, NULL)) != -1) {
        n_tasks += c == 'o' || c == 'c' || c == 't' || c == 'd';
        switch (c) {
        case 'o':
            o->output = optarg;
            break;
        case 's':
            o->separator = optarg;
            break;
        case 'p':
            o->plain = true;
            break;
        case 'c':
            o->task = COUNT;
            break;
        case 't':
            o->task = TEXT;
            o->text = optarg;
            break;
        case 'd':
            o->task = DECODE;
            break;
        case 'h':
            fputs(help, stdout);
            exit(dms_program_end("dms-tokenize", DMS_OK));
        default:
            return dms_program_bad_option(argv);
        }
    }
    o->model = argv[optind];
    o->files = argv + optind + 1;
    o->n_files = o->model ? argc - optind - 1 : 0;
    const char *wrong = !o->model      ? "no MODEL is named"
                        : n_tasks == 0 ? "say what to do: -o, --count, --text or --decode"
                        : n_tasks > 1  ? "-o, --count, --text and --decode exclude each other"
                        : o->task == TEXT && o->n_files > 0  ? "--text takes no FILE"
                        : o->task != TEXT && o->n_files == 0 ? "no FILE is named"
                                                             : NULL;
    return wrong ? dms_fail(DMS_ERR_ARG, "%s; see --help", wrong) : DMS_OK;
}

static dms_status append_stream(dms_text *out, dms_corpus *c)
{
    enum { PART = 1 << 20 };
    for (size_t n = 1; n > 0; out->n += n) {
        DMS_TRY(dms_text_reserve(out, PART));
        DMS_TRY(dms_corpus_read(c, out->bytes + out->n, PART, &n));
    }
    return DMS_OK;
}

static dms_status open_json(model *m, const char *path)
{
    dms_corpus *c;
    const char *name;
    dms_text json = {0};
    dms_status status = DMS_OK;
    DMS_TRY(dms_corpus_open(&c, path));
    DMS_TRY_OR(done, dms_corpus_next(c, &name));
    DMS_TRY_OR(done, append_stream(&json, c));
    DMS_TRY_OR(done, dms_tokenizer_open(&m->tokenizer, json.bytes, json.n, path));
    m->end_of_text = dms_tokenizer_end_of_text(m->tokenizer);
done:
    dms_text_free(&json);
    dms_corpus_close(c);
    return status;
}

/* eos_token_id is a number, or a list of which the first ends a text. */
static int32_t read_end_of_text(const json_t *config, const dms_tokenizer *t)
{
    const json_t *id = json_object_get(config, "eos_token_id");
    if (json_is_array(id))
        id = json_array_get(id, 0);
    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= dms_tokenizer_size(t))
        return dms_tokenizer_end_of_text(t);
    return (int32_t)json_integer_value(id);
}

static dms_status open_source(model *m, const char *path)
{
    size_t length;
    dms_source *source;
    dms_status status = DMS_OK;
    DMS_TRY(dms_source_open(&source, path));
    const char *json = dms_source_tokenizer(source, &length);
    if (!json)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_FORMAT, "%s: holds no tokenizer", path));
    DMS_TRY_OR(done, dms_tokenizer_open(&m->tokenizer, json, length, path));
    m->end_of_text = read_end_of_text(dms_source_config(source), m->tokenizer);
    const char *chat_template = dms_source_chat_template(source);
    m->chat_template = chat_template ? strdup(chat_template) : NULL;
    if (chat_template && !m->chat_template)
        status = dms_fail(DMS_ERR_NOMEM, "no memory for the chat template of %s", path);
done:
    dms_source_close(source);
    return status;
}

/* A tokenizer.json alone is told by its first character; all else is for dms_source_open. */
static dms_status open_model(model *m, const char *path)
{
    struct stat st;
    char first = 0;
    FILE *file = stat(path, &st) == 0 && S_ISREG(st.st_mode) ? fopen(path, "rb") : NULL;
    if (file) {
        if (fscanf(file, " %c", &first) != 1)
            first = 0;
        fclose(file);
    }
    return first == '{' ? open_json(m, path) : open_source(m, path);
}

static dms_status choose_separator(model *m, const options *o)
{
    if (!o->separator) {
        if (m->end_of_text < 0)
            return dms_fail(DMS_ERR_ARG,
                            "%s: no end-of-text token is known; name one with "
                            "--separator",
                            o->model);
        return DMS_OK;
    }
    m->end_of_text = dms_tokenizer_find(m->tokenizer, o->separator);
    if (m->end_of_text < 0)
        return dms_fail(DMS_ERR_ARG, "%s: has no token \"%s\" to be the separator", o->model,
                        o->separator);
    return DMS_OK;
}

/* Where ids go: to the shard (NULL: nowhere), counted. */
typedef struct {
    dms_shard_writer *writer;
    int64_t count;
} sink;

static dms_status put(void *context, const int32_t *ids, int64_t n, bool *stop)
{
    sink *s = context;
    *stop = false;
    s->count += n;
    return s->writer ? dms_shard_writer_append(s->writer, ids, n) : DMS_OK;
}

static dms_status render(void *context, dms_tokens *out, const dms_message *messages, size_t n)
{
    model *m = context;
    if (!m->chat.tokenizer)
        DMS_TRY(dms_chat_recognise(&m->chat, m->tokenizer, m->chat_template));
    return dms_chat_render(&m->chat, out, messages, n, false);
}

static dms_status take_file(sink *s, dms_encoder *e, const model *m, const char *path)
{
    dms_corpus *c;
    const char *name;
    dms_status status = DMS_OK;
    DMS_TRY(dms_corpus_open(&c, path));
    DMS_TRY_OR(done, dms_corpus_next(c, &name));
    while (name) {
        const int64_t before = s->count;
        DMS_TRY_OR(done, dms_encoder_run(e, c, name, &(dms_id_sink){put, s}));
        if (!s->writer)
            printf("%10lld  %s\n", (long long)(s->count - before), name);
        else
            DMS_TRY_OR(done, dms_shard_writer_append(s->writer, &m->end_of_text, 1));
        DMS_TRY_OR(done, dms_corpus_next(c, &name));
    }
done:
    dms_corpus_close(c);
    return status;
}

/* An output that exists may be replaced only if it is a shard, or empty: never a text or a model
 * that was named by mistake. */
static dms_status check_output(const char *path)
{
    struct stat info;
    if (stat(path, &info))
        return DMS_OK;
    if (S_ISREG(info.st_mode) && (!info.st_size || dms_shard_recognise(path)))
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG, "%s exists and is no token shard; give -o another name", path);
}

static dms_status run_files(model *m, const options *o)
{
    sink s = {0};
    const dms_turn_format turns = {render, m};
    dms_encoder e = {.tokenizer = m->tokenizer, .specials = !o->plain, .turns = &turns};
    dms_status status = DMS_OK;
    if (o->task == WRITE) {
        DMS_TRY(check_output(o->output));
        DMS_TRY(choose_separator(m, o));
        DMS_TRY(dms_shard_writer_open(&s.writer, o->output, dms_tokenizer_size(m->tokenizer),
                                      dms_tokenizer_crc(m->tokenizer)));
    }
    for (int i = 0; i < o->n_files; i++)
        DMS_TRY_OR(done, take_file(&s, &e, m, o->files[i]));
    if (s.writer) {
        DMS_TRY_OR(done, dms_shard_writer_commit(s.writer));
        printf("%s: %lld tokens of text\n", o->output, (long long)s.count);
    } else if (o->n_files > 1) {
        printf("%10lld  in all\n", (long long)s.count);
    }
done:
    dms_shard_writer_close(s.writer);
    dms_encoder_free(&e);
    return status;
}

static dms_status run_text(model *m, const options *o)
{
    dms_tokens ids = {0};
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_tokenizer_encode(m->tokenizer, &ids, o->text, strlen(o->text), !o->plain));
    for (int64_t i = 0; i < ids.n; i++)
        printf("%s%d", i ? " " : "", ids.ids[i]);
    putchar('\n');
done:
    dms_tokens_free(&ids);
    return status;
}

static dms_status decode_shard(const model *m, const char *path)
{
    enum { PART = 4096 };
    int32_t ids[PART];
    dms_shard *s;
    dms_text text = {0};
    dms_status status = DMS_OK;
    DMS_TRY(dms_shard_open(&s, path));
    const dms_shard_info *info = dms_shard_get_info(s);
    if (info->foreign)
        fprintf(stderr,
                "dms-tokenize: %s (%s) names no tokenizer; its ids are taken for this model's\n",
                path, info->format);
    else if (info->tokenizer_crc != dms_tokenizer_crc(m->tokenizer))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_ARG,
                                  "%s: was made by another tokenizer than this model's "
                                  "(CRC %08x, expected %08x)",
                                  path, info->tokenizer_crc, dms_tokenizer_crc(m->tokenizer)));
    for (int64_t at = 0; at < info->n_tokens; at += PART) {
        const int64_t left = info->n_tokens - at, n = left < PART ? left : PART;
        text.n = 0;
        DMS_TRY_OR(done, dms_shard_read(s, ids, at, n));
        DMS_TRY_OR(done, dms_tokenizer_decode(m->tokenizer, &text, ids, n, false));
        if (text.n > 0)
            fwrite(text.bytes, 1, text.n, stdout);
    }
done:
    dms_text_free(&text);
    dms_shard_close(s);
    return status;
}

static dms_status run(model *m, const options *o)
{
    if (o->task == TEXT)
        return run_text(m, o);
    if (o->task != DECODE)
        return run_files(m, o);
    for (int i = 0; i < o->n_files; i++)
        DMS_TRY(decode_shard(m, o->files[i]));
    return DMS_OK;
}

int main(int argc, char **argv)
{
    options o = {0};
    model m = {0};
    dms_program_begin();
    if (parse(&o, argc, argv))
        return dms_program_refuse("dms-tokenize");
    dms_status status = open_model(&m, o.model);
    if (!status)
        status = run(&m, &o);
    dms_tokenizer_close(m.tokenizer);
    free(m.chat_template);
    return dms_program_end("dms-tokenize", status);
}
