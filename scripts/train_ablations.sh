#!/usr/bin/env bash
# Ablations of the head, the number of codebooks and the length of training: equal short trainings around the language
# model of the bundled model, with new image tokenizers, code embeddings and heads, measured on the synthetic world and
# plotted (docs/ablations.md). Resumes where it was interrupted.
# usage: scripts/train_ablations.sh [RUNS_FOLDER [COUNT]]   COUNT items of each kind, 200 if none is given;
# REPORTS=FOLDER writes the plots elsewhere, WORDS=MODEL_FOLDER uses another language model
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/ablations}
count=${2:-200}
reports=${REPORTS:-docs/ablations}
words=${WORDS:-mllm/assets/tiny}
PYTHON=${PYTHON:-python}
mkdir -p "$reports"
"$PYTHON" -c 'from docs.plot_ablations import load_pyplot; load_pyplot()' # before an hour of training

# train NAME TOKENIZER STEPS [KEY VALUE]...: a whole training, its learning rate falling over its second half.
train() {
    mllm train tiny --output "$runs/$1" --image_tokenizer "$2" --text_tokenizer "$words" --backbone "$words" \
        --trainer.max_steps "$3" --trainer.lr_scheduler_kwargs "{num_decay_steps: $(($3 / 2)), decay_type: linear}" \
        --trainer.warmup_steps "$(($3 / 10))" --ema_decay 0.98 --model.sizes '[[128, 128]]' --rows 11 --batches_per_step 1 \
        --optimizer.learning_rate 2e-3 --optimizer.matrix_learning_rate 1e-2 \
        --data.episodes 8192 --data.jobs '{draw: 1}' "${@:4}"
    mllm evaluate world --model "$runs/$1/final" --count "$count" --jobs draw --redraws 0 --json "$reports/$1.json"
}

for codebooks in 2 4 8; do
    mllm train tiny_tokenizer --output "$runs/tokenizer-$codebooks" --architecture.num_codebooks "$codebooks" --steps 2000
    train "codebooks-$codebooks" "$runs/tokenizer-$codebooks/final" 200
done
train head-depth_transformer "$runs/tokenizer-8/final" 200 --model.head_type depth_transformer
for steps in 50 100; do
    train "steps-$steps" "$runs/tokenizer-8/final" "$steps"
done
for same in head-mlp steps-200; do # as codebooks-8 was trained
    cp "$reports/codebooks-8.json" "$reports/$same.json"
done
"$PYTHON" -m docs.plot_ablations "$reports"
