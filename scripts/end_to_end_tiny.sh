#!/usr/bin/env bash
# From raw files to an image and an answer, everything very small: prepare, stage 1, 2, 3, LoRA, merge, draw, ask.
# The model learns nothing in so few steps; the script shows that every step fits the next. Minutes on a CPU.
# usage: scripts/end_to_end_tiny.sh OUT   (variables: see scripts/train_stage.sh, e.g. NPROC=2 LAUNCHER=deepspeed)
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/end_to_end_tiny.sh OUT}")
cd "$(dirname "$0")/.."
tokenizer=mllm/assets/tiny/image_tokenizer words=mllm/assets/tiny/tokenizer.model
prepare() { python -m mllm prepare "${@:2}" --out "$out/$1" --image-tokenizer "$tokenizer" --shard-size 8; }

# Raw data: JPEG folders, tars, chats, interleaved documents and text, made from the synthetic world.
[ -d "$out/raw" ] || python -m train.data.make_samples "$out/raw" --count 8 --size 256
prepare captions "$out/raw/captions" "$out/raw/folder"
prepare documents "$out/raw/obelics" "$out/raw/text"
prepare dialogues "$out/raw/chat"
python -m mllm prepare --out "$out/dialogues" --image-tokenizer "$tokenizer" --show 2

# A language model to start from, in the layout of Llama-2; a real run names a downloaded folder instead.
[ -d "$out/llama" ] || python - "$out/llama" <<'PYTHON'
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=768)
LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=1024)).save_pretrained(sys.argv[1])
PYTHON

# What makes the 7B recipes small; everything else is as written in train/recipes/.
small=(--image_tokenizer "$tokenizer" --length 640 --rows 1 --batches_per_step 2 --validation null
    --trainer.max_steps 3 --trainer.warmup_steps 1 --trainer.save_steps 2 --trainer.logging_steps 1 --trainer.bf16 false
    --trainer.dataloader_num_workers 0 --trainer.report_to '[]')
model=(--model.embedder_width 192 --model.embedder_heads 6 --model.head_layers 1)
mixed="[{path: $out/captions, weight: 2}, {path: $out/documents}]"
chats="[{path: $out/captions}, {path: $out/dialogues, weight: 2}]"

scripts/train_stage1.sh "${small[@]}" "${model[@]}" --text_tokenizer "$words" --backbone "$out/llama" \
    --data.shards "[{path: $out/captions}]" --output "$out/stage1"
scripts/train_stage2.sh "${small[@]}" --text_tokenizer "$words" --start_from "$out/stage1/final" \
    --data.shards "$mixed" --output "$out/stage2"
scripts/train_stage3.sh "${small[@]}" --text_tokenizer "$words" --start_from "$out/stage2/final" \
    --data.shards "$chats" --output "$out/stage3"
scripts/train_stage.sh lora "${small[@]}" --text_tokenizer "$out/stage3/final" --start_from "$out/stage3/final" \
    --image_tokenizer "$out/stage3/final/image_tokenizer" --adapter.rank 4 --data.shards "[{path: $out/dialogues}]" \
    --output "$out/lora"
python -m mllm merge "$out/lora/final" -o "$out/model"

python -m mllm draw "a large red circle on a white background" --model "$out/model" -o "$out/drawn.png" --seed 1
python -m mllm ask "$out/drawn.png" "What color is the circle?" --model "$out/model" --seed 1
