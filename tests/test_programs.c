/* The programs as their users meet them: bad input gets one clear message, the right exit code, and
 * nothing half-written. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "data/shard.h"
#include "tests/files.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

enum { DONE = 0, FAILED = 1, USAGE = 2 };

static char folder[] = "/tmp/dms-programs-XXXXXX";

/* Runs `format` with a shell inside the folder, $BIN and $FIX set; returns the exit code and the
 * last 8 KB of standard error. */
static int run(char err[8192], const char *command)
{
    char line[4096], fixtures[1024];
    snprintf(line, sizeof(line), "cd %s && BIN=%s FIX=%s && { %s ; } >out 2>err", folder,
             DMS_BINARY_DIR, fixture(fixtures, "."), command);
    const int state = system(line);
    snprintf(line, sizeof(line), "%s/err", folder);
    FILE *in = fopen(line, "r");
    err[fread(err, 1, 8191, in)] = 0;
    fclose(in);
    cr_assert(WIFEXITED(state), "%s was killed", command);
    return WEXITSTATUS(state);
}

static void write_shard(const char *name, int n, int32_t vocab)
{
    char path[1024];
    int32_t ids[512];
    dms_shard_writer *w = NULL;
    for (int i = 0; i < n; i++)
        ids[i] = 3 + i % 300;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    must(dms_shard_writer_open(&w, path, vocab, 0));
    must(dms_shard_writer_append(w, ids, n));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
}

/* A folder with a good recipe and everything that the cases below break. */
static void set_up(void)
{
    char err[8192];
    cr_assert(mkdtemp(folder));
    write_shard("data.tok", 512, 320);
    write_shard("small.tok", 40, 320);
    write_shard("wide.tok", 512, 500);
    const char *make =
        "printf 'model: {path: %s}\\ndata: {train: data.tok, context: 32}\\n"
        "dms: {gate: neuron, window: 6}\\nschedule: {steps: 1, ramp_steps: 1}\\n"
        "run: {batch: 2, folder: run}\\n' $FIX/tiny/llama >good.yaml;"
        "for m in cut short odd family nan; do cp -r $FIX/tiny/llama $m; chmod -R u+w $m; done;"
        "truncate -s 100000 cut/model.safetensors; truncate -s 4 short/model.safetensors;"
        "printf '\\0\\0\\300\\177' | dd of=nan/model.safetensors bs=1 conv=notrunc "
        "seek=$(($(stat -c %s nan/model.safetensors) - 4)) 2>/dev/null;"
        "sed -i 's/\"head_dim\": 8/\"head_dim\": 7/' odd/config.json;"
        "sed -i 's/\"model_type\": \"llama\"/\"model_type\": \"mamba\"/' family/config.json;"
        "head -c 3000 $FIX/gguf/tiny-F32.gguf >cut.gguf; head -c 3000 /dev/urandom >noise.gguf;"
        "echo '{' >family.json; head -c 100 data.tok >cut.tok; cp data.tok bad.tok;"
        "printf 'optim:\\n  lrr: 1\\n' >unknown.yaml";
    cr_assert_eq(run(err, make), 0, "%s", err);
}

static void tear_down(void)
{
    char command[1200];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(programs, .init = set_up, .fini = tear_down);

typedef struct {
    const char *command;
    int code;
    const char *message; /* part of standard error */
} expectation;

static void expect(const expectation *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char err[8192];
        const int code = run(err, cases[i].command);
        cr_assert_eq(code, cases[i].code, "%s: exit code %d, expected %d: %s", cases[i].command,
                     code, cases[i].code, err);
        cr_assert(strstr(err, cases[i].message), "%s: said %s expected %s", cases[i].command, err,
                  cases[i].message);
        if (code == FAILED)
            cr_assert(strchr(err, '\n') == strrchr(err, '\n'), "more than one line: %s", err);
    }
}

