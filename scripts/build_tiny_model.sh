#!/usr/bin/env bash
# Rebuild the bundled model from scratch: text tokenizer, image tokenizer, language model, scores.
# Every step resumes from its newest checkpoint, so the script can be interrupted and started again.
# usage: scripts/build_tiny_model.sh [RUNS_FOLDER [MODEL_FOLDER [--KEY VALUE]...]]
# Keys are for all stages of the language model; on a GPU:
# --rows 128 --batches_per_step 1 --trainer.dataloader_num_workers 12
# The words of the model card are about the model that is shipped; for yours, add --note TEXT to train.bundle.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
bundled=${2:-mllm/assets/tiny}
everywhere=("${@:3}")
text="$runs/tiny_text/tokenizer.model"
images="$runs/tiny_decoder/final"

[ -f "$text" ] || mllm train tiny_text --output "$text"
# First codes, from images at half size; then a decoder that draws them at full size.
mllm train tiny_tokenizer --output "$runs/tiny_tokenizer"
mllm train tiny_decoder --output "$runs/tiny_decoder" --start_from "$runs/tiny_tokenizer/final"

# stage NAME [KEY VALUE]...
stage() {
    mllm train tiny --output "$runs/$1" --image_tokenizer "$images" --text_tokenizer "$text" "${@:2}" \
        ${everywhere[@]+"${everywhere[@]}"}
}
stage tiny_first
if [ ! -d "$runs/tiny/codes" ]; then # the same images
    mkdir -p "$runs/tiny"
    cp -r "$runs/tiny_first/codes/." "$runs/tiny/codes.part"
    mv "$runs/tiny/codes.part" "$runs/tiny/codes"
fi
stage tiny --start_from "$runs/tiny_first/final" --data.mixture_seed 1 --trainer.seed 1 \
    --trainer.max_steps 2300 --trainer.warmup_steps 50 \
    --trainer.lr_scheduler_kwargs '{num_decay_steps: 2070, decay_type: linear}' \
    --optimizer.learning_rate 1.5e-3 --optimizer.matrix_learning_rate 8e-3

# What people type: most of it is learned without images. docs/language.md says
# which steps the weights in the package have had.
mllm train tiny_language --output "$runs/tiny_language" --start_from "$runs/tiny/final" --image_tokenizer "$images" \
    --text_tokenizer "$text" ${everywhere[@]+"${everywhere[@]}"}

python -m train.bundle "$runs/tiny_language/final" "$bundled"
mllm evaluate world --model "$bundled" --count 500 --seed 0 --json "$runs/tiny_language/scores.json"
python -m train.bundle "$runs/tiny_language/final" "$bundled" --scores "$runs/tiny_language/scores.json"
