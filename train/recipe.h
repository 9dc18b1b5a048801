/* One run: everything a YAML file says about it. */
#ifndef DMS_RECIPE_H
#define DMS_RECIPE_H

#include <stdio.h>

#include "kernels/ops.h"
#include "model/gate.h"

enum { DMS_PATH_SIZE = 512, DMS_MAX_SHARDS = 16, DMS_DATA_TEXT = DMS_PATH_SIZE + 32 };
enum { DMS_MAX_EVAL = 16, DMS_EVAL_SPEC = 2048 };

typedef enum { DMS_TRAIN_ALL, DMS_TRAIN_ATTENTION, DMS_TRAIN_GATE } dms_train_set;
typedef enum { DMS_TRAIN_IN_AUTO, DMS_TRAIN_IN_BF16, DMS_TRAIN_IN_F32 } dms_train_type;
/* cuda_emu: the CUDA backend on the CPU, for tests. */
typedef enum { DMS_RUN_AUTO, DMS_RUN_CPU, DMS_RUN_CUDA, DMS_RUN_CUDA_EMU } dms_run_device;

typedef struct {
    int n;
    char path[DMS_MAX_SHARDS][DMS_PATH_SIZE];
} dms_paths;

typedef struct {
    int n;
    double value[DMS_MAX_SHARDS];
} dms_weights;

/* One entry of the list `eval`: what the trainer knows of it, and what it hands on. */
typedef struct {
    int64_t every;            /* steps between evaluations; 0: only at the end */
    char name[64];            /* key "name", else "task" */
    char spec[DMS_EVAL_SPEC]; /* all keys but "every", a YAML mapping on one line */
} dms_eval_task;

/* Fields carry the names of the YAML keys: section.key is section.key. A plain value: copying it
 * copies everything. */
typedef struct {
    struct {
        char path[DMS_PATH_SIZE];
    } model;
    struct {
        dms_paths train;             /* token shards */
        dms_weights weights;         /* of a blend of them, one each; none: one stream */
        char heldout[DMS_PATH_SIZE]; /* token shard; empty: no evaluation */
        int64_t context;             /* T */
    } data;
    struct {
        int gate; /* dms_gate_kind */
        int64_t window;
        double tau, alpha_scale, alpha_offset;
    } dms;
    struct {
        int64_t steps;      /* optimiser steps, the fade included */
        int64_t fade_steps; /* neuron gate; 0: the channel is dropped at once */
        double cr;          /* compression ratio that the schedule rises to */
        int64_t ramp_steps; /* from CR 1 to `cr`, counted from the end of the fade */
    } schedule;
    struct {
        int direction; /* dms_kl_direction */
        double lambda; /* weight of the compression loss */
    } loss;
    struct {
        int train; /* dms_train_set */
        double lr, beta1, beta2, eps, weight_decay, clip;
    } optim;
    struct {
        char folder[DMS_PATH_SIZE];
        int64_t seed;
        int64_t batch;            /* B, sequences of one forward pass */
        int64_t accumulate;       /* forward passes of one optimiser step */
        int compute;              /* dms_train_type */
        bool replay;              /* recompute blocks in backward: less memory, a third slower */
        int64_t save_every, keep; /* steps between checkpoints; how many are kept */
        int64_t eval_every, eval_sequences; /* 0: only at the end */
    } run;
    struct {
        int n;
        dms_eval_task task[DMS_MAX_EVAL];
    } eval; /* run over the freed cache, beside the masked pass over data.heldout */
    struct {
        int kind;        /* dms_run_device */
        int64_t threads; /* 0: one a core */
    } device;
} dms_recipe;

/* Reference settings of method.md section 3; no model, no data. */
dms_recipe dms_recipe_defaults(void);

/* Reads a YAML file over the values in *recipe, which stay as they were on failure. Errors:
 * DMS_ERR_IO; DMS_ERR_ARG with file, line, key, what was found and expected: for an unknown key
 * the nearest known one, for a key given twice, for a value of the wrong type or out of range. */
dms_status dms_recipe_read(dms_recipe *recipe, const char *path);
/* The same from text; `name` stands for the file in messages. */
dms_status dms_recipe_parse(dms_recipe *recipe, const char *text, size_t length, const char *name);
/* Applies one override "section.key=value". A list's items are separated by commas, or in brackets
 * as the file has them: [a.tok, 'b c.tok']. "eval=[{task: kld}]" replaces the list of tasks. */
dms_status dms_recipe_set(dms_recipe *recipe, const char *assignment);
/* What no single key can show: window against context, fade against steps, and so on; and that all
 * texts are UTF-8. */
dms_status dms_recipe_check(const dms_recipe *recipe);
/* Whether a run that was begun with `before` can go on with `recipe`: the gate, the shape of its
 * batches, the seed and the type of arithmetic must be the same. DMS_ERR_ARG names the first key
 * that differs and both values. */
dms_status dms_recipe_continues(const dms_recipe *recipe, const dms_recipe *before);
/* Whether both have the same data.train, by path. A run may go on with other shards. */
bool dms_recipe_same_data(const dms_recipe *a, const dms_recipe *b);
/* data.train for a message: "a.tok", "a.tok and 2 more". */
void dms_recipe_data_text(char out[DMS_DATA_TEXT], const dms_recipe *recipe);
/* Writes the complete recipe, which has passed dms_recipe_check, as YAML that dms_recipe_read reads
 * back to the same values. */
dms_status dms_recipe_write(const dms_recipe *recipe, FILE *out);

#endif
