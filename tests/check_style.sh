#!/usr/bin/env bash
# Fails when a source is not as clang-format 14 writes it, a function has more than 60 lines (a main
# 100), a file more than 600, or a header does not begin with a sentence that says what it is.
# Exit 77 (skipped) with the reason when a tool is missing.
set -u
cd "$(dirname "$0")/.." || exit 2
folders=(kernels autograd model infer tasks eval train data checkpoints tests)
readarray -t files < <(find "${folders[@]}" -type f -regex '.*\.\(c\|h\|cpp\|cu\|cuh\)' | sort)
bad=0
skipped=0

offence() {
    printf '%s\n' "$@"
    bad=1
}

formatter=
for name in clang-format-14 clang-format; do
    if "$name" --version 2>/dev/null | grep -q 'version 14\.'; then
        formatter=$name
        break
    fi
done
if [ -n "$formatter" ]; then
    for file in $("$formatter" --dry-run -Werror "${files[@]}" 2>&1 |
        sed -n 's/:.*Wclang-format-violations.*//p' | sort -u); do
        offence "$file: run $formatter -i on it"
    done
else
    echo "[SKIP] style::format: clang-format 14 is not installed"
    skipped=1
fi

if ctags --version 2>/dev/null | grep -q Universal; then
    long=$(ctags -f - --langmap=C:+.cu.cuh.cpp --kinds-C=f --fields=+ne "${files[@]}" 2>/dev/null |
        awk -F'\t' '{
            for (i = 4; i <= NF; i++) {
                if ($i ~ /^line:/) first = substr($i, 6)
                if ($i ~ /^end:/) last = substr($i, 5)
            }
            n = last - first + 1; limit = $1 == "main" ? 100 : 60
            if (n > limit) printf "%s:%d: %s has %d lines, at most %d\n", $2, first, $1, n, limit
        }')
    [ -z "$long" ] || offence "$long"
else
    echo "[SKIP] style::function_length: universal-ctags is not installed"
    skipped=1
fi

for file in "${files[@]}"; do
    n=$(wc -l <"$file")
    [ "$n" -le 600 ] || offence "$file: $n lines, at most 600: it holds two nouns"
    case "$file" in
    *.h | *.cuh) # the sentence may end on the next lines
        head -n 3 "$file" | tr '\n' ' ' | grep -qE '^/\* [A-Za-z].*[.:;]' ||
            offence "$file: the first line must say what the file is, in one sentence"
        ;;
    esac
done

[ $bad = 0 ] || exit 1
[ $skipped = 0 ] || exit 77
