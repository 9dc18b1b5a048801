/* print_logits MODEL IDS [dense]: reads token ids (one text file, numbers apart by blanks), writes
 * the logits of every position to standard output as raw f32, [n, V]. Computed in f32 on one
 * thread, for comparison with other programs (tests/others_load.py). The gate is on, unless `dense`
 * is said. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "infer/model_file.h"
#include "infer/session.h"

enum { MOST = 4096 };

static int read_ids(int32_t *ids, const char *path)
{
    int n = 0;
    FILE *in = fopen(path, "r");
    while (in && n < MOST && fscanf(in, "%d", &ids[n]) == 1)
        n++;
    if (in)
        fclose(in);
    return n;
}

static dms_status print_all(dms_session *s, const int32_t *ids, int n, int64_t vocab)
{
    int sequence = 0;
    dms_status status = DMS_OK;
    float *logits = malloc((size_t)vocab * sizeof(*logits));
    if (!logits)
        return dms_fail(DMS_ERR_NOMEM, "no memory for logits");
    DMS_TRY_OR(done, dms_cache_admit(dms_session_cache(s), &sequence));
    for (int i = 0; i < n; i++) {
        DMS_TRY_OR(done, dms_session_decode(s, logits, &(int32_t){sequence}, ids + i, 1));
        if (fwrite(logits, sizeof(*logits), (size_t)vocab, stdout) != (size_t)vocab)
            DMS_TRY_OR(done, dms_fail(DMS_ERR_IO, "logits cannot be written"));
    }
done:
    free(logits);
    return status;
}

static dms_status run(dms_device *dev, const char *path, const char *ids_path, bool dense)
{
    static int32_t ids[MOST];
    const int n = read_ids(ids, ids_path);
    dms_model_file *file = NULL;
    dms_session *session = NULL;
    dms_status status = DMS_OK;
    DMS_TRY(dms_model_file_open(&file, &(dms_model_file_options){.path = path,
                                                                 .device = dev,
                                                                 .compute = DMS_COMPUTE_F32,
                                                                 .positions = n > 0 ? n : 1,
                                                                 .without_gate = dense,
                                                                 .without_tokenizer = true}));
    DMS_TRY_OR(done, dms_session_open(&session, &(dms_session_options){.model = file->model,
                                                                       .context = n > 0 ? n : 1,
                                                                       .max_sequences = 1,
                                                                       .kv_dtype = DMS_F32}));
    DMS_TRY_OR(done, print_all(session, ids, n, file->model->config.vocab));
done:
    dms_session_close(session);
    dms_model_file_close(file);
    return status;
}

int main(int argc, char **argv)
{
    dms_device *dev = NULL;
    if (argc < 3) {
        fprintf(stderr, "print_logits: expected a model and a file of token ids\n");
        return 2;
    }
    dms_status status = dms_cpu_open(&dev, 1);
    if (!status)
        status = run(dev, argv[1], argv[2], argc > 3 && !strcmp(argv[3], "dense"));
    if (dev)
        dev->close(dev);
    if (status || fflush(stdout)) {
        fprintf(stderr, "print_logits: %s\n", dms_error_text());
        return 1;
    }
    return 0;
}
