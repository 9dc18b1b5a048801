/* Text that dms-tokenize reads: plain, or unpacked from gzip. */
#include "data/corpus.h"
#include "tests/fuzz/fuzz.h"

void fuzz_corpus(const uint8_t *data, size_t size)
{
    static char piece[4096];
    dms_corpus *c;
    const char *name = NULL;
    size_t n = 0;
    if (dms_corpus_open(&c, fuzz_file(data, size)))
        return;
    /* gzip can make a thousand times as much text: a prefix is enough. */
    for (int i = 0; i < 256 && !dms_corpus_next(c, &name) && name; i++)
        for (int k = 0; k < 64 && !dms_corpus_read(c, piece, sizeof(piece), &n) && n; k++)
            ;
    dms_corpus_close(c);
}