Test(programs, dms_train_says_what_is_wrong)
{
    static const expectation cases[] = {
        {"$BIN/dms-train", USAGE, "Usage: dms-train"},
        {"$BIN/dms-train absent.yaml", USAGE, "config absent.yaml cannot be read"},
        {"$BIN/dms-train unknown.yaml", USAGE, "the nearest known key is optim.lr"},
        {"$BIN/dms-train good.yaml optim.lrr=1", USAGE, "unknown key optim.lrr"},
        {"$BIN/dms-train good.yaml dms.window=32", USAGE,
         "dms.window is 32, expected less than data.context"},
        {"$BIN/dms-train good.yaml data.train=small.tok", USAGE, "small.tok"},
        {"$BIN/dms-train good.yaml data.train=absent.tok", FAILED, "absent.tok"},
        {"$BIN/dms-train good.yaml data.train=cut.tok", FAILED, "cut.tok"},
        {"$BIN/dms-train good.yaml data.train=wide.tok", USAGE,
         "was tokenised for a vocabulary of 500"},
        {"$BIN/dms-train good.yaml model.path=absent", FAILED, "absent"},
        {"$BIN/dms-train good.yaml model.path=cut", FAILED, "cut/model.safetensors"},
        {"$BIN/dms-train good.yaml model.path=short", FAILED, "short/model.safetensors"},
        {"$BIN/dms-train good.yaml model.path=odd", FAILED, "head_dim"},
        {"$BIN/dms-train good.yaml model.path=family", FAILED, "mamba"},
        {"$BIN/dms-train good.yaml model.path=cut.gguf", FAILED, "cut.gguf"},
        {"$BIN/dms-train good.yaml model.path=noise.gguf", FAILED, "noise.gguf"},
        {"$BIN/dms-train good.yaml data.context=300 dms.window=6", USAGE, "positions"},
        {"$BIN/dms-train good.yaml device.kind=cuda", FAILED, "CUDA"},
        {"$BIN/dms-train good.yaml run.folder=good.yaml/x", FAILED, "good.yaml"},
    };
    expect(cases, COUNT(cases));
    char err[8192];
    cr_assert_eq(run(err, "test ! -e run/checkpoints || test -z \"$(ls run/checkpoints)\""), 0,
                 "a refused run left a checkpoint");
}

Test(programs, a_run_that_is_not_finite_updates_nothing)
{
    char err[8192];
    cr_assert_eq(run(err, "$BIN/dms-train good.yaml model.path=nan run.folder=nan-run"), FAILED,
                 "%s", err);
    cr_assert(strstr(err, "step 0: loss is") && strstr(err, "expected finite numbers"), "%s", err);
    cr_assert_eq(run(err, "test -z \"$(ls nan-run/checkpoints)\""), DONE, "it saved a checkpoint");
}

