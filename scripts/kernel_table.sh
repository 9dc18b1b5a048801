#!/usr/bin/env bash
# What every CUDA kernel needs and how many of its blocks a multiprocessor holds, as a markdown table
# on standard output: kernel_table.sh [-h] [-d FILE] [ARCH]
#   ARCH      80, 90 (the default), 100 or 120
#   -h        the hot kernels only, in the forms that a bf16 model runs
#   -d FILE   puts the table between FILE's lines <!-- kernel_table --> and <!-- end --> instead
# Needs nvcc (CUDA_HOME, PATH or /usr/local/cuda), no GPU. Exit 1 if a kernel spills a register.
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

# The forms of hot kernels that training and decoding of a bf16 model launch: regular expression.
hot='^(attention_kernel<(64|128), |keys_kernel<(64|128)>|queries_kernel<(64|128)>|delta_kernel<bf16>'
hot+='|decode_kernel<bf16, |merge_kernel$|chunk_mma_kernel<|distill_kernel<bf16>|score_kernel$'
hot+='|rms_norm_kernel<4, |rms_norm_bwd_kernel<4, |rope_kernel<4, |rope_bwd_kernel<4, |round_kernel<4>'
hot+='|swiglu_kernel<4>|swiglu_bwd_kernel<4>|adamw_kernel<4>|square_kernel<4>|gemv_kernel<(bf16|float), bf16, .*, 8>)'

wanted=. into=
while getopts hd: option; do
    case $option in
    h) wanted=$hot ;;
    d) into=$OPTARG ;;
    *) die "usage: kernel_table.sh [-h] [-d FILE] [ARCH]" ;;
    esac
done
shift $((OPTIND - 1))
arch=${1:-90}

# Of a multiprocessor: threads, blocks, bytes of shared memory; and the most of the last a block may
# take (CUDA programming guide, "Technical Specifications per Compute Capability").
case $arch in
80) limits="2048 32 167936 166912" ;;
90 | 100) limits="2048 32 233472 232448" ;;
120) limits="1536 24 102400 101376" ;;
*) die "the architecture is \"$arch\", expected 80, 90, 100 or 120" ;;
esac

cuda=${CUDA_HOME:-/usr/local/cuda}
[ -x "$cuda/bin/nvcc" ] || cuda=$(dirname "$(dirname "$(command -v nvcc || echo /none/none/nvcc)")")
[ -x "$cuda/bin/nvcc" ] || die "nvcc is missing: set CUDA_HOME to a CUDA toolkit"
demangle=$(command -v cu++filt c++filt | head -n 1) || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Dynamic shared memory is a function of each file: compiled as the emulation compiles it, and asked.
# Lines: FILE, the beginning of the kernel's name, bytes. Where a head width is chosen at run time it
# is that of the template, or 128.
ask() { # file, body
    cat >"$work/ask.cpp" <<END
#include "kernels/cuda/$1"
#include <stdio.h>
int main(void)
{
    $2
}
END
    "${CXX:-g++}" -std=c++17 -O1 -w -DDMS_CUDA_EMULATED -I. -isystem "$cuda/include" -no-pie \
        -Wl,--unresolved-symbols=ignore-all "$work/ask.cpp" -o "$work/ask" 2>"$work/ask.log" &&
        "$work/ask" | sed "s/^/$1\t/" >>"$work/dynamic" ||
        say "$1: its dynamic shared memory is not known: $(head -n 1 "$work/ask.log")" >&2
}

put() { # kernel's beginning, expression
    printf 'printf("%%s\\t%%zu\\n", "%s", (size_t)(%s));' "$1" "$2"
}

ask_all() {
    local width type heads kernel body=
    for width in 64 96 128; do
        body+=$(put "attention_kernel<$width," "shared_bytes<$width>()")
    done
    ask attention.cu "$body"
    body=
    for width in 64 96 128; do
        body+=$(put "keys_kernel<$width>" "shared_bytes<$width>()")
        body+=$(put "queries_kernel<$width>" "shared_bytes<$width>()")
    done
    ask attention_bwd.cu "$body"
    body=
    for heads in 1 2 4 8; do
        body+=$(put "decode_kernel<bf16, $heads>" "decode_shared<dms_bf16, $heads>(128)")
        body+=$(put "decode_kernel<float, $heads>" "decode_shared<float, $heads>(128)")
    done
    ask paged_attention.cu "$body"
    body=
    for type in bf16 float; do
        for heads in 1 2 4 8; do
            for kernel in parts slots; do
                body+=$(put "weigh_${kernel}_kernel<$type, $heads>" \
                    "weigh_shared<${type/bf16/dms_bf16}, $heads>(128)")
            done
        done
    done
    ask paged_weigh.cu "$body"
    body=
    for type in bf16 float; do
        for width in 64 128; do
            body+=$(put "chunk_kernel<$type, $width, 32>" "chunk_shared($width, $width, 32)")
        done
    done
    ask paged_chunk.cu "$body"
    body=
    for width in 64 96 128; do
        for stack in 1 2; do
            body+=$(put "chunk_mma_kernel<$width, $stack>" "sizeof(places<$width, $stack>)")
        done
    done
    ask paged_chunk_mma.cu "$body"
}

