/* dms-export as its users meet it: what it refuses, what it replaces, what it says. */
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/files.h"
#include "tests/fixtures.h"

enum { DONE = 0, FAILED = 1 };

static scratch dir;

static void set_up(void)
{
    dir = scratch_open();
}

static void tear_down(void)
{
    scratch_close(&dir);
}

TestSuite(export, .init = set_up, .fini = tear_down);

/* Runs a command in the folder, $BIN and $FIX set: its exit code must be `code`, and its standard
 * error hold `said`, or be empty where that is. */
static void expect(const char *command, int code, const char *said)
{
    size_t n;
    char line[4096], fixtures[1024];
    snprintf(line, sizeof(line), "cd %s && BIN=%s FIX=%s && { %s ; } >out 2>err", dir.folder,
             DMS_BINARY_DIR, fixture(fixtures, "tiny"), command);
    const int state = system(line);
    char *err = read_bytes(scratch_path(&dir, "err"), &n);
    cr_assert(WIFEXITED(state) && WEXITSTATUS(state) == code, "%s: exit code %d, expected %d: %s",
              command, WEXITSTATUS(state), code, err);
    cr_assert(*said ? strstr(err, said) != NULL : !*err, "%s: said %s expected %s", command, err,
              said);
    free(err);
}

/* A copy m of a fixture, changed by shell commands. */
static void make_model(const char *family, const char *edit)
{
    char command[1024];
    snprintf(command, sizeof(command), "rm -rf m; cp -r $FIX/%s m; chmod -R u+w m; %s", family,
             edit);
    expect(command, DONE, "");
}

#define ADD(keys) "sed -i '1s/{/{" keys ",/' m/config.json"
#define CHANGE(key, value) "sed -i 's/\"" key "\": [^,]*,/\"" key "\": " value ",/' m/config.json"

