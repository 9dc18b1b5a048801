/* Judges a program by its tests, as LiveCodeBench does (lcb_runner/evaluation/testing_util.py). */
#ifndef DMS_CODE_H
#define DMS_CODE_H

#include "tasks/items.h"
#include "tasks/sandbox.h"

typedef enum {
    DMS_CODE_PASSED,   /* every test */
    DMS_CODE_WRONG,    /* another answer */
    DMS_CODE_FAILED,   /* an exception, a signal, no such function, no code */
    DMS_CODE_TOO_LONG, /* the time of a test */
    DMS_CODE_TOO_MUCH, /* more than 16 MiB of output */
} dms_code_verdict;

typedef struct {
    dms_code_verdict verdict;
    size_t test;    /* the first that was not passed; of passed code: how many there are */
    char note[256]; /* the last line of what it wrote to standard error */
} dms_code_result;

/* Runs the tests of an item of kind code with the system's python3, each in a process of its own,
 * until one is not passed; item->timeout seconds a test, and one more to start; 4 GiB. A program is
 * run with the modules that LiveCodeBench imports before it, its output is compared line by line
 * without white space at their ends, and where lines differ as lists of decimal numbers. A function
 * (of class Solution, if the code has one) is called with the JSON values of the input's lines, and
 * what it returns (a tuple as a list) compared with the JSON value of the output by Python's ==, in
 * a process that runs nothing of the code. Two differences from the original: programs read a real
 * standard input to its end, and run as scripts. Errors: those of dms_sandbox_run; DMS_ERR_ARG for
 * an item of another kind. */
dms_status dms_code_judge(dms_code_result *out, dms_sandbox *s, const dms_item *item,
                          dms_span code);
/* Whether a program's output is that of a test. */
dms_status dms_code_same_output(bool *same, dms_span output, dms_span expected);

#endif
