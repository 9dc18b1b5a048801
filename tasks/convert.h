/* Turns the published files of the benchmarks into items (tasks/items.h). */
#ifndef DMS_CONVERT_H
#define DMS_CONVERT_H

#include "tasks/items.h"

/* name, what it is and where its fields were read */
#define DMS_BENCHMARK_LIST(X)                                                             \
    X(mmlu, "multiple choice of letters: cais/mmlu, or the authors' SUBJECT_test.csv")    \
    X(hellaswag, "multiple choice of endings: rowanz/hellaswag, Rowan/hellaswag")         \
    X(gsm8k, "generate and extract: openai/grade-school-math, openai/gsm8k")              \
    X(aime, "generate and extract: HuggingFaceH4/aime_2024, Maxwell-Jia/AIME_2024")       \
    X(math500, "generate and extract: HuggingFaceH4/MATH-500")                            \
    X(gpqa, "generate and extract: gpqa_diamond.csv of idavidrein/gpqa, Idavidrein/gpqa") \
    X(gpqa_choice, "multiple choice of letters: the same files")                          \
    X(livecodebench, "code: livecodebench/code_generation, livecodebench/code_generation_lite")

typedef struct {
    const char *benchmark; /* a name of the list */
    const char *input;     /* JSON Lines or CSV (tasks/records.h) */
    const char *shots;     /* file of the same format whose first records go before each prompt (of
                              MMLU: those of the subject); NULL: none */
    int n_shots;           /* how many; 0: the benchmark's own number */
    uint64_t seed;         /* of the order of GPQA's options */
} dms_convert_options;

/* Writes an item a record to `out`; *n_items of them. The wording of prompts is the benchmark's
 * where its format is part of it (MMLU, HellaSwag, GSM8K), else ours. Errors: DMS_ERR_ARG (an
 * unknown benchmark; shots where it has none; no shot of a subject), DMS_ERR_FORMAT with file,
 * line, field, found and expected; those of tasks/records.h; DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_convert(int64_t *n_items, FILE *out, const dms_convert_options *options);

#endif
