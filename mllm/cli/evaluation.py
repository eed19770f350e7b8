"""`mllm evaluate`: run a benchmark, score its answers, compare results; the world and the image tokenizer."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mllm.cli.main import (
    BEST_OF,
    IMAGE_SAMPLING,
    MODEL,
    MODEL_FOLDER,
    SAMPLING_OPTIONS,
    SIZE,
    Option,
    command,
    file_in_existing_folder,
    given,
    image_file,
    json_option,
    load_pipeline,
    option,
    positive_count,
    seed_number,
)
from mllm.evaluation import protocol
from mllm.files import counted, fingerprint_of, read_lines, write_json, write_text

if TYPE_CHECKING:
    from mllm.engine.settings import Overrides

ANNOTATIONS = option("--annotations", type=Path, metavar="PATH", help="published annotations of the benchmark")
BATCH_SIZE = option("--batch-size", type=positive_count, default=16, help="items processed at once (default: 16)")
ANSWERS = [
    option("answers", type=Path, metavar="RUN", help="run folder or answer file"),
    option("--questions", type=Path, required=True, metavar="FILE", help="question file of the run"),
    option("--benchmark", metavar="NAME", help="name of the benchmark, required for an answer file"),
    option("--partial", action="store_true", help="accept missing answers, and mark the result as partial"),
]


def typed_sampling(options: Namespace) -> Overrides:
    """How images are sampled, as typed; the seed is of all items."""
    return cast("Overrides", {name: v for name, v in given(options, SAMPLING_OPTIONS).items() if name != "seed"})


def generated_items(count: int, jobs: str = "") -> list[Option]:
    """Options of an evaluation that makes its items itself, of several jobs or of one."""
    kind = " of each kind" if jobs else ""
    return [
        option("--count", type=positive_count, default=count, help=f"number of items{kind} (default: {count})"),
        option("--seed", type=seed_number, default=0, help="random seed for items and sampling (default: 0)"),
        *(
            [option("--jobs", nargs="+", metavar="JOB", help=f"tasks to evaluate, such as {jobs} (default: all)")]
            if jobs
            else []
        ),
        option("--batch-size", type=positive_count, default=32, help="items processed at once (default: 32)"),
        json_option("scores"),
        *IMAGE_SAMPLING,
        *MODEL,
    ]


@command(
    "evaluate world",
    "Evaluate a model on the synthetic world with an exact checker.",
    "--count 500 --json scores.json",
    *generated_items(500, "draw ask edit"),
    option(
        "--best-of",
        type=positive_count,
        nargs="+",
        default=[],
        metavar="N",
        help="also let the model choose the best of N images, for each N, and measure how well it chooses",
    ),
    SIZE,
    option(
        "--items",
        type=file_in_existing_folder,
        metavar="FILE",
        help="also write the result of each item and a digest of its answers to a JSON Lines file",
    ),
)
def evaluate_world(options: Namespace) -> None:
    from mllm.evaluation.world import as_table, measure_world

    settings = given(options, ("count", "seed", "jobs", "batch_size", "size", "best_of", "items"))
    report = measure_world(load_pipeline(options), sampling=typed_sampling(options), **settings)
    show(as_table(report), report, options.json)


@command(
    "evaluate emoji",
    "Evaluate how a model draws, names and changes emoji, both seen in training and held out.",
    "--model emoji --data runs/emoji/data --count 200 --json scores.json --sheet sheet.png",
    option("--data", type=Path, required=True, metavar="DIR", help="folder written by python -m scripts.emoji.build"),
    option("--sheet", type=image_file, metavar="FILE", help="write the first 100 drawings by name to this image file"),
    *generated_items(200, "draw name restyle"),
)
def evaluate_emoji(options: Namespace) -> None:
    from mllm.evaluation.answerer import choose_groups
    from mllm.evaluation.emoji import GROUPS, as_table, measure_emoji, read_cells
    from mllm.evaluation.retrieval import EfficientNetLite0

    groups, cells = choose_groups(GROUPS, options.jobs), read_cells(options.data)  # before the model is loaded
    if options.sheet is not None and not any(group.job == "draw" for group in groups):
        raise ValueError(f"--jobs must include draw with --sheet, got {', '.join(options.jobs)}; leave --sheet out")
    pipeline, scorer = load_pipeline(options), EfficientNetLite0.installed()
    settings = given(options, ("count", "seed", "batch_size", "sheet"))
    found: dict[str, Any] = {"cells": cells, "groups": groups, "scorer": scorer, "sampling": typed_sampling(options)}
    report = measure_emoji(pipeline, options.data, **found, **settings)
    show(as_table(report), report, options.json)


@command(
    "evaluate captions",
    "Evaluate how a model draws the images of a folder of your own by their captions.",
    "images --model runs/own/model/final --json scores.json --sheet sheet.png",
    option("folder", type=Path, metavar="FOLDER", help="images with captions beside them: 1.txt beside 1.png"),
    option("--skip-broken", action="store_true", help="leave out damaged images and captions"),
    option("--sheet", type=image_file, metavar="FILE", help="write the first 100 drawings to this image file"),
    *generated_items(100),
)
def evaluate_captions(options: Namespace) -> None:
    from mllm.evaluation.captions import as_table, measure_captions, read_captioned
    from mllm.evaluation.retrieval import EfficientNetLite0

    cells = read_captioned(options.folder, skip_broken=options.skip_broken)  # before the model is loaded
    pipeline, scorer = load_pipeline(options), EfficientNetLite0.installed()
    settings = given(options, ("count", "seed", "batch_size", "sheet"))
    report = measure_captions(pipeline, cells, scorer=scorer, sampling=typed_sampling(options), **settings)
    show(as_table(report), report, options.json)


def show(table: str, result: dict[str, Any], path: Path | None) -> None:
    if path:
        write_json(path, result)
    print(table)


@command(
    "evaluate requests",
    "Evaluate a model on requests in your own words. Each answer is checked exactly.",
    "tests.jsonl --json result.json",
    option("file", type=Path, nargs="?", metavar="FILE", help="JSON Lines file of dialogues and expected answers"),
    option("--generate", nargs="+", metavar="KIND", help="generate requests of these kinds instead of reading FILE"),
    option("--count", type=positive_count, default=100, metavar="N", help="generated items per kind (default: 100)"),
    option("--seed", type=seed_number, default=0, help="random seed; item i uses seed + i (default: 0)"),
    BATCH_SIZE,
    json_option("result"),
    *MODEL,
)
def evaluate_requests(options: Namespace) -> None:
    from mllm.evaluation.requests import as_table, generate_items, measure_requests, read_items

    if (options.file is None) == (options.generate is None):
        raise ValueError("either FILE or --generate must be given, got both or none; see mllm evaluate requests --help")
    if options.file is not None:
        items = read_items(options.file)  # before the model is loaded
    else:
        items = generate_items(options.generate, options.count, seed=options.seed)
    result = measure_requests(load_pipeline(options), items, **given(options, ("seed", "batch_size")))
    show(as_table(result), result, options.json)


@command(
    "evaluate tokenizer",
    "Evaluate an image tokenizer: quality of reconstructions, use of codebooks, and classification from codes.",
    "--model runs/unitok --images imagenet/val --output runs/tokenizer --fid",
    option("--codec", metavar="MODULE:FUNCTION", help="function that loads a different tokenizer, instead of --model"),
    option("--images", type=Path, required=True, metavar="DIR|TAR", help="folder or tar of images to reconstruct"),
    option("--output", type=Path, required=True, metavar="FOLDER", help="output folder"),
    option(
        "--crop",
        choices=("zero_shot", "reconstruction", "crop", "visual", "cover", "stretch"),
        default="zero_shot",
        help="how images are resized and cropped (default: zero_shot, as in CLIP)",
    ),
    option("--limit", type=positive_count, metavar="N", help="use only the first N images"),
    BATCH_SIZE,
    option("--lpips", type=Path, metavar="FILE", help="also measure LPIPS with these weights (lpips_with_vgg.pth)"),
    option("--fid", action="store_true", help="also measure rFID and Inception Score with torch-fidelity"),
    option("--class-images", type=Path, metavar="DIR", help="test images, one folder per class"),
    option("--classes", metavar="FILE", help="JSON of class names by folder, or imagenet (those of open_clip)"),
    option("--templates", type=Path, metavar="FILE", help="prompts with {} for the class (default: CLIP's 80)"),
    option("--text-vocabulary", type=Path, metavar="FILE", help="vocabulary of the text tower, for zero-shot accuracy"),
    option("--probe-images", type=Path, metavar="DIR", help="training images of a linear probe, one folder per class"),
    *MODEL_FOLDER,
)
def evaluate_tokenizer(options: Namespace) -> None:
    wants_classes = options.text_vocabulary is not None or options.probe_images is not None
    if wants_classes and options.class_images is None:
        raise ValueError("--class-images must name a folder of class folders to test on, got none")
    if options.class_images is not None and not wants_classes:
        raise ValueError("--class-images must come with --text-vocabulary, --probe-images, or both")

    from mllm.evaluation.tokenizer import SHEET, TokenizerEvaluation, measure_tokenizer

    names = [field.name for field in fields(TokenizerEvaluation)]
    result = measure_tokenizer(TokenizerEvaluation(**given(options, names)))
    show(protocol.as_table(result), result, options.output / protocol.RESULT_FILE)
    codes = result["extra"]
    print(f"\ncodes: {codes['tokens']} tokens x {codes['codebooks']} codebooks, {codes['bits_per_image']:.0f} bits")
    print("codebook  in use %  entropy nats  perplexity")
    rows = zip(codes["usage"], codes["entropy"], codes["perplexity"], strict=True)
    for index, (usage, entropy, perplexity) in enumerate(rows):
        print(f"{index:<8}  {100 * usage:8.1f}  {entropy:12.2f}  {perplexity:10.1f}")
    print(f"\n{options.output / SHEET}: originals above their reconstructions")


@command(
    "evaluate score",
    "Score the answers of a run or an answer file of LLaVA's runner. No model is needed.",
    "runs/pope --questions llava_pope_test.jsonl --annotations pope/coco",
    *ANSWERS,
    ANNOTATIONS,
    option("--json", type=file_in_existing_folder, metavar="FILE", help="output (default: result.json in the run)"),
    option("--judge-model", metavar="NAME", help="language model that grades open answers (MM-Vet)"),
    option("--judge-url", metavar="URL", help="OpenAI-compatible server (default: OpenAI's)"),
    option("--judge-runs", type=positive_count, default=1, metavar="N", help="gradings per answer (default: 1)"),
    option("--scorer", metavar="NAME", help="scorer of images: self, hf:MODEL or clip-flant5-xxl"),
    option("--scorer-model", metavar="FOLDER", help="model for --scorer self (default: the bundled model)"),
    option("--scorer-device", metavar="DEVICE", help="device of the scorer"),
    option("--scorer-python", type=Path, metavar="FILE", help="Python interpreter of the scorer's environment"),
)
def evaluate_score(options: Namespace) -> None:
    annotations: Path | None = options.annotations
    if annotations is not None and not annotations.exists():
        raise FileNotFoundError(f"--annotations must name the published files, got {annotations}, which does not exist")
    inputs = read_answers(options)
    if annotations is None:
        raise ValueError(f"--annotations must be given for {inputs.benchmark.name}: {inputs.benchmark.annotations}")
    judge = scorer = None
    if judged := given(options, ("judge_model", "judge_url")):
        from mllm.evaluation.mmvet import Judge

        judge = Judge(runs=options.judge_runs, **{name.removeprefix("judge_"): value for name, value in judged.items()})
    if options.scorer is not None:
        from mllm.evaluation.image_text_scorers import find_scorer

        place = {"device": options.scorer_device, "python": options.scorer_python}
        scorer = find_scorer(options.scorer, model=options.scorer_model, **place)
    used = protocol.ScoreOptions(folder=inputs.folder, judge=judge, scorer=scorer)
    result = protocol.make_result(
        inputs.benchmark.name,
        inputs.benchmark.score(inputs.answered, annotations, used),
        run=inputs.run,
        expected=inputs.num_items,
        scored=len(inputs.answered),
        files={"annotations": fingerprint_of(annotations), "questions": fingerprint_of(options.questions)},
    )
    show(protocol.as_table(result), result, options.json or inputs.folder / protocol.RESULT_FILE)


@command(
    "evaluate submit",
    "Write the files that official tools and servers expect.",
    "runs/vqav2 --questions test-dev.jsonl --split llava_vqav2_mscoco_test2015.jsonl",
    *ANSWERS,
    ANNOTATIONS,
    option("--split", type=Path, metavar="FILE", help="question file of the whole split (VQAv2)"),
)
def evaluate_submit(options: Namespace) -> None:
    inputs = read_answers(options)
    num_answered = len(inputs.answered)
    part = "" if num_answered == inputs.num_items else f"  PARTIAL: {num_answered} of {inputs.num_items}"
    files = {"annotations": options.annotations, "split": options.split}
    for path in inputs.benchmark.submit(inputs.answered, inputs.folder, **files):
        print(f"{path}{part}")


@command(
    "evaluate report",
    "Compare results with published ones in a Markdown report.",
    "runs/pope runs/gqa -o report.md",
    option("results", type=Path, nargs="+", metavar="DIR", help="folders of scored runs, or result files"),
    option("-o", "--output", type=file_in_existing_folder, metavar="FILE", help="output file (default: stdout)"),
    option("--name", help="name of the model in the report (default: its fingerprint)"),
)
def evaluate_report(options: Namespace) -> None:
    from mllm.evaluation.report import make_report

    results = [(str(path), protocol.read_result(path)) for path in options.results]
    models = {protocol.model_of(result) for _, result in results}
    if options.name and len(models) > 1:
        raise ValueError(f"--name must be left out for several models, got {', '.join(sorted(models))}")
    text = make_report(results, names={model: options.name for model in models} if options.name else {})
    if options.output is None:
        print(text, end="")
    else:
        write_text(options.output, text)


def run_benchmark(name: str, options: Namespace) -> None:
    """Answer all questions, or those that are left; torchrun and accelerate launch share them among processes."""
    benchmark = protocol.find_benchmark(name)
    draws = benchmark.mode == "image"
    unfit = ("max_new_tokens",) if draws else ("guidance", "resamples")
    if wrong := [*given(options, unfit), *(["best_of"] if options.best_of > 1 and not draws else [])]:
        kind = "images" if draws else "texts"
        raise ValueError(f"{name} must be run without --{wrong[0].replace('_', '-')}: its answers are {kind}")
    if not draws and options.images is None:
        raise ValueError(f"--images must name the folder of the images of {name}, got none")
    items = benchmark.read_items(options.questions, options.images)
    chosen = items[: options.limit]

    from mllm.evaluation.answerer import PipelineAnswerer, describe_run
    from mllm.evaluation.run import RunFolder, run_items, shard_from_environment
    from mllm.pipeline import check_task

    shard, folder = shard_from_environment(), RunFolder(options.output)
    place_on_device(options)
    pipeline = load_pipeline(options)
    check_task(pipeline.tasks, *((benchmark.task or "draw",) if draws else ("ask", "describe")))
    longest = options.max_new_tokens or benchmark.max_new_tokens
    sampling = cast("Overrides", benchmark_sampling(draws, dict(typed_sampling(options)), longest))
    description = describe_run(
        pipeline,
        benchmark,
        options.questions,
        counts=(len(chosen), len(items)),
        seed=options.seed,
        sampling=sampling,
        prompts="rewritten" if options.rewritten else "raw",
    )
    if options.best_of > 1:
        check_task(pipeline.tasks, "ask")
        description["decoding"] |= {"best_of": options.best_of, "chosen_by": f"self, {pipeline.question_form} question"}
    answer = PipelineAnswerer(pipeline, benchmark.mode, sampling, options.best_of)
    is_finished = run_items(chosen, answer, folder, description=description, batch_size=options.batch_size, shard=shard)
    if is_finished:
        score = f"mllm evaluate score {folder.folder} --questions {options.questions}"
        print(f"{folder.answers_file}: {len(chosen)} of {counted(len(items), 'item')}; next: {score} --annotations ...")


def benchmark_sampling(draws: bool, typed: dict[str, Any], max_new_tokens: int | None) -> dict[str, Any]:
    """Texts are generated greedily unless something else was typed, images as the checkpoint says."""
    if draws:
        return typed
    if typed.get("temperature") == 0:  # how LLaVA's scripts ask for greedy decoding
        typed = {}
    return {"greedy": not typed, "max_new_tokens": max_new_tokens, **typed}


def place_on_device(options: Namespace) -> None:
    """With several processes each takes its own GPU, if there are any."""
    import torch

    local_rank = os.environ.get("LOCAL_RANK")
    if options.device is None and local_rank is not None and torch.cuda.is_available():
        options.device = f"cuda:{int(local_rank) % torch.cuda.device_count()}"


class Answers(NamedTuple):
    benchmark: protocol.Benchmark
    answered: list[protocol.AnsweredItem]
    num_items: int  # in the question file
    run: dict[str, Any] | None  # run.json; None for an answers file from elsewhere
    folder: Path  # where files go


def read_answers(options: Namespace) -> Answers:
    """Find the answers of a run or of a file and match them with their questions."""
    from mllm.evaluation.run import RunFolder

    path: Path = options.answers
    if not path.exists():
        raise FileNotFoundError(f"RUN must be the --output of mllm evaluate, got {path}, which does not exist")
    run = RunFolder(path).describe() if path.is_dir() else None
    if run is None and options.benchmark is None:
        raise ValueError(f"--benchmark must say what {path} answers, got none")
    if run is not None and options.benchmark not in (None, run["benchmark"]):
        raise ValueError(f"--benchmark must be {run['benchmark']} for this run, got {options.benchmark}; leave it out")
    benchmark = protocol.find_benchmark(run["benchmark"] if run is not None else options.benchmark)
    items = benchmark.read_items(options.questions, None)
    if run is not None and (found := fingerprint_of(options.questions)) != run["questions"]["fingerprint"]:
        raise ValueError(
            f"--questions must be the file of the run ({run['questions']['file']}, fingerprint "
            f"{run['questions']['fingerprint']}), got {options.questions} with fingerprint {found}"
        )
    asked = items[: run["items"]] if run else items
    lines = read_lines(path) if run is None else RunFolder(path).read_answers(asked, partial=options.partial)
    answered = protocol.match_answers(benchmark, asked, lines, answers=path, partial=options.partial)
    return Answers(benchmark, answered, len(items), run, path if path.is_dir() else path.parent)


for name, (place, questions) in protocol.BENCHMARKS.items():
    file_name = questions if "." in questions else "questions"
    shown = "" if place.startswith("text_to_image:") else "--images images "
    command(
        f"evaluate {name}",
        f"Generate the answers for {name}, to be scored with mllm evaluate score.",
        f"--questions {file_name} {shown}--output runs/{name}",
        option("--questions", type=Path, required=True, metavar="FILE", help=f"question file: {questions}"),
        option("--images", type=Path, metavar="FOLDER", help="folder of the images (required for image understanding)"),
        option("--output", type=Path, required=True, metavar="FOLDER", help="output folder; an existing run resumes"),
        option("--limit", type=positive_count, metavar="N", help="use only the first N items"),
        BATCH_SIZE,
        option("--seed", type=seed_number, default=0, help="random seed; item i uses seed + i (default: 0)"),
        option("--rewritten", action="store_true", help="record in the result that the prompts were rewritten"),
        option("--max-new-tokens", type=positive_count, metavar="N", help="maximum length (default: benchmark's)"),
        BEST_OF,
        *IMAGE_SAMPLING,
        *MODEL,
    )(partial(run_benchmark, name))
