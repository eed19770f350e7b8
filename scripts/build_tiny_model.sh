#!/usr/bin/env bash
# Rebuild the bundled model from nothing: text tokenizer, image tokenizer, language model, scores.
# Every step goes on from its newest checkpoint, so the script can be stopped and started again.
# usage: scripts/build_tiny_model.sh [RUNS_FOLDER [MODEL_FOLDER [--KEY VALUE]...]]
# Keys are for all stages of the language model; on a GPU: --rows 64 --trainer.dataloader_num_workers 14
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
bundled=${2:-mllm/assets/tiny}
everywhere=("${@:3}")
text="$runs/tiny_text/tokenizer.model"
images="$runs/tiny_decoder/final"

[ -f "$text" ] || mllm train tiny_text --output "$text"
# Codes first, then the decoder alone: pictures get crisper while the codes stay what they are.
mllm train tiny_tokenizer --output "$runs/tiny_tokenizer"
mllm train tiny_decoder --output "$runs/tiny_decoder" --start_from "$runs/tiny_tokenizer/final"

# stage NAME BEFORE [KEY VALUE]...: go on from the stage before.
stage() {
    local name=$1 before=$2
    shift 2
    mllm train tiny --output "$runs/$name" --image_tokenizer "$images" --text_tokenizer "$text" \
        ${before:+--start_from "$runs/$before/final"} "$@" ${everywhere[@]+"${everywhere[@]}"}
}
# Squares first, of two objects at most, then of all: what words look like is learned where little else is to be learned.
squares=(--model.image_layout fixed --model.max_grid_side null --model.sizes null
    --trainer.lr_scheduler_kwargs '{num_decay_steps: 1, decay_type: linear}') # the learning rate falls in the last stage
stage tiny_two "" "${squares[@]}" --data.max_objects 2 --data.questions 4 \
    --data.jobs '{draw: 6, edit: 3, ask: 1.5, describe: 2, depth: 0.4, segment: 0.8}' --trainer.max_steps 6000
if [ ! -d "$runs/tiny_four" ]; then # on the same pictures
    mkdir -p "$runs/tiny_four"
    cp -r "$runs/tiny_two/codes" "$runs/tiny_four/codes"
fi
stage tiny_four tiny_two "${squares[@]}" --trainer.max_steps 3000
# Then every size. The tokens of sizes come after those that the model has, so it brings its own tokenizer.
text="$runs/tiny_four/final" stage tiny tiny_four

python -m train.bundle "$runs/tiny/final" "$bundled"
mllm evaluate world --model "$bundled" --count 500 --seed 0 --json "$runs/tiny/scores.json"
python -m train.bundle "$runs/tiny/final" "$bundled" --scores "$runs/tiny/scores.json"
