#!/usr/bin/env bash
# Checks and measures everything on a machine with an NVIDIA GPU and the CUDA toolkit, and writes one
# JSON file: gpu_check.sh [-o FILE] [-b FOLDER] [--device cuda|cuda_emu] [MODEL]
#   MODEL       for dms-bench; else the cached SmolLM2, else no benchmark. Only a retrofitted model
#               shows the freed cache
#   -o FILE     the results (FOLDER/gpu_check.json)
#   -b FOLDER   where it builds and keeps logs (build/gpu); what is built there is not built again
#   --device cuda_emu   a dry run without a GPU: a few tests and a tiny model on the emulation, to see
#               that this script works. Its figures say nothing about any GPU
# Steps: build, tests (ctest label cuda), compute-sanitizer on the op tests, dms-bench. No network once
# the packages are there. Exit 1 if a step fails; the file is written all the same.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
exec </dev/null
export LC_ALL=C.UTF-8 TERM=dumb

device=cuda
build=build/gpu
out=
given=
while [ $# -gt 0 ]; do
    case $1 in
    -o | -b | --device)
        [ $# -gt 1 ] || die "option $1 needs a value"
        case $1 in -o) out=$2 ;; -b) build=$2 ;; *) device=$2 ;; esac
        shift 2
        ;;
    -*) die "usage: gpu_check.sh [-o FILE] [-b FOLDER] [--device cuda|cuda_emu] [MODEL]" ;;
    *)
        [ -z "$given" ] || die "expected at most one model, found $given and $1"
        given=$1
        shift
        ;;
    esac
done
out=${out:-$build/gpu_check.json}
case $device in cuda | cuda_emu) ;; *) die "the device is \"$device\", expected cuda or cuda_emu" ;; esac
[ -z "$given" ] || [ -e "$given" ] || die "there is no model $given"

sanitized="attention attention_bwd pointwise norm linear loss cache"
tools="memcheck racecheck synccheck"
sanitizer_limit=${DMS_SANITIZER_LIMIT:-300} # seconds for one binary under one tool
bench_limit=${DMS_BENCH_LIMIT:-3600}
failures=()

# ---- JSON ----------------------------------------------------------------------------------------

quote() { # text: as a JSON string
    printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\010\013-\037' | tr '\t\n' '  ' |
        sed 's/\\/\\\\/g; s/"/\\"/g')"
}

join() { # lines from standard input, with commas between them
    sed '/^$/d' | sed '$!s/$/,/; s/^/    /'
}

# ---- the machine ---------------------------------------------------------------------------------

gpu_field() { # nvidia-smi's name of it: of the first GPU
    nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1 || true
}

find_gpu() {
    gpu=$device driver= capability= memory=
    if [ "$device" = cuda ]; then
        command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -c '^GPU ' >/dev/null ||
            die "no GPU: nvidia-smi finds none on this machine; nothing was run or written." \
                "A dry run without one: gpu_check.sh --device cuda_emu"
        gpu=$(gpu_field name) driver=$(gpu_field driver_version)
        capability=$(gpu_field compute_cap) memory=$(gpu_field memory.total)
    fi
    cuda=${CUDA_HOME:-/usr/local/cuda}
    [ -x "$cuda/bin/nvcc" ] ||
        cuda=$(dirname "$(dirname "$(command -v nvcc || echo /none/none/nvcc)")")
    [ -x "$cuda/bin/nvcc" ] || die "no CUDA toolkit: nvcc is missing; set CUDA_HOME"
    toolkit=$("$cuda/bin/nvcc" --version | sed -n 's/.*release .*, V//p')
    commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    changed=false
    [ -z "$(git status --porcelain 2>/dev/null)" ] || changed=true
}

configure() {
    cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DDMS_CUDA=ON -DDMS_WERROR=OFF \
        -DDMS_TESTS=ON -DDMS_CUDA_ARCHS="$1"
}

