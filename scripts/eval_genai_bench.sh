#!/usr/bin/env bash
# GenAI-Bench: draw all prompts, score the images, print the table. DATA holds prompts.txt and genai_skills.json.
# usage: [SET=527|1600] [SCORER=self|hf:NAME|clip-flant5-xxl] [PROCESSES=N] [PYTHON=python] scripts/eval_genai_bench.sh \
#            DATA OUTPUT [--model FOLDER and other options of mllm evaluate]
set -euo pipefail
data=$1 output=$2
shift 2
python=${PYTHON:-python} scorer=${SCORER:-clip-flant5-xxl}
model=()
before=
for word in "$@"; do # the model that draws is also the one that scores, where SCORER=self
    [ "$before" != --model ] || model=(--scorer-model "$word")
    [ "${word#--model=}" = "$word" ] || model=(--scorer-model "${word#--model=}")
    before=$word
done
"$python" -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-1}" -m mllm evaluate \
    "genai-bench-${SET:-527}" --questions "$data/prompts.txt" --output "$output" "$@"
"$python" -m mllm evaluate score "$output" --questions "$data/prompts.txt" --annotations "$data/genai_skills.json" \
    --scorer "$scorer" ${model[@]+"${model[@]}"}
