/* RULER-style prompts: lengths, places, orders, counts, and that a perfect reply scores 1. */
#include "tasks/ruler.h"
#include "tests/files.h"

static const char *const tasks[] = {
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
};

/* A tokenizer of a token for four bytes. */
static dms_status quarter(void *context, const char *text, size_t n, int64_t *tokens)
{
    (void)context;
    cr_assert_eq(strlen(text), n);
    *tokens = (int64_t)(n + 3) / 4;
    return DMS_OK;
}

static dms_ruler_options options_of(const char *task, int64_t length, uint64_t seed)
{
    return (dms_ruler_options){.task = task, .length = length, .seed = seed, .count = quarter};
}

static dms_ruler *open_task(const char *task, int64_t length, uint64_t seed)
{
    dms_ruler *r;
    const dms_ruler_options options = options_of(task, length, seed);
    must(dms_ruler_open(&r, &options));
    return r;
}

static double score(const dms_item *item, const char *reply)
{
    double s;
    must(dms_match_score(&s, item->match, dms_span_of(reply), item->texts, item->n_texts));
    return s;
}

static int occurrences(const char *text, const char *part)
{
    int n = 0;
    for (const char *at = strstr(text, part); at; at = strstr(at + 1, part))
        n++;
    return n;
}

Test(ruler, every_task_fills_its_length_and_never_exceeds_it)
{
    static const int64_t lengths[] = {1000, 2047, 6000, 20000};
    for (size_t t = 0; t < COUNT(tasks); t++)
        for (size_t l = 0; l < COUNT(lengths); l++) {
            dms_ruler *r = open_task(tasks[t], lengths[l], 42);
            for (int64_t i = 0; i < 5; i++) {
                const dms_item *item;
                must(dms_ruler_make(r, i, &item));
                const size_t n = strlen(item->prompt) + strlen(item->answer_prefix);
                const int64_t used = (int64_t)(n + 3) / 4 + item->max_new_tokens;
                cr_assert_eq(item->length, used);
                cr_assert_leq(used, lengths[l], "%s", tasks[t]);
                /* A word of cwe more is 30 in its list, a word less of fwe a fiftieth: 15 %. */
                cr_assert_geq(used, lengths[l] * 85 / 100, "%s: %ld of %ld", tasks[t], (long)used,
                              (long)lengths[l]);
            }
            dms_ruler_close(r);
        }
}

Test(ruler, a_perfect_reply_scores_one_and_none_scores_nothing)
{
    for (size_t t = 0; t < COUNT(tasks); t++) {
        dms_ruler *r = open_task(tasks[t], 3000, 1);
        const dms_item *item;
        char reply[1024] = "";
        must(dms_ruler_make(r, 3, &item));
        for (size_t i = 0; i < item->n_texts; i++) {
            strcat(strcat(reply, " "), item->texts[i]);
            cr_assert_eq(occurrences(item->prompt, item->texts[i]) > 0, true, "%s: %s", tasks[t],
                         item->texts[i]);
            for (size_t j = 0; j < item->n_texts; j++)
                cr_assert(i == j || !strstr(item->texts[i], item->texts[j]));
        }
        cr_assert_eq(score(item, reply), 1);
        cr_assert_eq(score(item, "I do not know."), 0);
        cr_assert_eq(score(item, item->answer_prefix), 0, "the prefix tells the answer");
        cr_assert_float_eq(score(item, item->texts[0]), 1.0 / (double)item->n_texts, 1e-15);
        dms_ruler_close(r);
    }
}

