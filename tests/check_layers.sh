#!/bin/sh
# Fails when a folder includes one it may not know. Programs (*_main.c) and
# tests may include anything.
cd "$(dirname "$0")/.." || exit 2
bad=0
allow() { # folder, folders it may include
    for file in $(find "$1" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | grep -v '_main\.c$'); do
        for seen in $(sed -n 's/^#include "\([a-z]*\)\/.*/\1/p' "$file" | sort -u); do
            case " $2 " in *" $seen "*) ;; *) echo "$file includes $seen/"; bad=1 ;; esac
        done
    done
}
allow kernels     "kernels"
allow autograd    "kernels autograd"
allow model       "kernels autograd model"
allow data        "kernels data"
allow checkpoints "kernels checkpoints"
allow infer       "kernels autograd model data checkpoints infer"
allow tasks       "kernels data tasks"
allow eval        "kernels autograd model data checkpoints infer tasks eval"
allow train       "kernels autograd model data checkpoints train"
exit $bad
