/* For tests of files: what a model of any format says about a text. */
#ifndef DMS_TEST_LOGITS_H
#define DMS_TEST_LOGITS_H

#include <math.h>

#include "infer/model_file.h"
#include "infer/session.h"
#include "tests/files.h"

/* [n, V] after each of n tokens, computed in f32 with every token kept; the caller frees them. */
static inline float *dense_logits(const char *path, const int32_t *ids, int64_t n, int64_t *vocab)
{
    dms_device *dev;
    dms_model_file *f;
    dms_session *session;
    int sequence;
    must(dms_device_from_name(&dev, "cpu", 1));
    must(dms_model_file_open(&f, &(dms_model_file_options){.path = path,
                                                           .device = dev,
                                                           .compute = DMS_COMPUTE_F32,
                                                           .without_tokenizer = true,
                                                           .without_gate = true}));
    must(dms_session_open(&session, &(dms_session_options){.model = f->model,
                                                           .context = n,
                                                           .max_sequences = 1,
                                                           .kv_dtype = DMS_F32,
                                                           .policy = &dms_policy_dense}));
    must(dms_cache_admit(dms_session_cache(session), &sequence));
    *vocab = f->model->config.vocab;
    float *logits = malloc((size_t)(n * *vocab) * sizeof(*logits));
    for (int64_t i = 0; i < n; i++)
        must(dms_session_prefill(session, logits + i * *vocab, sequence, ids + i, 1, 0));
    dms_session_close(session);
    dms_model_file_close(f);
    dev->close(dev);
    return logits;
}

/* max |a - b| of n numbers; infinite where one is no number. */
static inline double largest_difference(const float *a, const float *b, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        most = isfinite(d) ? fmax(most, d) : INFINITY;
    }
    return most;
}

#endif