Test(ruler, tasks_have_the_answers_and_tokens_of_rulers_settings)
{
    static const struct {
        const char *task;
        size_t answers;
        int64_t tokens;
    } rows[] = {{"niah_single_1", 1, 128},
                {"niah_single_3", 1, 128},
                {"niah_multikey_1", 1, 128},
                {"niah_multivalue", 4, 128},
                {"niah_multiquery", 4, 128},
                {"vt", 5, 30},
                {"cwe", 10, 120},
                {"fwe", 3, 50}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        dms_ruler *r = open_task(rows[i].task, 2000, 5);
        const dms_item *item;
        dms_item_defaults defaults;
        must(dms_ruler_make(r, 0, &item));
        cr_assert_eq(item->n_texts, rows[i].answers);
        cr_assert_eq(item->max_new_tokens, rows[i].tokens);
        cr_assert(dms_ruler_defaults(&defaults, rows[i].task));
        cr_assert_eq(defaults.max_new_tokens, rows[i].tokens);
        cr_assert_eq(defaults.match, DMS_MATCH_ALL);
        dms_ruler_close(r);
    }
    dms_item_defaults qa;
    cr_assert(dms_ruler_defaults(&qa, "qa_2"));
    cr_assert_eq(qa.match, DMS_MATCH_PART);
    cr_assert_not(dms_ruler_defaults(&qa, "qa_3"));
}

Test(ruler, an_item_depends_on_task_seed_and_index_alone)
{
    for (size_t t = 0; t < COUNT(tasks); t++) {
        dms_ruler *a = open_task(tasks[t], 1500, 9), *b = open_task(tasks[t], 1500, 9);
        dms_ruler *other = open_task(tasks[t], 1500, 10);
        const dms_item *x, *y, *z;
        must(dms_ruler_make(a, 0, &x));
        must(dms_ruler_make(a, 7, &x));
        must(dms_ruler_make(b, 7, &y));
        must(dms_ruler_make(other, 7, &z));
        cr_assert_str_eq(x->prompt, y->prompt);
        cr_assert_str_eq(x->answer_prefix, y->answer_prefix);
        cr_assert_str_eq(x->texts[0], y->texts[0]);
        cr_assert_str_neq(x->prompt, z->prompt);
        must(dms_ruler_make(other, 8, &z));
        cr_assert_str_neq(x->texts[0], z->texts[0]);
        dms_ruler_close(a);
        dms_ruler_close(b);
        dms_ruler_close(other);
    }
}

Test(ruler, needles_lie_at_different_depths_and_all_over_the_text)
{
    static const struct {
        const char *task, *mark;
        int needles;
    } rows[] = {{"niah_multikey_1", "The secret number of", 4},
                {"niah_multivalue", "A secret number of", 4},
                {"niah_multiquery", "The secret number of", 4},
                {"niah_single_1", "The secret number of", 1},
                {"niah_single_3", "The secret code of", 1}};
    for (size_t t = 0; t < 2 * COUNT(rows); t++) {
        /* 700 tokens are fewer sentences than RULER has depths. */
        dms_ruler *r = open_task(rows[t / 2].task, t % 2 ? 700 : 3000, 3);
        double low = 1, high = 0;
        for (int64_t i = 0; i < 40; i++) {
            const dms_item *item;
            const char *last = NULL;
            must(dms_ruler_make(r, i, &item));
            cr_assert_eq(occurrences(item->prompt, rows[t / 2].mark), rows[t / 2].needles);
            for (const char *at = strstr(item->prompt, rows[t / 2].mark); at;
                 at = strstr(at + 1, rows[t / 2].mark)) {
                const char *end = strchr(at, '.');
                const double depth = (double)(at - item->prompt) / (double)strlen(item->prompt);
                cr_assert(!last || at > last + 2, "two needles without text between them");
                last = end;
                low = depth < low ? depth : low;
                high = depth > high ? depth : high;
            }
        }
        cr_assert(low < 0.15 && high > 0.75, "%s: depths %g to %g", rows[t / 2].task, low, high);
        dms_ruler_close(r);
    }
}

Test(ruler, distractors_never_tell_of_the_key_that_is_asked_for)
{
    dms_ruler *r = open_task("niah_multikey_2", 8000, 3);
    for (int64_t i = 0; i < 20; i++) {
        const dms_item *item;
        char needle[128], key[64];
        must(dms_ruler_make(r, i, &item));
        cr_assert_eq(sscanf(item->answer_prefix, " Answer: the secret number of %63s is", key), 1);
        snprintf(needle, sizeof(needle), "The secret number of %s is", key);
        cr_assert_eq(occurrences(item->prompt, needle), 1);
        cr_assert_eq(occurrences(item->prompt, item->texts[0]), 1);
        cr_assert_gt(occurrences(item->prompt, "The secret number of"), 200);
    }
    dms_ruler_close(r);
}

