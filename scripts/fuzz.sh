#!/usr/bin/env bash
# Fuzzes every reader: builds build/fuzz with clang (libFuzzer, address and undefined-behaviour
# sanitizers), makes the first inputs from our own writers and the fixtures, and runs each target.
#   scripts/fuzz.sh [SECONDS] [TARGET ...]              SECONDS each, 60 by default
#   scripts/fuzz.sh --runs INPUTS [TARGET ...]          INPUTS each: 10000000 is the long run
# Inputs that reached something new are kept in cache/fuzz/corpus, what was found in
# cache/fuzz/findings. A target stops at a crash, a leak, an allocation that the input's size does not
# justify or a second of processor time (tests/fuzz/fuzz.h). To keep a finding as a regression, fix it
# and copy its file to tests/fuzz/regressions/TARGET/. JOBS targets run at once, one a core by default.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

limit=-max_total_time=60
case ${1:-} in
--runs) limit=-runs=${2:?how many inputs?} && shift 2 ;;
[0-9]*) limit=-max_total_time=$1 && shift ;;
esac
# A clang without its runtime library links nothing.
target='int LLVMFuzzerTestOneInput(const char *data, unsigned long n) { return data && n == 42; }'
for name in clang-14 clang; do
    if echo "$target" | "$name" -x c - -fsanitize=fuzzer,address -o /dev/null 2>/dev/null; then
        compiler=$name
        break
    fi
done
if [ -z "${compiler:-}" ]; then
    say "[SKIP] fuzzing: no clang with libFuzzer here; apt-get install clang-14 libclang-rt-14-dev"
    exit 77
fi

mkdir -p build
say "building build/fuzz"
cmake -S . -B build/fuzz -DDMS_FUZZ=ON -DDMS_WERROR=ON -DCMAKE_C_COMPILER="$compiler" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS_RELEASE="-O1 -g" >build/fuzz.log 2>&1 &&
    cmake --build build/fuzz -j "${JOBS:-$(nproc)}" >>build/fuzz.log 2>&1 ||
    { grep -A 12 -E 'error' build/fuzz.log | head -n 60; die "build/fuzz does not build; see build/fuzz.log"; }

here=$cache/fuzz
mkdir -p "$here/seeds" "$here/corpus" "$here/findings" "$here/logs"
build/fuzz/tests/fuzz/fuzz_seeds "$here/seeds"

export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# The words a reader knows, from its source, as a dictionary of libFuzzer.
words() { # source ...
    printf '"%s"\n' '\": ' '[]' '{}' '1e400' '-1' '9223372036854775807' '\\u0000'
    grep -ohE '"[A-Za-z_][A-Za-z0-9_.-]{1,40}"' "$@" | sort -u
}

run_target() { # target
    local name=$1 log=$here/logs/$1.log bytes=16384 options=() folders=("$here/seeds/$1") sources=
    case $name in
    hdf5 | gguf | split | tokenizer) bytes=65536 ;;
    config | index | recipe | shard | npy) bytes=8192 ;;
    esac
    case $name in
    config) sources='model/*.c' ;;
    tokenizer | jsonl) sources='data/*.c' ;;
    npy) sources='data/shard*.c' ;;
    recipe) sources='train/recipe*.c' ;;
    gguf | split) sources='checkpoints/gguf*.c' ;;
    index) sources='checkpoints/huggingface*.c' ;;
    safetensors) sources='checkpoints/safetensors*.c' ;;
    esac
    # shellcheck disable=SC2086 # a pattern
    [ -z "$sources" ] || words $sources >"$here/$name.dict"
    mkdir -p "$here/corpus/$name"
    [ ! -d "tests/fuzz/regressions/$name" ] || folders+=("tests/fuzz/regressions/$name")
    [ -z "$sources" ] || options+=("-dict=$here/$name.dict")
    # -timeout is of wall time, for what never ends; on a busy machine a second of it means nothing.
    "build/fuzz/tests/fuzz/fuzz_$name" "$limit" -max_len=$bytes -timeout=20 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="$here/findings/$name-" "${options[@]}" \
        "$here/corpus/$name" "${folders[@]}" >"$log" 2>&1 </dev/null
}

if [ $# = 0 ]; then
    set -- $(cd tests/fuzz && ls fuzz_*.c | sed -n 's/^fuzz_\(.*\)\.c$/\1/p' | grep -vxE 'main|seeds')
fi
say "fuzzing $* ($limit)"
pids=()
for name; do
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-$(nproc)}" ]; do wait -n || true; done
    run_target "$name" &
    pids+=($!)
done
failures=()
i=0
for name; do
    wait "${pids[i]}" || failures+=("$name")
    i=$((i + 1))
    awk -v name="$name" '/stat::number_of_executed_units/ { n = $2 } / cov: / { cov = $4 }
        END { printf "%-12s %12d inputs, %6d branches reached\n", name, n, cov }' \
        "$here/logs/$name.log" | tee -a "$here/executions.txt"
done
for name in "${failures[@]}"; do
    grep -aE 'ERROR|SUMMARY|runtime error|^fuzz:|Test unit written' "$here/logs/$name.log" | head -n 5
    echo "FAILED  $name: see $here/logs/$name.log"
done
[ ${#failures[@]} = 0 ]
