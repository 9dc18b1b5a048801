# What the scripts share; sourced, never run.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$(realpath -m "${DMS_CACHE:-$root/cache}")
export DMS_CACHE=$cache # absolute, for the scripts that this one calls
model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
novels=(sense_and_sensibility pride_and_prejudice mansfield_park emma northanger_abbey persuasion)

say() {
    printf '== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

as_root() { # command ...
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "installing packages needs root or sudo; run as root: $*"
    fi
}