Test(programs, the_whole_way_works_on_a_tiny_model)
{
    static const expectation cases[] = {
        {"$BIN/dms-train good.yaml --check", DONE, ""},
        {"test ! -e run", DONE, ""},
        {"$BIN/dms-train good.yaml schedule.steps=2", DONE, ""},
        {"$BIN/dms-train good.yaml schedule.steps=2", DONE, ""},
        {"$BIN/dms-train good.yaml", USAGE, "has a checkpoint of step 2"},
        {"flock run/lock $BIN/dms-train good.yaml schedule.steps=2", FAILED,
         "another dms-train works in run"},
        {"$BIN/dms-train good.yaml run.folder=fade schedule.steps=2 schedule.fade_steps=1 "
         "run.save_every=1",
         DONE, ""},
        {"$BIN/dms-export fade/checkpoints/step-000001.h5 --to hf -o early", FAILED,
         "before the end of the fade"},
        {"cp good.yaml kept.yaml; $BIN/dms-tokenize $FIX/tiny/llama -o kept.yaml good.yaml", FAILED,
         "exists and is no token shard"},
        {"cmp good.yaml kept.yaml", DONE, ""},
        {"$BIN/dms-train good.yaml run.folder=h data.heldout=wide.tok", USAGE, "wide.tok"},
        {"$BIN/dms-inspect run/latest --verify", DONE, ""},
        {"$BIN/dms-export run/latest --to hf -o hf", DONE, ""},
        {"$BIN/dms-export run/latest --to hf -o hf", FAILED, "hf"},
        {"$BIN/dms-export run/latest --to hf -o hf --force", DONE, ""},
        {"$BIN/dms-export run/latest --to adapter -o adapter", FAILED, "has no adapter gate"},
        {"$BIN/dms-generate hf -p 'It is' -n 8 --temp 0", DONE, ""},
        {"$BIN/dms-generate run/latest -p 'It is' -n 8 --temp 0", DONE, ""},
        {"$BIN/dms-eval hf kld data.tok --teacher $FIX/tiny/llama --context 32 --sequences 4", DONE,
         ""},
        {"$BIN/dms-eval hf kld data.tok --context 32 --sequences 4", USAGE, "--teacher"},
        {"$BIN/dms-train good.yaml dms.gate=adapter optim.train=gate run.folder=a", DONE, ""},
        {"$BIN/dms-export a/latest --to adapter -o adapter", DONE, ""},
        {"$BIN/dms-train good.yaml optim.train=gate run.folder=rows", DONE, ""},
        {"$BIN/dms-generate rows/latest -p 'It is' -n 8 --temp 0", DONE, ""},
    };
    expect(cases, COUNT(cases));
}

Test(programs, other_programs_say_what_is_wrong)
{
    static const expectation cases[] = {
        {"$BIN/dms-export", USAGE, "Usage: dms-export"},
        {"$BIN/dms-export absent --to hf -o x", FAILED, "absent"},
        {"$BIN/dms-export $FIX/tiny/llama --to what -o x", USAGE, "what"},
        {"$BIN/dms-export cut.gguf --to hf -o x", FAILED, "cut.gguf"},
        {"$BIN/dms-export $FIX/tiny/llama --to hf --type q8_0 -o x", USAGE, "is for --to gguf"},
        {"$BIN/dms-export $FIX/tiny/llama --to hf -o ''", USAGE, "--output is empty"},
        {"mkdir app; echo '{}' >app/config.json; touch app/keys;"
         "$BIN/dms-export $FIX/tiny/llama --to hf -o app --force",
         FAILED, "app exists and is no plain model folder"},
        {"test -e app/keys", DONE, ""},
        {"ulimit -f 100; $BIN/dms-export $FIX/tiny/llama --to gguf --type f32 -o large.gguf",
         FAILED, "large.gguf"},
        {"$BIN/dms-export $FIX/tiny/llama --to gguf --type stored -o x", USAGE,
         "expects f32, f16, bf16 or q8_0"},
        {"$BIN/dms-export $FIX/tiny/llama --to gguf --type what -o x", USAGE,
         "or stored, and for gguf"},
        {"$BIN/dms-inspect absent", FAILED, "absent"},
        {"$BIN/dms-inspect noise.gguf", FAILED, "noise.gguf"},
        {"$BIN/dms-inspect", USAGE, ""},
        {"$BIN/dms-generate absent -p x", FAILED, "absent"},
        {"$BIN/dms-generate odd -p x", FAILED, "head_dim"},
        {"$BIN/dms-generate", USAGE, ""},
        {"$BIN/dms-eval absent kld data.tok", FAILED, "absent"},
        {"$BIN/dms-eval $FIX/tiny/llama ppl absent.txt --context 32", FAILED, "absent.txt"},
        {"$BIN/dms-eval", USAGE, ""},
    };
    expect(cases, COUNT(cases));
}

