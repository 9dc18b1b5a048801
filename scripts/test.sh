#!/usr/bin/env bash
# Runs every test: installs what is missing, builds build/test (optimised, warnings are errors, the CUDA
# backend where there is a toolkit), build/sanitize (address and undefined-behaviour sanitizers) and
# build/off (DMS_CUDA=OFF; the programs and what tests them), and runs them; then fuzzes each reader for
# 15 seconds where there is clang (scripts/fuzz.sh). Fails on a failing test, a warning, a leak, a finding,
# or a test skipped without a reason; ends with a summary.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"
exec </dev/null

export OMP_NUM_THREADS=2
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
export LC_ALL=C.UTF-8 TERM=dumb
jobs=$(nproc)
failures=()

targets=all
build() { # folder, cmake options; builds $targets
    local log=$1.log
    say "building $1"
    # shellcheck disable=SC2086 # several targets
    if ! { cmake -S . -B "$@" -DDMS_WERROR=ON &&
        cmake --build "$1" -j "$jobs" --target $targets; } >"$log" 2>&1; then
        grep -A 12 -iE 'error|warning' "$log" | head -n 80 || true
        die "$1 does not build; see $log"
    fi
    if grep -E 'warning:|CMake Warning' "$log"; then
        failures+=("$1: warnings while building, see $log")
    fi
}

run() { # folder, ctest options
    local log=$1/Testing/Temporary/LastTest.log bad
    say "testing $1"
    rm -f "$log"
    ctest --test-dir "$@" -j "$jobs" --output-on-failure --no-tests=error ||
        failures+=("$1: ctest failed")
    # Under Criterion a leak is printed, but the exit status stays 0.
    bad=$(awk '/\[RUN \]/ { test = $NF }
        /ERROR: LeakSanitizer|runtime error:/ { print "    " test ": " $0 }' "$log")
    [ -z "$bad" ] || failures+=("$1: leaks or undefined behaviour, see $log"$'\n'"$bad")
    # Criterion says "Test was skipped" or "Test is disabled" when no reason was given.
    bad=$(grep -aE '\[SKIP\].*: *(Test was skipped|Test is disabled)?$' "$log" || true)
    [ -z "$bad" ] || failures+=("$1: tests skipped without a reason"$'\n'"$bad")
}

summary() { # folder
    local log=$1/Testing/Temporary/LastTest.log
    grep -a 'Synthesis: Tested:' "$log" | tr -cd '0-9\n ' | awk -v name="$1" -v \
        skipped="$(grep -ac '\[SKIP\]' "$log")" \
        '{ run += $1; passed += $2; failed += $3 + $4 } END { printf \
        "%s: %d tests run, %d passed, %d failed, %d skipped\n", name, run, passed, failed, skipped }'
    grep -a '\[SKIP\]' "$log" | sed 's/.*\[SKIP\]/   skipped/' | sort || true
}

scripts/packages.sh
if scripts/fetch.sh model; then
    export DMS_MODEL=$model
else
    say "going on without the model: tests that need it are skipped"
fi
mkdir -p build
build build/test -DCMAKE_BUILD_TYPE=Release
build build/sanitize -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g" \
    -DDMS_SANITIZE=address,undefined
targets="$(cd build/test && echo dms-*) test_status test_programs" build build/off -DCMAKE_BUILD_TYPE=Release \
    -DDMS_CUDA=OFF
run build/test
# In the other build the emulation goes forward. What drives kernels that have tests of their own,
# and the long test of forks, run emulated there alone (so also the count of all kernels): under the
# sanitizers they take minutes.
long='(policy_sessions|policies|run_tasks|jobs|chains|decode_score|task|cache|session|resume|paged_fork)\.cuda_emu'
CUDA_EMU_SCHED=rev run build/sanitize -E "^($long|kernels_executed)$"
run build/off -R '^(status|programs)$'
fuzzed=0 # 15 seconds a reader, one reader a core
scripts/fuzz.sh 15 || fuzzed=$?
[ $fuzzed = 0 ] || [ $fuzzed = 77 ] || failures+=("fuzzing: a reader failed, see above")

say "summary"
summary build/test
summary build/sanitize
summary build/off
grep -h 'CUDA backend left out' build/test.log || true
if [ ${#failures[@]} != 0 ]; then
    printf 'FAILED  %s\n' "${failures[@]}"
    exit 1
fi
say "all tests passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
