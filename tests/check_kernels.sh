#!/usr/bin/env bash
# Fails when a kernel of kernels/cuda was never run by the emulation: check_kernels.sh LOG...
# The logs are those of DMS_CUDA_EMU_LOG, a kernel's name a line.
set -u
[ $# -gt 0 ] || { echo "usage: $0 LOG..." >&2; exit 2; }
folder=$(dirname "$0")/../kernels/cuda

# What stands before the body or the semicolon; the last word before a bracket that is not a macro
# of CUDA's (__launch_bounds__) is the name.
kernels=$(cat "$folder"/*.cu "$folder"/*.cuh | sed 's|//.*||' | tr '\n' ' ' |
    sed 's|/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/||g' | grep -oE '__global__[^;{]*' |
    sed -E 's/__[a-z_]+__( *\([^()]*(\([^()]*\)[^()]*)*\))?//g' |
    sed -nE 's/^[^(]*[^A-Za-z0-9_(]([A-Za-z_][A-Za-z0-9_]*) *\(.*/\1/p' | sort -u)
[ -n "$kernels" ] || { echo "no kernel found in $folder"; exit 1; }

missing=$(comm -23 <(echo "$kernels") <(sort -u "$@"))
count=$(echo "$kernels" | wc -l)
if [ -n "$missing" ]; then
    echo "$(echo "$missing" | wc -l) of $count kernels were never run:"
    echo "$missing"
    exit 1
fi
echo "all $count kernels were run"
