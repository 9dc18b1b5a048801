/* A source as the network sees it: named tensors, no format. */
#ifndef DMS_SOURCE_READER_H
#define DMS_SOURCE_READER_H

#include "checkpoints/source.h"
#include "kernels/reader.h"

/* Borrows s. */
dms_reader dms_source_reader(const dms_source *s);

#endif
