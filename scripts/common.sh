# What the scripts share; sourced, never run.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$(realpath -m "${DMS_CACHE:-$root/cache}")
export DMS_CACHE=$cache # absolute, for the scripts that this one calls
model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
# Threads that wait for each other sleep after a moment: decoding stays fast (SmolLM2-135M, 2 threads of
# a Zen 4: 122 tok/s against 107 by default), and a core that another process takes costs little.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-3000}
novels=(sense_and_sensibility pride_and_prejudice mansfield_park emma northanger_abbey persuasion)

say() {
    printf '== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# The compute capability of the first GPU, as nvcc writes it (90); nothing without a GPU.
gpu_architecture() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ' || true
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