Test(ruler, a_chain_of_variables_is_told_in_order)
{
    dms_ruler *r = open_task("vt", 2000, 3);
    for (int64_t i = 0; i < 20; i++) {
        const dms_item *item;
        char statement[64];
        unsigned value;
        must(dms_ruler_make(r, i, &item));
        cr_assert_eq(
            sscanf(item->answer_prefix, " Answer: 5 variables have the value %u, namely:", &value),
            1);
        snprintf(statement, sizeof(statement), "VAR %s = %u.\n", item->texts[0], value);
        const char *at = strstr(item->prompt, statement);
        cr_assert_not_null(at);
        for (int hop = 1; hop < 5; hop++) {
            snprintf(statement, sizeof(statement), "VAR %s = VAR %s.\n", item->texts[hop],
                     item->texts[hop - 1]);
            at = strstr(at, statement);
            cr_assert_not_null(at, "hop %d is not behind the last", hop);
        }
        cr_assert_eq(occurrences(item->prompt, "VAR "), 2 * (1 + 2 * 4)); /* with the example */
    }
    dms_ruler_close(r);
}

/* Of the last list of the prompt. */
static int count_word(const char *prompt, const char *word)
{
    char numbered[64];
    int n = 0;
    const char *list = prompt;
    for (const char *at = prompt; (at = strstr(at, "\n1. ")); at++)
        list = at;
    snprintf(numbered, sizeof(numbered), ". %s", word);
    for (const char *at = list; (at = strstr(at, numbered)); at++)
        n += strchr(" \n", at[strlen(numbered)]) != NULL;
    return n;
}

Test(ruler, common_words_come_back_as_often_as_rulers_settings_say)
{
    static const struct {
        int64_t length;
        int often;
    } rows[] = {{3000, 6}, {8000, 30}, {40000, 30}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        dms_ruler *r = open_task("cwe", rows[i].length, 3);
        const dms_item *item;
        must(dms_ruler_make(r, 1, &item));
        for (size_t w = 0; w < item->n_texts; w++)
            cr_assert_eq(count_word(item->prompt, item->texts[w]), rows[i].often, "%s",
                         item->texts[w]);
        dms_ruler_close(r);
    }
}

Test(ruler, the_frequent_words_are_the_three_most_frequent_in_order)
{
    static const int64_t lengths[] = {600, 4000, 30000};
    for (size_t l = 0; l < COUNT(lengths); l++) {
        dms_ruler *r = open_task("fwe", lengths[l], 3);
        const dms_item *item;
        must(dms_ruler_make(r, 1, &item));
        int counts[3];
        for (int i = 0; i < 3; i++)
            counts[i] = occurrences(item->prompt, item->texts[i]);
        cr_assert(counts[0] > counts[1] && counts[1] > counts[2]);
        cr_assert_gt(occurrences(item->prompt, " ..."), counts[0]); /* rank 1 is noise */
        char *copy = strdup(item->prompt), *save = NULL;
        copy[strcspn(copy, "\n")] = 0;
        for (char *word = strtok_r(strstr(copy, "no word.") + 8, " ", &save); word;
             word = strtok_r(NULL, " ", &save)) {
            const bool answer = !strcmp(word, item->texts[0]) || !strcmp(word, item->texts[1]) ||
                                !strcmp(word, item->texts[2]);
            cr_assert(answer || !strcmp(word, "...") || occurrences(item->prompt, word) < counts[2],
                      "%s", word);
        }
        free(copy);
        dms_ruler_close(r);
    }
}

