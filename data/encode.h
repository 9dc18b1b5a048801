/* Documents to token ids, part by part: memory does not grow with a document that can be cut. */
#ifndef DMS_ENCODE_H
#define DMS_ENCODE_H

#include "data/corpus.h"
#include "data/tokenizer.h"

DMS_BEGIN_C

/* Appends the ids of a conversation in the model's turn format. */
typedef struct {
    dms_status (*render)(void *context, dms_tokens *out, const dms_message *messages, size_t n);
    void *context;
} dms_turn_format;

/* Zero all but the first three fields at the start; end it with dms_encoder_free. */
typedef struct {
    dms_tokenizer *tokenizer;     /* borrowed */
    bool specials;                /* as in dms_tokenizer_encode */
    const dms_turn_format *turns; /* of conversations, borrowed; NULL: they are refused */
    dms_text text;                /* owned: what is read and not yet taken */
    dms_tokens ids;               /* owned: of one part */
} dms_encoder;

/* Takes the next n ids of a document; *stop = true: no more are wanted. */
typedef struct {
    dms_status (*put)(void *context, const int32_t *ids, int64_t n, bool *stop);
    void *context;
} dms_id_sink;

/* The rest of the corpus's current document `name`; the ids are those of the whole text at once.
 * Time is linear in the document. Errors: those of dms_corpus_read, dms_tokenizer_encode, the turn
 * format and the sink; DMS_ERR_ARG for a conversation without a turn format. */
dms_status dms_encoder_run(dms_encoder *e, dms_corpus *corpus, const char *name,
                           const dms_id_sink *sink);
void dms_encoder_free(dms_encoder *e);

DMS_END_C
#endif
