#!/usr/bin/env bash
# From raw files to a model that draws and answers, very small: scripts/end_to_end_tiny.sh OUTPUT
# Makes small real files of every format, prepares them with the bundled image tokenizer, and trains on them.
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the output}")
cd "$(dirname "$0")/.."

python -m train.data.make_samples "$out/raw" --count 12 --size 64
prepare() { python -m mllm prepare "${@:2}" --out "$out/data/$1" --image-tokenizer mllm/assets/tiny --shard-size 8; }
prepare captions "$out/raw/captions" "$out/raw/folder"
prepare documents "$out/raw/mmc4" "$out/raw/obelics"
prepare text "$out/raw/text"
prepare questions "$out/raw/llava"
prepare dialogues "$out/raw/chat"
python -m mllm prepare --out "$out/data/dialogues" --image-tokenizer mllm/assets/tiny --show 2
