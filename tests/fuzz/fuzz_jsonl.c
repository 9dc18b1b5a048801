/* JSON Lines that dms-tokenize reads: plain, or unpacked from gzip. */
#include "data/jsonl.h"
#include "tests/fuzz/fuzz.h"

void fuzz_jsonl(const uint8_t *data, size_t size)
{
    dms_jsonl *lines = NULL;
    bool found = true;
    size_t n;
    gzFile file = gzopen(fuzz_file(data, size), "rb");
    if (!file)
        return;
    if (!dms_jsonl_open(&lines, file, "fuzz"))
        while (found && !dms_jsonl_next(lines, &found)) {
            (void)dms_jsonl_text(lines, &n);
            (void)dms_jsonl_messages(lines, &n);
        }
    dms_jsonl_close(lines);
    gzclose_r(file);
}