/* Whatever the format: the same message, and no file. */
Test(export, what_dms_generate_refuses_is_refused_with_the_same_words)
{
    static const struct {
        const char *family, *edit, *said;
    } cases[] = {
        {"llama", ADD("\"partial_rotary_factor\": 0.5"), "partial_rotary_factor is 0.5"},
        {"llama", ADD("\"layer_types\": [\"sliding_attention\"]"), "layer_types"},
        {"llama", ADD("\"attention_multiplier\": 0.1"), "attention_multiplier"},
        {"llama", ADD("\"mlp_bias\": true"), "mlp_bias"},
        {"llama", ADD("\"num_experts\": 8"), "num_experts"},
        {"llama", ADD("\"quantization_config\": {\"bits\": 4}"), "quantization_config"},
        {"qwen2", ADD("\"use_sliding_window\": true"), "use_sliding_window"},
        {"llama", ADD("\"rope_scaling\": {\"rope_type\": \"yarn\", \"beta_fast\": 16}"),
         "beta_fast is 16"},
        {"llama", ADD("\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}"), "rope_type"},
        {"llama", CHANGE("tie_word_embeddings", "false"), "no tensor lm_head.weight"},
        {"llama", CHANGE("num_hidden_layers", "3"), "no tensor model.layers.2."},
        {"llama", CHANGE("intermediate_size", "96"), "expected [96, 72] from the config"},
        {"llama", "sed -i 's/\"model.norm.weight\"/\"model.morn.weight\"/' m/model.safetensors",
         "no tensor model.norm.weight"},
        {"qwen2", CHANGE("model_type", "\"llama\"") "; " CHANGE("attention_bias", "false"),
         "self_attn.q_proj.bias, expected no such bias"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        make_model(cases[i].family, cases[i].edit);
        expect("$BIN/dms-generate m -p x 2>g; cat g >&2; test $(wc -l <g) = 1", DONE,
               cases[i].said);
        for (int k = 0; k < 4; k++) {
            static const char *const to[] = {"hf", "nvidia-dms", "hdf5", "gguf"};
            char command[256];
            snprintf(command, sizeof(command),
                     "$BIN/dms-export m --to %s -o x 2>e; r=$?; cat e >&2; exit $r", to[k]);
            expect(command, FAILED, cases[i].said);
            expect("sed 's/^dms-export/dms-generate/' e | cmp - g && test ! -e x", DONE, "");
        }
    }
}

Test(export, replaces_files_alone_and_keeps_their_permissions)
{
    static const char *const kinds[] = {"hdf5", "gguf"};
    expect("mkfifo pipe; mkdir run folder; touch run/step; ln -s step run/latest;"
           "ln -s nowhere lost; touch file; chmod 604 file; ln -s file link",
           DONE, "");
    for (int k = 0; k < 2; k++) {
        static const struct {
            const char *name, *said;
        } refused[] = {{"pipe", "pipe is a named pipe, expected a regular file"},
                       {"/dev/null", "/dev/null is a device, expected a regular file"},
                       {"folder", "folder is a folder, expected a regular file"},
                       {"lost", "lost is a link that leads nowhere"},
                       {"run/latest", "a training run finds its newest checkpoint; choose"}};
        char command[256];
        for (size_t i = 0; i < COUNT(refused); i++) {
            snprintf(command, sizeof(command), "$BIN/dms-export $FIX/llama --to %s -o %s --force",
                     kinds[k], refused[i].name);
            expect(command, FAILED, refused[i].said);
        }
        snprintf(command, sizeof(command),
                 "for o in file link; do $BIN/dms-export $FIX/llama --to %s -o $o --force || exit; "
                 "test $(stat -c %%a $o) = 604 && test -s $o || exit; done; ln -sf file link",
                 kinds[k]);
        expect(command, DONE, "");
    }
    expect("$BIN/dms-export $FIX/llama --to hf -o run/latest --force", FAILED,
           "a training run finds its newest checkpoint; choose");
    expect("$BIN/dms-export $FIX/llama --to hf -o pipe --force", FAILED, "pipe exists and is no");
    expect("test -p pipe && test -c /dev/null && test $(readlink run/latest) = step &&"
           " test -L lost && test ! -s run/step",
           DONE, "");
}

Test(export, in_place_keeps_a_tokenizer_and_another_model_removes_it_and_says_so)
{
    make_model("llama", "printf 'a\\0b' >m/tokenizer.model; echo '{}' >m/vocab.json; cp"
                        " m/tokenizer.model sp; echo mine >m/adapter_model.safetensors;"
                        " chmod 600 m/config.json; rm m/[ds]*.safetensors");
    expect("$BIN/dms-export m --to hf -o m --force", DONE, "");
    expect("cmp m/tokenizer.model sp && test $(stat -c %a m/config.json) = 600", DONE, "");
    expect("$BIN/dms-export $FIX/qwen3 --to hf -o m --force", DONE, "tokenizer.model");
    expect("grep mine m/*.safetensors >&2", DONE, "mine");
    expect("ls m | grep -e tokenizer.model -e vocab.json", FAILED, "");
}

Test(export, says_what_it_leaves_out_and_what_is_no_number)
{
    make_model("llama", "printf '\\0\\0\\300\\177' | dd of=m/model.safetensors bs=1 conv=notrunc "
                        "seek=$(($(stat -c %s m/model.safetensors) - 4)) 2>/dev/null; " CHANGE(
                            "eos_token_id", "[2, 3, 4, 5]"));
    for (int k = 0; k < 3; k++) {
        static const char *const to[] = {"hf", "hdf5", "gguf"};
        char command[256];
        snprintf(command, sizeof(command), "$BIN/dms-export m --to %s -o x.%s", to[k], to[k]);
        expect(command, DONE, "1 of the weights' numbers are NaN or infinite, the first in tensor");
    }
    expect("$BIN/dms-export m --to gguf -o y", DONE, "end-of-text token 5 is left out");
    expect("$BIN/dms-export $FIX/llama --to gguf -o z", DONE, "");
}

Test(export, a_text_with_a_zero_in_it_is_refused_by_name)
{
    static const char *const names[] = {"generation_config.json", "vocab.json", "merges.txt",
                                        "chat_template.jinja"};
    for (size_t i = 0; i < COUNT(names); i++) {
        char edit[128], said[64];
        snprintf(edit, sizeof(edit), "printf '{}\\0 ' >m/%s", names[i]);
        snprintf(said, sizeof(said), "%s has a 0 at byte 2 of 4",
                 i < 3 ? names[i] : "chat_template");
        make_model("llama", edit);
        expect("$BIN/dms-export m --to hf -o x", FAILED, said);
    }
    make_model("llama", "echo '{\"chat_template\": \"a\\u0000b\"}' >m/tokenizer_config.json");
    expect("$BIN/dms-export m --to hf -o x", FAILED, "chat_template has a 0 at byte 1 of 3");
}