# Lines: FILE, mangled name, registers, static shared bytes, threads (0: no __launch_bounds__), spilt
# bytes, whether it uses dynamic shared memory.
compile() { # file
    local name=$1 file=$work/$1
    "$cuda/bin/nvcc" -std=c++17 -arch="compute_$arch" -I. -ptx "kernels/cuda/$name" -o "$file.ptx" \
        2>"$file.log" || die "$name does not compile: $(head -n 3 "$file.log")"
    "$cuda/bin/ptxas" -arch="sm_$arch" -v "$file.ptx" -o "$file.cubin" 2>"$file.log" ||
        die "$name does not assemble: $(head -n 3 "$file.log")"
    awk -v name="$name" '
        FNR == NR {
            if (/\.entry /) { entry = $0; sub(/.*\.entry +/, "", entry); sub(/[^A-Za-z0-9_$].*/, "", entry) }
            if (/^\.maxntid/) {
                split($0, n, /[ ,]+/)
                threads[entry] = n[2] * (n[3] ? n[3] : 1) * (n[4] ? n[4] : 1)
            }
            if (/dms_dynamic_shared_/) dynamic[entry] = 1
            next
        }
        /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
        /spill stores/ { spilt = 0; if (match($0, /[0-9]+ bytes spill stores/)) spilt = substr($0, RSTART) + 0 }
        /Used [0-9]+ registers/ {
            match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5) + 0
            shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
            print name "\t" kernel "\t" registers "\t" shared "\t" threads[kernel] + 0 "\t" spilt "\t" \
                dynamic[kernel] + 0
        }' "$file.ptx" "$file.log" >>"$work/kernels"
}

# Names as they are written: no result type, no parameters, bf16 for the type of CUDA.
short_names() {
    if [ -n "$demangle" ]; then
        "$demangle" <"$work/kernels"
    else
        cat "$work/kernels"
    fi | sed -E 's/\tvoid /\t/; s/\([^\t]*\)\t/\t/; s/__nv_bfloat16/bf16/g'
}

# Registers are given to a warp in lots of 256, warps to 4 partitions of 16384 registers; a block
# takes 1 KiB of shared memory more than it asks for, in lots of 128 bytes (occupancy calculator).
table() {
    short_names | sort -t "$(printf '\t')" -k1,1 -k2,2V | awk -F'\t' -v limits="$limits" -v \
        dynamic="$work/dynamic" -v wanted="$wanted" '
        function floor(x) { return int(x) }
        function up(x, lot) { return floor((x + lot - 1) / lot) * lot }
        function least(n, why) { if (n < blocks) { blocks = n; by = why } }
        BEGIN {
            split(limits, most, " ")
            while ((getline line <dynamic) > 0) {
                split(line, f, "\t")
                of[f[1], ++count[f[1]]] = f[2]
                bytes[f[1], count[f[1]]] = f[3]
            }
            print "| file | kernel | registers | shared static | dynamic | threads | blocks an SM |" \
                " occupancy | bound by | spills |"
            print "|---|---|--:|--:|--:|--:|--:|--:|---|--:|"
        }
        $6 > 0 { spills++ }
        $2 ~ wanted {
            more = $7 ? "-" : 0
            for (i = 1; i <= count[$1]; i++)
                if (index($2, of[$1, i]) == 1) more = bytes[$1, i]
            blocks = most[2]; by = "blocks"; share = "-"; sign = more == "-" ? "<= " : ""
            warps = floor(($5 + 31) / 32)
            if (warps) {
                least(floor(most[1] / 32 / warps), "threads")
                least(floor(floor(16384 / up($3 * 32, 256)) * 4 / warps), "registers")
                least($4 + more > most[4] ? 0 : floor(most[3] / up($4 + more + 1024, 128)), "shared memory")
                share = sprintf("%.0f %%", 100 * blocks * warps * 32 / most[1])
            } else {
                blocks = by = "-"
                sign = ""
            }
            printf "| %s | `%s` | %d | %d | %s | %s | %s | %s | %s | %d |\n", $1, $2, $3, $4, more, \
                $5 ? $5 : "-", sign blocks, share, by, $6
        }
        END { exit spills > 0 }'
}

for file in kernels/cuda/*.cu; do
    compile "$(basename "$file")"
done
: >"$work/dynamic"
ask_all
status=0
table >"$work/table" || status=1
if [ -n "$into" ]; then
    grep -qx '<!-- kernel_table -->' "$into" || die "$into has no line <!-- kernel_table -->"
    awk -v table="$work/table" '
        /^<!-- end -->$/ { inside = 0 }
        !inside { print }
        /^<!-- kernel_table -->$/ { inside = 1; while ((getline line <table) > 0) print line }' \
        "$into" >"$work/document"
    cat "$work/document" >"$into"
else
    cat "$work/table"
fi
[ $status = 0 ] || die "a kernel for sm_$arch spills registers"
