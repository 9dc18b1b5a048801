/* dms-inspect of files whose names are no text. */
#include "tests/inspect.h"

/* File names are bytes: those that are no UTF-8 are shown as such, and the view is JSON all the
 * same.
 */
Test(inspect_paths, shows_a_path_that_is_no_utf8)
{
    static const char shown[] = "m\xef\xbf\xbd\xef\xbf\xbdx\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd";
    inspection i = inspection_open();
    cr_assert_eq(shell(&i,
                       "p=$(printf 'm\\377\\303x\\303\\251\\342\\202'); cp -r $FIX/tiny/llama $p;"
                       "cp $FIX/gguf/tiny-F32.gguf $p.gguf; ln -s $p.gguf g"),
                 0);
    expect_text(inspect(&i, DONE, "m*x*[!f]"), "path", shown);
    expect_text(inspect(&i, DONE, "--verify m*x*.gguf"), "format", "gguf");
    expect_text(inspect(&i, FAILED, "diff m*x*[!f] g"), "a.path", shown);
    cr_assert_eq(shell(&i, "$BIN/dms-inspect m*x*[!f]"), DONE);
    cr_assert(strstr(i.out, "m\\uFFFD\\uFFFDx\\u00E9\\uFFFD\\uFFFD\n") == i.out, "%s", i.out);
    inspection_close(&i);
}
