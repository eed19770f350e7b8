#!/usr/bin/env bash
# GenAI-Bench: draw all prompts, score the pictures, print the table. DATA holds prompts.txt and genai_skills.json.
# usage: [SET=527|1600] [SCORER=self|hf:NAME|clip-flant5-xxl] [PROCESSES=N] [PYTHON=python] scripts/eval_genai_bench.sh \
#            DATA OUTPUT [--model FOLDER and other options of mllm evaluate]
set -euo pipefail
data=$1 output=$2
shift 2
python=${PYTHON:-python} scorer=${SCORER:-clip-flant5-xxl}
model=()
for ((i = 1; i < $#; i++)); do
    [ "${!i}" != --model ] || { next=$((i + 1)) && model=(--scorer-model "${!next}"); }
done
"$python" -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-1}" -m mllm evaluate \
    "genai-bench-${SET:-527}" --questions "$data/prompts.txt" --output "$output" "$@"
"$python" -m mllm evaluate score "$output" --questions "$data/prompts.txt" --annotations "$data/genai_skills.json" \
    --scorer "$scorer" ${model[@]+"${model[@]}"}
