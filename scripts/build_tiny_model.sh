#!/usr/bin/env bash
# Rebuild the bundled model from nothing: text tokenizer, image tokenizer, language model, scores.
# Every step goes on from its newest checkpoint, so the script can be stopped and started again.
# usage: scripts/build_tiny_model.sh [RUNS_FOLDER [MODEL_FOLDER]]
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
bundled=${2:-mllm/assets/tiny}
text="$runs/tiny_text/tokenizer.model"
images="$runs/tiny_decoder/final"

[ -f "$text" ] || mllm train tiny_text --output "$text"
# Codes first, then the decoder alone: pictures get crisper while the codes stay what they are.
mllm train tiny_tokenizer --output "$runs/tiny_tokenizer"
mllm train tiny_decoder --output "$runs/tiny_decoder" --start_from "$runs/tiny_tokenizer/final"

# stage NAME BEFORE [KEY VALUE]...: go on from the stage before, on the same pictures.
stage() {
    local name=$1 before=$2
    shift 2
    if [ -n "$before" ] && [ ! -d "$runs/$name" ]; then
        mkdir -p "$runs/$name"
        cp -r "$runs/$before/codes" "$runs/$name/codes"
    fi
    mllm train tiny --output "$runs/$name" --image_tokenizer "$images" --text_tokenizer "$text" \
        ${before:+--start_from "$runs/$before/final"} "$@"
}
# Two objects at most, then the whole world: what words look like is learned where little else is to be learned.
stage tiny_two "" --data.max_objects 2 --data.questions 4 \
    --data.jobs '{draw: 6, edit: 3, ask: 1.5, describe: 2, depth: 0.4, segment: 0.8}' \
    --trainer.max_steps 6000 --trainer.lr_scheduler_kwargs '{num_decay_steps: 1, decay_type: linear}'
stage tiny tiny_two

python -m train.bundle "$runs/tiny/final" "$bundled"
mllm evaluate world --model "$bundled" --count 500 --seed 0 --json "$runs/tiny/scores.json"
python -m train.bundle "$runs/tiny/final" "$bundled" --scores "$runs/tiny/scores.json"
