#!/usr/bin/env bash
# Measure the released sizes with random weights on one GPU, in under eight minutes and without a network.
# usage: scripts/benchmark_gpu.sh [REPORT.json] [--tiny]
# Tables are printed; every part has a time limit, and a part that fails is reported while the others go on. REPORT.json
# holds the figures of each part by its name. --tiny runs every part on the CPU with tiny sizes, to see that it works.
set -euo pipefail
report=benchmark_gpu.json patience=1
tiny=
for word in "$@"; do
    if [ "$word" = --tiny ]; then tiny=yes patience=10; else report=$word; fi
done
report=$(realpath "$report")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if [ -z "$tiny" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())'; then
    echo "benchmark_gpu: there must be a GPU, got none; use --tiny for a dry run on the CPU" >&2
    exit 2
fi
figures=$(mktemp -d)
trap 'rm -rf "$figures"' EXIT
failed=0

part() { # NAME SECONDS WORDS OF mllm benchmark...
    local words=("${@:3}")
    if [ -n "$tiny" ]; then
        local word
        words=()
        for word in "${@:3}"; do
            case $word in
            7b) words+=(S) ;; # int4 needs multiples of 32
            head-7b | 7b-8-layers | 1b) words+=(XXS) ;;
            large) words+=(tiny) ;;
            bfloat16) words+=(float32) ;;
            6) words+=(2) ;;
            8 | 16 | 32 | 64 | 128 | 256 | --compile) ;;
            *) words+=("$word") ;;
            esac
        done
        words+=(--device cpu)
    fi
    HF_HUB_OFFLINE=1 timeout $((patience * $2)) "$python" -m mllm benchmark "${words[@]}" --json "$figures/$1.json" || {
        echo "benchmark_gpu: $1 must end well within $2 s, got status $? (124: too late)" >&2
        failed=1
    }
}

part products 40 product --sizes 7b --batch 1 2 8 16 64 128 256 --dtype bfloat16 --rounds 3
part head 60 head --sizes head-7b --batch 1 8 32 64 --dtype bfloat16 --quantization int8 --rounds 3
part drawing 145 draw --sizes 7b --alone 6 --batch 1 8 32 64 --dtype bfloat16 --quantization int8 --rounds 2
part graphs 40 draw --sizes 7b --alone 6 --batch 1 --dtype bfloat16 --compile --rounds 2
part prefill 40 prefill --sizes 7b --batch 1 8 32 64 --dtype bfloat16 --rounds 3
part tokenizer 60 tokenizer --sizes large --batch 1 16 64 --rounds 3
part training-1b 40 step --sizes 1b --dtype bfloat16 --rounds 3
part training-7b 50 step --sizes 7b-8-layers --dtype bfloat16 --rounds 3
"$python" - "$figures" "$report" <<'END'
import json, pathlib, sys
parts = sorted(pathlib.Path(sys.argv[1]).glob("*.json"), key=lambda path: path.stat().st_mtime)
pathlib.Path(sys.argv[2]).write_text(json.dumps({path.stem: json.loads(path.read_text()) for path in parts}, indent=2))
END
exit $failed
