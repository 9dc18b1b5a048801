/* Items of a benchmark from a JSON Lines file: what is asked, and what decides whether the answer
 * is right. */
#ifndef DMS_ITEMS_H
#define DMS_ITEMS_H

#include <stdio.h>

#include "data/message.h"
#include "tasks/answer.h"
#include "tasks/choice.h"
#include "tasks/match.h"

typedef enum { DMS_ITEM_MATCH, DMS_ITEM_CHOICE, DMS_ITEM_EXTRACT, DMS_ITEM_CODE } dms_item_kind;

/* One run of the code. Standard input and output; or, for a function, a JSON value a line for each
 * argument, and the JSON value that it must return. */
typedef struct {
    const char *input, *output;
} dms_code_test;

enum { DMS_MAX_RULES = 2 };

/* Fields of other kinds are 0. Text is UTF-8 without 0 inside. */
typedef struct {
    dms_item_kind kind;
    const char *id;
    const char *group;           /* what its score is averaged with (MMLU: subject), or NULL */
    const char *prompt;          /* NULL where there are messages */
    const dms_message *messages; /* NULL where there is a prompt */
    size_t n_messages;
    const char
        *answer_prefix;       /* how the answer begins; part of what the model reads; "" for none */
    int64_t max_new_tokens;   /* 0: not said */
    const char *const *stops; /* texts that end the answer and are no part of it */
    size_t n_stops;
    int64_t length;           /* match: tokens that it was made for, 0: not said */
    const char *const *texts; /* match: references; choice: choices */
    size_t n_texts;
    dms_match match;
    const char *delimiter; /* choice: stands between the context and each choice */
    dms_norm norm;
    size_t label;                         /* choice: which is right, < n_texts */
    const char *answer;                   /* extract: the reference */
    dms_answer_rule rules[DMS_MAX_RULES]; /* extract: the score's, then that of a separate metric */
    int n_rules;
    const dms_code_test *tests;
    size_t n_tests;
    const char *function; /* code: its name, or NULL: the tests are of standard input */
    double timeout;       /* code: seconds a test */
} dms_item;

/* What a file of RULER's own format does not say. */
typedef struct {
    dms_match match;
    int64_t max_new_tokens;
} dms_item_defaults;

typedef struct dms_items dms_items;

/* The name that files and messages have for a kind. */
const char *dms_item_kind_name(dms_item_kind kind);

/* Reads PATH, which may be gzip: a line is an object with
 *   kind  generate-and-match, multiple-choice, generate-and-extract or code; without it the fields
 *         tell: outputs, choices, answer, tests
 *   id or index (text or number; else the line), group, max_new_tokens, stop (an array of texts)
 *   match    input, outputs (or output) , answer_prefix, metric all or part, length
 *   choice   context, choices, label, norm char, token or none, delimiter (a blank)
 *   extract  prompt or messages, answer (text or whole number), extractor and equality
 *            (tasks/answer.h), also {extractor, equality}, answer_prefix
 *   code     prompt or messages, tests [{input, output}], function, timeout (6), answer_prefix
 * Other keys are passed over, so that RULER's own files are read as they are. `defaults` may be
 * NULL: all, and no number of tokens. Memory: one line, of 256 MiB at most. Errors: DMS_ERR_IO,
 * DMS_ERR_NOMEM.
 */
dms_status dms_items_open(dms_items **out, const char *path, const dms_item_defaults *defaults);
/* *item: the next one, until the next call; NULL after the last. Errors: DMS_ERR_FORMAT with file,
 * line, field, what was found and expected; DMS_ERR_IO; DMS_ERR_NOMEM. */
dms_status dms_items_next(dms_items *r, const dms_item **item);
/* NULL is legal. */
void dms_items_close(dms_items *r);

/* Writes the item as one line that dms_items_next reads as the same item. Errors: DMS_ERR_FORMAT
 * (text that is not UTF-8), DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_item_write(FILE *file, const dms_item *item);

#endif
