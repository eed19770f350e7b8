#!/usr/bin/env bash
# Measure the released sizes with random weights on one GPU, in under eight minutes and without a network.
# usage: scripts/benchmark_gpu.sh [REPORT.json] [--tiny]
# A table is printed; every part has a time limit, and a part that fails is reported while the others go on.
# --tiny runs every part on the CPU with tiny sizes, to see that it works.
set -euo pipefail
cd "$(dirname "$0")/.."
HF_HUB_OFFLINE=1 exec "${PYTHON:-python}" -m scripts.benchmark_gpu "$@"
