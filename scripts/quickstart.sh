#!/usr/bin/env bash
# From nothing to a retrofitted model: packages, build, SmolLM2-135M-Instruct and six novels, retrofit,
# export, evaluation beside simpler cache policies, generation. What is done is skipped; an
# interrupted run goes on where it stopped (each program shows a result only once it is complete).
set -euo pipefail
. "$(dirname "$0")/common.sh"
cd "$root"

bin=build/release
run=runs/quickstart
text=$cache/austen
prompt="It is a truth universally acknowledged, that a single man"

say "1/7 packages"
scripts/packages.sh

say "2/7 build"
mkdir -p "$bin"
gpu=$(gpu_architecture)
backend=(-DDMS_CUDA=OFF) # compiling it takes minutes, for nothing without a GPU
[ -z "$gpu" ] || backend=(-DDMS_CUDA=AUTO "-DDMS_CUDA_ARCHS=$gpu")
cmake -S . -B "$bin" -DCMAKE_BUILD_TYPE=Release -DDMS_TESTS=OFF "${backend[@]}" >"$bin/configure.log" 2>&1 ||
    { tail -n 20 "$bin/configure.log"; die "cmake failed; see $bin/configure.log"; }
cmake --build "$bin" -j "$(nproc)"

say "3/7 model and text"
scripts/fetch.sh

say "4/7 tokens: five novels to train on, Persuasion held out"
training=()
for novel in "${novels[@]}"; do
    [ "$novel" = persuasion ] || training+=("$text/$novel.txt")
done
[ -e "$text/train.tok" ] ||
    "$bin/dms-tokenize" "$model" -o "$text/train.tok" "${training[@]}"
[ -e "$text/heldout.tok" ] ||
    "$bin/dms-tokenize" "$model" -o "$text/heldout.tok" "$text/persuasion.txt"

say "5/7 retrofit and export"
if [ -e "$run/hf" ]; then
    echo "$run/hf is there already; remove $run to train again"
else
    elsewhere=() # the recipe names cache/; DMS_CACHE may be another folder
    [ "$cache" = "$root/cache" ] || elsewhere=(model.path="$model"
        data.train="$text/train.tok" data.heldout="$text/heldout.tok")
    "$bin/dms-train" configs/quickstart.yaml "${elsewhere[@]}"
    "$bin/dms-export" "$run/latest" --to hf -o "$run/hf"
fi

say "6/7 a few words with the freed cache"
"$bin/dms-generate" "$run/hf" -n 64 --seed 1 -p "$prompt"

say "7/7 held-out text: dense, retrofitted, random eviction, sliding windows"
if [ ! -e "$run/table.txt" ]; then
    "$bin/dms-eval" "$run/hf" kld "$text/persuasion.txt" --teacher "$model" \
        --context 512 --sequences 32 \
        --policies dense,dms,random:3,random:4,window:64,window:128 --decode 64 \
        >"$run/table.partial"
    mv "$run/table.partial" "$run/table.txt"
fi
cat "$run/table.txt"
say "run folder: $root/$run (config.yaml, metrics.jsonl, checkpoints/, hf/, table.txt);" \
    "$((SECONDS / 60)) min $((SECONDS % 60)) s"
