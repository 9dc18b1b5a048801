/* Answers of generated text: what each benchmark's rule takes for the answer, and what it holds for
 * equal to the reference. */
#ifndef DMS_ANSWER_H
#define DMS_ANSWER_H

#include "tasks/text.h"

/* code, name in files, rule. Thinking ends with the last </think>; where it begins with <think> and
 * does not end there is no answer; where there is neither, all of the text is the answer's. */
#define DMS_EXTRACTOR_LIST(X)                                                         \
    /* whole output, without white space at the ends */                               \
    X(WHOLE, "whole")                                                                 \
    /* first `#### ` and a number: openai/grade-school-math; as EleutherAI's gsm8k */ \
    X(GSM8K_STRICT, "gsm8k-strict")                                                   \
    /* last number: lm-evaluation-harness, gsm8k, flexible-extract */                 \
    X(GSM8K_FLEXIBLE, "gsm8k-flexible")                                               \
    /* content of the last \boxed, none where its braces do not close or the command  \
     * is \fbox: hendrycks/math, last_boxed_only_string and remove_boxed */           \
    X(BOXED, "boxed")                                                                 \
    /* the same after thinking */                                                     \
    X(BOXED_AFTER_THINKING, "boxed-after-thinking")                                   \
    /* last whole number after thinking: not the parts of a decimal number */         \
    X(LAST_INTEGER, "last-integer")                                                   \
    /* first `Answer: LETTER`: openai/simple-evals */                                 \
    X(LETTER, "letter")                                                               \
    /* lines between the last two with ```; empty where there are fewer:              \
     * LiveCodeBench */                                                               \
    X(CODE, "code")

typedef enum {
#define X(code, name) DMS_EXTRACT_##code,
    DMS_EXTRACTOR_LIST(X)
#undef X
        DMS_N_EXTRACTORS
} dms_extractor;

#define DMS_EQUALITY_LIST(X)                                                                    \
    /* byte for byte */                                                                         \
    X(TEXT, "text")                                                                             \
    /* without commas and dollar signs, what ends with the last `#### `, and a final period; in \
     * lower case: lm-evaluation-harness, gsm8k */                                              \
    X(GSM8K, "gsm8k")                                                                           \
    /* as whole numbers of any length; commas and one pair of $ are passed over */              \
    X(INTEGER, "integer")                                                                       \
    /* after the string normalisation of hendrycks/math (math_equivalence.py) */                \
    X(MATH, "math")                                                                             \
    /* the same, or two numbers (decimal, a/b, \frac{a}{b}) no more than 1e-6 apart */          \
    X(NUMBER, "number")

typedef enum {
#define X(code, name) DMS_EQUAL_##code,
    DMS_EQUALITY_LIST(X)
#undef X
        DMS_N_EQUALITIES
} dms_equality;

typedef struct {
    dms_extractor extractor;
    dms_equality equality;
} dms_answer_rule;

const char *dms_extractor_name(dms_extractor e);
const char *dms_equality_name(dms_equality e);
/* false where no rule has the name. */
bool dms_extractor_find(dms_extractor *out, const char *name);
bool dms_equality_find(dms_equality *out, const char *name);

/* Appends the answer to `out`; *found = false and nothing appended where there is none. `output`
 * may be any bytes. Errors: DMS_ERR_NOMEM; DMS_ERR_FORMAT (a search that takes too many steps). */
dms_status dms_answer_extract(dms_text *out, bool *found, dms_extractor extractor, dms_span output);
/* Appends what stands for the answer and all that equal it (for votes): for NUMBER the same as for
 * MATH. Errors: DMS_ERR_NOMEM. */
dms_status dms_answer_normalise(dms_text *out, dms_equality equality, dms_span answer);
dms_status dms_answer_equal(bool *equal, dms_equality equality, dms_span answer,
                            dms_span reference);
/* Extracts and compares; an output without an answer is wrong. */
dms_status dms_answer_judge(bool *right, dms_answer_rule rule, dms_span output, dms_span reference);

#endif
