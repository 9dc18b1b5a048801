#!/usr/bin/env bash
# Installs the Debian packages that building, testing and fetching need; does nothing when all are there.
set -euo pipefail
. "$(dirname "$0")/common.sh"

build=(build-essential cmake pkg-config libdnnl-dev libhdf5-dev zlib1g-dev libjansson-dev
       libcyaml-dev libyaml-dev libpcre2-dev libutf8proc-dev)
tests=(libcriterion-dev)
# Without the first two the style check is skipped, without the others fuzzing; both visibly.
checks=(clang-format-14 universal-ctags clang-14 libclang-rt-14-dev)
fetching=(python3 python3-pip unzip)

command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    die "apt-get is missing: this script knows Debian and its relatives. Elsewhere install the" \
        "equivalents of: ${build[*]} ${tests[*]} ${checks[*]} ${fetching[*]}"

installed() {
    dpkg -s "$1" 2>/dev/null | grep -q '^Status: install ok installed'
}

known() {
    apt-cache show "$1" >/dev/null 2>&1
}

needed=()
for package in "${build[@]}" "${tests[@]}" "${fetching[@]}"; do
    installed "$package" || needed+=("$package")
done
optional=()
for package in "${checks[@]}"; do
    installed "$package" || optional+=("$package")
done

# A fresh machine knows no package before its first update.
if [ ${#needed[@]} != 0 ]; then
    say "packages: updating apt's lists"
    as_root apt-get update -qq </dev/null ||
        die "apt-get update failed; is the network up? Still missing: ${needed[*]}"
fi
for package in "${optional[@]}"; do
    if known "$package"; then
        needed+=("$package")
    else
        say "packages: this system has no $package, going on without it"
    fi
done
if [ ${#needed[@]} = 0 ]; then
    say "packages: all installed"
    exit 0
fi
say "packages: installing ${needed[*]}"
as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${needed[@]}" </dev/null ||
    die "apt-get could not install ${needed[*]}; is the network up?"
