#!/usr/bin/env bash
# What Fedfuse does on this machine's GPU, in the minutes given: bash simulations/benchmarks/gpu.sh OUT [minutes]
#   FEDFUSE_WHEELS   folders of wheels, separated by colons, to install from what is missing; nothing is downloaded
#   FEDFUSE_GPU_TINY=1   the same steps on the processor in tiny sizes, to try the script itself
#   PYTHON           the interpreter that has torch; default python3
# simulations/benchmarks/README.md says what comes out.
set -euo pipefail

if [[ $# -lt 1 || $# -gt 2 ]]; then
    echo "usage: bash $0 OUT [minutes]" >&2
    exit 2
fi
out=$(realpath -m -- "$1")
words=("$out" --minutes "${2:-8}")
if [[ -n ${FEDFUSE_GPU_TINY:-} ]]; then
    words+=(--tiny)
fi
if [[ -n ${FEDFUSE_WHEELS:-} ]]; then
    IFS=: read -r -a folders <<<"$FEDFUSE_WHEELS"
    for folder in "${folders[@]}"; do
        words+=(--wheels "$(realpath -m -- "$folder")")
    done
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export HF_HUB_OFFLINE=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m simulations.benchmarks.gpu.runner "${words[@]}"