Test(ruler, an_essay_of_the_user_is_the_haystack)
{
    static const char essay[] =
        "One  sentence\nhere. \"Is it two?\" Three\tof them! Four (in all.) 5.5 "
        "is a number. Six";
    dms_ruler_options options = options_of("niah_single_2", 900, 4);
    options.essay = essay;
    options.essay_n = strlen(essay);
    dms_ruler *r;
    const dms_item *item;
    must(dms_ruler_open(&r, &options));
    must(dms_ruler_make(r, 0, &item));
    const char *needle = strstr(item->prompt, "The secret number");
    cr_assert_not_null(needle);
    cr_assert(strstr(item->prompt, "One sentence here.") != NULL);
    cr_assert(strstr(item->prompt, "Four (in all.)") != NULL);
    cr_assert_gt(occurrences(item->prompt, "One sentence here."), 5); /* again from the start */
    cr_assert(strchr(".?!)\"\nx", needle[-2]) != NULL, "within a sentence: %.20s", needle - 10);
    dms_ruler_close(r);
}

static dms_status fails(void *context, const char *text, size_t n, int64_t *tokens)
{
    (void)context, (void)text, (void)n, (void)tokens;
    return dms_fail(DMS_ERR_IO, "no tokenizer");
}

/* Every call finds more tokens than the one before. */
static dms_status grows(void *context, const char *text, size_t n, int64_t *tokens)
{
    (void)text, (void)n;
    *tokens = 300 + ++*(int *)context;
    return DMS_OK;
}

Test(ruler, what_cannot_be_made_is_refused)
{
    dms_ruler *r;
    const dms_item *item;
    int calls = 0;
    dms_ruler_options options = options_of("qa_1", 1000, 0);
    rig_expect_failure(dms_ruler_open(&r, &options), DMS_ERR_ARG, "no generator");
    options = options_of("vt", 0, 0);
    rig_expect_failure(dms_ruler_open(&r, &options), DMS_ERR_ARG, "length is 0");
    options = options_of("cwe", 300, 0);
    rig_expect_failure(dms_ruler_open(&r, &options), DMS_ERR_ARG, "at least");
    options = options_of("niah_single_2", 900, 0);
    options.essay = "\xFF";
    options.essay_n = 1;
    rig_expect_failure(dms_ruler_open(&r, &options), DMS_ERR_ARG, "not UTF-8 at byte 0");
    options.essay = " \n";
    rig_expect_failure(dms_ruler_open(&r, &options), DMS_ERR_ARG, "no sentence");
    options = options_of("vt", 900, 0);
    options.count = fails;
    rig_expect_failure(dms_ruler_open(&r, &options), DMS_ERR_IO, "no tokenizer");
    options = options_of("vt", 335, 0);
    options.count = grows;
    options.context = &calls;
    must(dms_ruler_open(&r, &options));
    rig_expect_failure(dms_ruler_make(r, 0, &item), DMS_ERR_ARG, "does not fit");
    rig_expect_failure(dms_ruler_make(r, -1, &item), DMS_ERR_ARG, "item -1");
    dms_ruler_close(r);
    dms_ruler_close(NULL);
}

Test(ruler, items_are_written_and_read_like_rulers_own)
{
    scratch s = scratch_open();
    const char *path = scratch_path(&s, "vt.jsonl");
    dms_ruler *r = open_task("vt", 1500, 2);
    const dms_item *made, *item;
    dms_items *in;
    FILE *f = fopen(path, "wb");
    must(dms_ruler_make(r, 4, &made));
    must(dms_item_write(f, made));
    fclose(f);
    must(dms_items_open(&in, path, NULL));
    must(dms_items_next(in, &item));
    cr_assert_str_eq(item->id, "4");
    cr_assert_str_eq(item->group, "vt");
    cr_assert_str_eq(item->prompt, made->prompt);
    cr_assert_str_eq(item->answer_prefix, made->answer_prefix);
    cr_assert_eq(item->n_texts, 5);
    cr_assert_str_eq(item->texts[4], made->texts[4]);
    cr_assert_eq(item->length, made->length);
    cr_assert_eq(item->max_new_tokens, 30);
    dms_items_close(in);
    dms_ruler_close(r);
    scratch_close(&s);
}