Test(programs, a_wrong_value_is_wrong_usage_and_its_option_is_named)
{
    static const expectation cases[] = {
        {"$BIN/dms-export good.yaml --to hf -o x --shard-size 5x", USAGE, "--shard-size is \"5x\""},
        {"$BIN/dms-export good.yaml --to hf -o x --shard-size 1e7GB", USAGE, "up to 1000TB"},
        {"$BIN/dms-export good.yaml --to hf -o x --shard-size nan", USAGE, "--shard-size"},
        {"$BIN/dms-export good.yaml --to gguf -o x --shard-size 5MB", USAGE,
         "--shard-size is for --to hf and nvidia-dms, not for gguf"},
        {"$BIN/dms-export good.yaml --to hf -o x --type f8", USAGE, "type is \"f8\""},
        {"$BIN/dms-export good.yaml --to hf -o x --compress", USAGE, "--compress is for"},
        {"$BIN/dms-export good.yaml --to hf -o x --dms-shift 2", USAGE, "--dms-shift is \"2\""},
        {"$BIN/dms-export good.yaml --too hf", USAGE, "option --too"},
        {"$BIN/dms-inspect --what", USAGE, "option --what"},
        {"$BIN/dms-tokenize --what", USAGE, "option --what"},
        {"$BIN/dms-tokenize -q x", USAGE, "option -q"},
        {"printf '\\314\\201\\314\\243%.0s' $(seq 1000) >marks.txt;"
         "$BIN/dms-tokenize $FIX/tokenizers/qwen2/tokenizer.json --count marks.txt",
         FAILED, "more than 1024 combining marks in a row"},
        {"printf '{\"text\": \"a\"}\\n{\"text\": 1}\\n' >bad.jsonl;"
         "$BIN/dms-tokenize $FIX/tiny/llama -o l.tok bad.jsonl",
         FAILED, "bad.jsonl, line 2: \"text\" is a number, expected a string"},
        {"printf '{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}' >chat.jsonl;"
         "$BIN/dms-tokenize $FIX/tiny/llama --count chat.jsonl",
         FAILED, "no chat template"},
        {"$BIN/dms-generate --what", USAGE, "option --what"},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --device x", USAGE, "device is \"x\""},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --dtype x", USAGE, "dtype is \"x\""},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --ctx 99999", USAGE, "--ctx is 99999"},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --ctx 0", USAGE, "--ctx is \"0\""},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --chunk 0", USAGE, "--chunk is \"0\""},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --threads 1025", USAGE, "--threads"},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --seed 9000000000000001", USAGE, "--seed"},
        {"$BIN/dms-generate $FIX/tiny/llama -p x -n 1 --seed 9000000000000000", DONE, ""},
        {"$BIN/dms-generate $FIX/tiny/llama -p x --samples 0", USAGE, "--samples is \"0\""},
        {"$BIN/dms-generate $FIX/tiny/llama --chat --samples 2", USAGE, "not for --chat"},
        {"$BIN/dms-eval --what", USAGE, "option --what"},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --device x", USAGE, "device is \"x\""},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --dtype x", USAGE, "dtype is \"x\""},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --context 9999", USAGE, "--context"},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --threads 1025", USAGE, "--threads"},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --seed -1", USAGE, "--seed"},
        {"$BIN/dms-bench --what", USAGE, "option --what"},
        {"$BIN/dms-bench $FIX/tiny/llama tokenize", USAGE, "expected --prose PATH or --code PATH"},
        {"$BIN/dms-bench $FIX/tiny/llama tokenize --prose absent", FAILED, "absent: No such file"},
        {"$BIN/dms-bench $FIX/tiny/llama gemm --device x", USAGE, "device is \"x\""},
        {"$BIN/dms-bench $FIX/tiny/llama gemm --dtype x", USAGE, "dtype is \"x\""},
        {"$BIN/dms-bench $FIX/tiny/llama train --context 9999", USAGE, "--context is 9999"},
        {"$BIN/dms-bench $FIX/tiny/llama decode --steps 9999", USAGE, "--steps"},
        {"$BIN/dms-bench $FIX/tiny/llama gemm --threads 1025", USAGE, "--threads"},
    };
    expect(cases, COUNT(cases));
}