build_all() {
    local archs=${capability//./} log=$build/build.log
    mkdir -p "$build/check"
    say "building $build"
    if ! configure "${archs:-90}" >"$log" 2>&1; then # only then packages can be missing
        scripts/packages.sh
        configure "${archs:-90}" >"$log" 2>&1 || die "cmake failed: $(tail -n 3 "$log"); see $log"
    fi
    cmake --build "$build" -j "$(nproc)" >>"$log" 2>&1 ||
        die "$build does not build: $(grep -m 3 -iE 'error' "$log" || true); see $log"
}

# ---- tests ---------------------------------------------------------------------------------------

# One JSON object a test binary: ctest's word for it, Criterion's counts of its cases.
test_lines() { # ctest's output, LastTest.log
    sed 's/\x1b\[[0-9;]*[a-zA-Z]//g' "$2" | awk '
        FNR == NR {
            if (match($0, /^[0-9]+\/[0-9]+ Testing: /)) name = $3
            if (/\[SKIP\]/) skipped[name]++
            if (/Synthesis: Tested:/) {
                sub(/.*Synthesis:/, ""); gsub(/[^0-9 ]/, ""); split($0, n, / +/)
                first = n[1] == "" ? 2 : 1
                cases[name] = n[first]; passed[name] = n[first + 1]
                failed[name] = n[first + 2] + n[first + 3]
            }
            next
        }
        match($0, /Test +#[0-9]+: /) {
            rest = substr($0, RSTART + RLENGTH); split(rest, word, " "); name = word[1]
            result = rest ~ /Passed/ ? "passed" : rest ~ /Skipped/ ? "skipped" : "failed"
            seconds = match(rest, /[0-9.]+ sec/) ? substr(rest, RSTART) + 0 : 0
            printf "{\"name\": \"%s\", \"result\": \"%s\", \"seconds\": %s, \"cases\": %d, " \
                "\"passed\": %d, \"failed\": %d, \"skipped\": %d}\n", name, result, seconds, \
                cases[name], passed[name], failed[name], skipped[name]
        }' - "$1"
}

run_tests() {
    local only=() log=$build/check/ctest.log
    [ "$device" = cuda ] || only=(-R '^(pointwise|adamw|linear)[.]')
    say "testing on $device"
    ctest --test-dir "$build" -L "^$device\$" "${only[@]}" --no-tests=error >"$log" 2>&1 ||
        failures+=("ctest failed, see $log")
    test_lines "$log" "$build/Testing/Temporary/LastTest.log" >"$build/check/tests"
    grep -o '"name": "[^"]*", "result": "[^"]*"' "$build/check/tests" | sed 's/"//g; s/^/   /'
    ! grep -q '"result": "skipped"' "$build/check/tests" || # there is a GPU: why did it not open?
        failures+=("tests were skipped, see $build/Testing/Temporary/LastTest.log")
    [ -s "$build/check/tests" ] || failures+=("no tests were run, see $log")
}

# ---- compute-sanitizer ---------------------------------------------------------------------------

sanitize_one() { # tool, test
    local log=$build/check/$1-$2.log rc=0 result=clean errors
    DMS_TEST_DEVICE=cuda timeout "$sanitizer_limit" "$sanitizer" --tool "$1" --target-processes all \
        "$build/tests/test_$2" -j1 --verbose >"$log" 2>&1 || rc=$?
    # memcheck and synccheck: "ERROR SUMMARY: 1 error"; racecheck: "... displayed (1 error, ...".
    errors=$(awk '/SUMMARY:/ { sub(/.*SUMMARY:[^(]*\(/, ""); sub(/.*SUMMARY: */, ""); n += $1 + 0 }
        END { print n + 0 }' "$log")
    if [ "$errors" != 0 ]; then
        result=errors
    elif [ $rc = 124 ]; then
        result=timeout # clean as far as it came
    elif [ $rc != 0 ] || ! grep -q 'SUMMARY:' "$log"; then
        result=failed
    fi
    case $result in errors | failed) failures+=("$1 on test_$2: $result, see $log") ;; esac
    printf '   %s %s: %s\n' "$1" "$2" "$result"
    printf '{"tool": "%s", "test": "%s", "result": "%s", "errors": %d, "limit_s": %d}\n' \
        "$1" "$2" "$result" "$errors" "$sanitizer_limit" >>"$build/check/sanitizer"
}

run_sanitizer() {
    local tool name
    : >"$build/check/sanitizer"
    sanitizer_skipped=
    sanitizer=$cuda/bin/compute-sanitizer
    [ -x "$sanitizer" ] || sanitizer=$(command -v compute-sanitizer) || sanitizer=
    [ -n "$sanitizer" ] || sanitizer_skipped="compute-sanitizer is not installed"
    [ "$device" = cuda ] || sanitizer_skipped="a dry run has no GPU to check"
    if [ -n "$sanitizer_skipped" ]; then
        say "compute-sanitizer: skipped, $sanitizer_skipped"
        return
    fi
    say "compute-sanitizer: at most $sanitizer_limit s for each test and tool"
    for tool in $tools; do
        for name in $sanitized; do
            sanitize_one "$tool" "$name"
        done
    done
}

# ---- dms-bench -----------------------------------------------------------------------------------

bench_one() { # what, options
    local what=$1 log=$build/check/bench-$1.log rc=0 result=done
    shift
    timeout "$bench_limit" "$build/dms-bench" "$bench_model" "$what" --device "$device" --json "$@" \
        >"$log" 2>"$log.err" || rc=$?
    [ $rc = 0 ] || result=$([ $rc = 124 ] && echo timeout || echo failed)
    [ $rc = 0 ] || failures+=("dms-bench $what: $result, $(head -n 1 "$log.err")")
    printf '   %s: %s, %d lines\n' "$what" "$result" "$(grep -c '^{' "$log")"
    # A line that a timeout cut off is left out.
    { printf '{"what": "%s", "result": "%s", "error": ' "$what" "$result"
        quote "$(head -n 1 "$log.err")"
        printf ', "lines": [%s]}\n' "$(grep '^{.*}$' "$log" | paste -sd, || true)"
    } >>"$build/check/bench"
}

run_bench() {
    : >"$build/check/bench"
    bench_skipped=
    bench_model=$given
    if [ "$device" != cuda ]; then
        bench_model=${given:-tests/fixtures/tiny/llama}
    elif [ -z "$given" ] && [ -e "$model" ]; then
        bench_model=$model
    fi
    if [ -z "$bench_model" ]; then
        bench_skipped="no model was given, and there is no $(basename "$model") in the cache"
        say "dms-bench: skipped, $bench_skipped"
        return
    fi
    say "dms-bench on $(basename "$bench_model")"
    if [ "$device" != cuda ]; then
        bench_one sweep --batches 1,2 --prompts 8,16 --steps 3 --repetitions 1
        return
    fi
    for what in gemm prefill train sweep; do
        bench_one "$what"
    done
}

# ---- all of it -----------------------------------------------------------------------------------

write() {
    local part=$out.part
    { printf '{\n  "date": "%s",\n  "device": "%s",\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$device"
        printf '  "gpu": %s,\n  "memory": %s,\n' "$(quote "$gpu")" "$(quote "$memory")"
        printf '  "driver": %s,\n' "$(quote "$driver")"
        printf '  "compute_capability": %s,\n' "$(quote "$capability")"
        printf '  "toolkit": %s,\n' "$(quote "$toolkit")"
        printf '  "commit": %s,\n  "changed": %s,\n' "$(quote "$commit")" "$changed"
        printf '  "tests": [\n%s\n  ],\n' "$(join <"$build/check/tests")"
        printf '  "sanitizer_skipped": %s,\n' "$(quote "$sanitizer_skipped")"
        printf '  "sanitizer": [\n%s\n  ],\n' "$(join <"$build/check/sanitizer")"
        printf '  "bench_skipped": %s,\n' "$(quote "$bench_skipped")"
        printf '  "bench_model": %s,\n' "$(quote "$(basename "$bench_model")")"
        printf '  "bench": [\n%s\n  ],\n' "$(join <"$build/check/bench")"
        printf '  "failures": [\n%s\n  ]\n}\n' "$(for failure in "${failures[@]}"; do
            quote "$failure"
            echo
        done | join)"
    } >"$part"
    if command -v python3 >/dev/null; then
        python3 -m json.tool "$part" >/dev/null || die "$part is no JSON: a fault of this script"
    fi
    mv -f "$part" "$out"
}

find_gpu
build_all
run_tests
run_sanitizer
run_bench
write
say "results: $out; logs: $build/check"
if [ ${#failures[@]} != 0 ]; then
    printf 'FAILED  %s\n' "${failures[@]}"
    exit 1
fi
say "all of it passed on $gpu in $((SECONDS / 60)) min $((SECONDS % 60)) s"
