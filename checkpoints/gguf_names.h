/* Names of tensors in GGUF files and in Hugging Face folders, family by family. */
#ifndef DMS_GGUF_NAMES_H
#define DMS_GGUF_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The Hugging Face name of a GGUF tensor, written to out[n]; names we do not know stay as they are.
 * Names: gguf-py's tensor_mapping.py (llama.cpp). */
void dms_gguf_to_hf(char *out, size_t n, const char *name, const char *family);
/* The other way; false for names that GGUF has not, and then out is "". GPT-2's names are known
 * with and without "transformer." in front. */
bool dms_gguf_from_hf(char *out, size_t n, const char *name, const char *family);

/* Whether a matrix of this Hugging Face name is kept [in, out] there and [out, in] in GGUF: GPT-2's
 * Conv1D weights. */
bool dms_gguf_is_transposed(const char *name, const char *family);

/* The Hugging Face name of `rest` in a layer's attention. */
void dms_gguf_layer_name(char *out, size_t n, const char *family, int64_t layer, const char *rest);

/* The Hugging Face name of a layer's query projection (GPT-2: of query, key and value together);
 * suffix "weight" or "bias". */
void dms_gguf_query_name(char *out, size_t n, const char *family, int64_t layer,
                         const char *suffix);

#endif