/* The first chain is the answer that is drawn alone. */
Test(programs, dms_generate_prints_so_many_chains)
{
    static const expectation cases[] = {
        {"$BIN/dms-generate $FIX/tiny/llama -p 'It is' -n 9 --temp 1 --samples 3 >three; "
         "grep -c '^--- [123] of 3, [1-9] tokens$' three | grep -qx 3",
         DONE, "out at"},
        {"$BIN/dms-generate $FIX/tiny/llama -p 'It is' -n 9 --temp 1 >one; "
         "sed '1d; /^--- 2/,$d' three | cmp - one",
         DONE, ""},
        {"$BIN/dms-generate $FIX/tiny/llama -p 'It is' -n 9 --temp 1 --samples 3 --json >json; "
         "grep -c '\"new_tokens\": [1-9]' json | grep -qx 4",
         DONE, ""},
    };
    expect(cases, COUNT(cases));
}

/* A model's own limit is not one that an option can lift. */
Test(programs, a_full_context_is_told_from_the_models_own_end)
{
    static const expectation cases[] = {
        {"$BIN/dms-generate $GPT2 -p 'It is' -n 99 2>said; grep -q 'longest the model' said", DONE,
         ""},
        {"$BIN/dms-generate $GPT2 -p 'It is' -n 99 --ctx 16 2>said; grep -q 'ctx N makes' said",
         DONE, ""},
        {"for i in $(seq 30); do printf 'a truth universally '; done >long.txt;"
         "$BIN/dms-generate $GPT2 -f long.txt",
         FAILED, "has room for 64 (it is the longest the model has); use a shorter text"},
        {"$BIN/dms-generate $GPT2 -f long.txt --ctx 16", FAILED,
         "has room for 16 (--ctx N makes it longer); use a shorter text"},
    };
    setenv("GPT2", DMS_SOURCE_DIR "/tests/data/gpt2", 1);
    expect(cases, COUNT(cases));
}

Test(programs, an_adapter_alone_is_no_model)
{
    static const char said[] = "ad holds an adapter gate alone, without its base model; give";
    static const expectation cases[] = {
        {"$BIN/dms-train good.yaml dms.gate=adapter optim.train=gate run.folder=a &&"
         " $BIN/dms-export a/latest --to adapter -o ad",
         DONE, ""},
        {"$BIN/dms-generate ad -p x", FAILED, said},
        {"$BIN/dms-eval ad ppl data.tok --context 32", FAILED, said},
        {"$BIN/dms-train good.yaml model.path=ad run.folder=b", FAILED, said},
        {"$BIN/dms-export ad --to hf -o c", FAILED, said},
        {"$BIN/dms-export ad --to gguf -o c", FAILED, said},
        {"$BIN/dms-export ad --to adapter -o d && test ! -e c", DONE, ""},
    };
    expect(cases, COUNT(cases));
}

Test(programs, output_that_cannot_be_written_is_a_failure)
{
    static const char said[] = "standard output";
    static const expectation cases[] = {
        {"$BIN/dms-eval --help >/dev/full", FAILED, said},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --context 32 --sequences 1 2>/dev/null "
         ">/dev/full",
         FAILED, ""},
        {"$BIN/dms-eval $FIX/tiny/llama ppl data.tok --context 32 --sequences 1 --json "
         "2>/dev/null >/dev/full",
         FAILED, ""},
        {"$BIN/dms-bench --help >/dev/full", FAILED, said},
        {"$BIN/dms-generate $FIX/tiny/llama -p x -n 4 2>/dev/null >/dev/full", FAILED, ""},
        {"$BIN/dms-generate $FIX/tiny/llama -p x -n 4 --json >/dev/full", FAILED, said},
        {"$BIN/dms-inspect $FIX/tiny/llama >/dev/full", FAILED, said},
        {"$BIN/dms-inspect $FIX/tiny/llama --json >/dev/full", FAILED, said},
        {"$BIN/dms-export --help >/dev/full", FAILED, said},
        {"$BIN/dms-export $FIX/tiny/llama --to hf -o full >/dev/full", FAILED, said},
        {"$BIN/dms-tokenize --help >/dev/full", FAILED, said},
        {"$BIN/dms-tokenize $FIX/tiny/llama --text x >/dev/full", FAILED, said},
    };
    expect(cases, COUNT(cases));
}

