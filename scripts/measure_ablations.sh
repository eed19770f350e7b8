#!/usr/bin/env bash
# Ablations of the bundled model, measured on the synthetic world and plotted (docs/ablations.md).
# usage: scripts/measure_ablations.sh [COUNT]   items of each kind, 200 if none is given
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-200}
PYTHON=${PYTHON:-python}
mkdir -p docs/ablations
"$PYTHON" -c 'from docs.plot_ablations import load_pyplot; load_pyplot()' # before twenty minutes of measuring

measure() { # NAME OPTIONS...
    "$PYTHON" -m mllm evaluate world --count "$count" --seed 0 --json "docs/ablations/$1.json" "${@:2}"
}

for guidance in 1 2 4; do
    measure "guidance-$guidance" --jobs draw edit --guidance "$guidance" --redraws 0
done
for redraws in 0 1 3; do
    measure "redraws-$redraws" --jobs draw edit interleaved --redraws "$redraws"
done
for context in prefix current; do
    measure "context-$context" --jobs draw edit --embedding-context "$context" --redraws 0
done
"$PYTHON" -m docs.plot_ablations docs/ablations
