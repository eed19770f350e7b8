#!/usr/bin/env bash
# Run and score the VQA benchmarks whose files are in DATA, laid out as LLaVA's playground/data/eval.
# An interrupted run resumes. PROCESSES=8 shares the questions among 8 processes, one GPU each.
# MM-Vet is graded if JUDGE_URL (and JUDGE_MODEL) name an OpenAI-compatible server; VQAv2's test-dev is scored by EvalAI.
# usage: [PROCESSES=N] [PYTHON=python] scripts/eval_vqa.sh DATA OUTPUT [--model FOLDER and other options of mllm evaluate]
set -euo pipefail
data=$1 output=$2
shift 2
options=("$@")
python=${PYTHON:-python}
scored=()
num_found=0

has() { # QUESTIONS; separate from `ask`, whose failure must end the script and not look like a missing file
    [ -f "$data/$1" ] || return 1
    num_found=$((num_found + 1))
}

ask() { # BENCHMARK QUESTIONS IMAGES
    "$python" -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-1}" -m mllm evaluate "$1" \
        --questions "$data/$2" --images "$data/$3" --output "$output/$1" ${options[@]+"${options[@]}"}
}

score() { # BENCHMARK QUESTIONS ANNOTATIONS [more]
    "$python" -m mllm evaluate score "$output/$1" --questions "$data/$2" --annotations "$data/$3" "${@:4}"
    scored+=("$output/$1")
}

run() { # BENCHMARK QUESTIONS IMAGES ANNOTATIONS
    has "$2" || return 0
    ask "$1" "$2" "$3"
    score "$1" "$2" "$4"
}

if has vqav2/llava_vqav2_mscoco_test-dev2015.jsonl; then
    ask vqav2 vqav2/llava_vqav2_mscoco_test-dev2015.jsonl vqav2/test2015
    "$python" -m mllm evaluate submit "$output/vqav2" --questions "$data/vqav2/llava_vqav2_mscoco_test-dev2015.jsonl" \
        --split "$data/vqav2/llava_vqav2_mscoco_test2015.jsonl"
fi
run gqa gqa/llava_gqa_testdev_balanced.jsonl gqa/data/images gqa/data/testdev_balanced_questions.json
run textvqa textvqa/llava_textvqa_val_v051_ocr.jsonl textvqa/train_images textvqa/TextVQA_0.5.1_val.json
run pope pope/llava_pope_test.jsonl pope/val2014 pope/coco
run mme MME/llava_mme.jsonl MME/MME_Benchmark_release_version MME/MME_Benchmark_release_version
if has mm-vet/llava-mm-vet.jsonl; then
    ask mmvet mm-vet/llava-mm-vet.jsonl mm-vet/images
    if [ -n "${JUDGE_URL:-}" ]; then
        score mmvet mm-vet/llava-mm-vet.jsonl mm-vet/mm-vet.json --judge-url "$JUDGE_URL" \
            --judge-model "${JUDGE_MODEL:-gpt-4-0613}"
    else
        "$python" -m mllm evaluate submit "$output/mmvet" --questions "$data/mm-vet/llava-mm-vet.jsonl"
    fi
fi
if [ "$num_found" -eq 0 ]; then
    echo "$data must contain question files, got none; lay it out as LLaVA's playground/data/eval" >&2
    exit 2
fi
[ ${#scored[@]} -eq 0 ] || "$python" -m mllm evaluate report "${scored[@]}" -o "$output/report.md"