/* The texts and weights of tiny/llama, with a key more. */
static void put_model(dms_checkpoint_writer *w)
{
    char path[1024];
    dms_source *s;
    must(dms_source_open(&s, fixture(path, "tiny/llama")));
    json_t *keys = json_deep_copy(dms_source_config(s));
    json_object_set_new(keys, "dms_\x1b[2J", json_integer(1));
    char *config = json_dumps(keys, 0);
    must(dms_checkpoint_put_text(w, "config", config, strlen(config)));
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        int64_t n;
        const dms_tensor_info *t = dms_source_info(s, i);
        float *x = read_f32(s, t->name, &n);
        must(dms_checkpoint_put_tensor(w, "weights", t->name, DMS_F32, t->rank, t->shape, x));
        free(x);
    }
    free(config);
    json_decref(keys);
    dms_source_close(s);
}

/* A model, /weights/w and /masters/w of `master` elements; names that would steer a terminal. */
static void write_checkpoint(const char *name, int64_t master)
{
    static const float values[64] = {1};
    char path[1024];
    dms_checkpoint_writer *w = NULL;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    must(dms_checkpoint_writer_open(&w, path));
    put_model(w);
    must(dms_checkpoint_put_tensor(w, "weights", "w", DMS_BF16, 2, (int64_t[]){2, 2}, values));
    must(dms_checkpoint_put_tensor(w, "masters", "w", DMS_F32, 1, &master, values));
    must(dms_checkpoint_put_tensor(w, "a\x1b[31m", "w", DMS_F32, 1, &master, values));
    must(dms_checkpoint_put_int(w, "b\x1b[31m", 1));
    must(dms_checkpoint_writer_commit(w));
}

Test(programs, a_master_of_another_size_than_its_weight_is_refused)
{
    static const expectation cases[] = {
        {"$BIN/dms-export right.h5 --to hf -o right --type f32", DONE, ""},
        {"$BIN/dms-export large.h5 --to hf -o large --type f32", FAILED, "masters"},
        {"test ! -e large", DONE, ""},
    };
    write_checkpoint("right.h5", 4);
    write_checkpoint("large.h5", 64);
    expect(cases, COUNT(cases));
}

Test(programs, names_in_a_file_do_not_steer_the_terminal)
{
    static const expectation cases[] = {
        {"$BIN/dms-inspect right.h5 >names", DONE, ""},
        {"grep -q 'a.u001B' names && grep -q 'b.u001B' names && grep -q 'dms_.u001B' names", DONE,
         ""},
        {"! grep -q \"$(printf '\\033')\" names", DONE, ""},
    };
    write_checkpoint("right.h5", 4);
    expect(cases, COUNT(cases));
}

/* Exports to one name take turns: each ends well, and the last one's file is there, whole. */
Test(programs, exports_to_one_name_at_once_do_not_disturb_each_other)
{
    static const expectation cases[] = {
        {"for k in hdf5 gguf hf; do for i in 1 2 3 4; do for t in bf16 f32; do"
         " $BIN/dms-export $FIX/tiny/llama --to $k --type $t -o both.$k --force || echo bad "
         ">>both.log &"
         " done; done; done; wait; test ! -e both.log",
         DONE, ""},
        {"for k in hdf5 gguf hf; do $BIN/dms-inspect both.$k --verify || exit 1; done", DONE, ""},
        {"ls | grep dms-", FAILED, ""}};
    expect(cases, COUNT(cases));
}
