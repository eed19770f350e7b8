"""Benchmarks of image generation: prompts in, official layouts out, scores against plain references, wrong input."""

import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm.cli.main import COMMANDS, main
from mllm.conversation import ClassPart, Message
from mllm.evaluation.answerer import as_message
from mllm.evaluation.image_text_scorers import find_scorer
from mllm.evaluation.protocol import (
    BENCHMARKS,
    AnsweredItem,
    Benchmark,
    BenchmarkItem,
    ScoreOptions,
    Scores,
    find_benchmark,
    match_answers,
)
from mllm.evaluation.run import RunFolder, run_items
from mllm.evaluation.text_to_image import (
    MJHQ30K,
    ClassSamples,
    DPGBench,
    GenAIBench527,
    GenAIBench1600,
    GenEval,
    T2ICompBench,
    describe_references,
)
from mllm.files import read_json, read_lines
from mllm.pipeline import STRIDE, VQA_SCORE_QUESTION, Pipeline
from tests.mllm.evaluation.builders import write_genai_bench, write_json, write_jsonl
from tokenizer.images import read_image


class Run:
    """All images of a benchmark as a run leaves them, painted without a model: each in a color of its own."""

    def __init__(self, benchmark: Benchmark, questions: Path, folder: Path) -> None:
        self.benchmark, self.folder, output = benchmark, folder, RunFolder(folder)
        items = benchmark.read_items(questions, None)
        description = {"benchmark": benchmark.name, "items": len(items), "seed": 3, "model": {"fingerprint": "x"}}
        assert run_items(items, self.paint, output, description=description, batch_size=32)
        self.answered = match_answers(benchmark, items, read_lines(output.answers_file), answers=folder)

    def paint(
        self, items: Sequence[BenchmarkItem], seeds: Sequence[int], at_once: int
    ) -> Iterable[tuple[int, Image.Image]]:
        return enumerate(Image.new("RGB", (2, 3), ((37 * seed) % 256, seed % 251, 0)) for seed in seeds)

    @property
    def names(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*.png")}

    def pixels(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(self.folder / name))

    def score(self, annotations: Path, **options: Any) -> Scores:
        return self.benchmark.score(self.answered, annotations, ScoreOptions(folder=self.folder, **options))

    def submit(self) -> None:
        self.benchmark.submit(self.answered, self.folder, annotations=None, split=None)


# ---- GenAI-Bench ----


class BrightnessScorer:
    """Scores an image by its first two channels, and counts how many it was given."""

    batch_size, description = 50, {"name": "brightness"}
    num_scored = 0

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        self.num_scored += len(images)
        return [np.asarray(Image.open(path))[0, 0, :2].dot([256, 1]).item() / 65535 for path in images]


def test_skills_have_the_mean_deviation_and_interval_of_their_prompts(tmp_path: Path) -> None:
    """All 527 images of the official layout, as the runner leaves them."""
    prompts, skills = write_genai_bench(tmp_path)
    run, scorer = Run(GenAIBench527(), prompts, tmp_path / "run"), BrightnessScorer()
    names = [one.image.name for one in run.answered]
    assert names == [f"{number:05d}.png" for number in range(1, 528)] and len(run.names) == 527
    scores = run.score(skills, scorer=scorer)
    values = [(37 * (3 + n) % 256 * 256 + (3 + n) % 251) / 65535 for n in range(527)]
    named = read_json(skills) | {"all": list(range(1, 528))}
    assert scores.headline == "advanced" and scores.protocol == "genai-bench-527@vqascore-brightness"
    assert list(scores.scores) == [*GenAIBench527.skills, "all"]
    for name, score in scores.scores.items():
        mine = [values[number - 1] for number in named[name]]
        mean, deviation = statistics.mean(mine), statistics.stdev(mine)
        half = 1.96 * deviation / len(mine) ** 0.5
        expected = [pytest.approx(mean + sign * half, abs=0.15 * half) for sign in (-1, 1)]
        assert [score.low, score.high] == expected and score.count == len(mine)
        assert (score.value, score.std) == (pytest.approx(mean), pytest.approx(deviation))
    run.score(skills, scorer=scorer)
    assert scorer.num_scored == 527  # the second time nothing is left to score
    for content, message in (
        (named | {"negation": [528]}, "negation"),
        (named | {"scene": [3, 3]}, "scene"),
        (named | {"scene": [1.5]}, r"1\.5"),
        ({"basic": [1]}, "advanced"),
    ):
        with pytest.raises(ValueError, match=message):
            run.score(write_json(tmp_path / "wrong_skills.json", content), scorer=scorer)


def test_the_set_of_1600_counts_from_zero_and_from_one_where_the_file_does(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    for first in (0, 1):
        prompts, skills = write_genai_bench(tmp_path / str(first), size=1600, first=first)
        items = GenAIBench1600().read_items(prompts, None)[:200]
        answered = [AnsweredItem(item, image=tmp_path / "a.png") for item in items]
        scores = GenAIBench1600().score(answered, skills, ScoreOptions(folder=tmp_path, scorer=BrightnessScorer()))
        assert scores.scores["basic"].count == 200 and "advanced" not in scores.scores
        assert scores.protocol == "genai-bench-1600@vqascore-brightness"
        with pytest.raises(ValueError, match="genai-bench-1600"):
            GenAIBench527().read_items(prompts, None)


def test_the_command_draws_resumes_and_scores_with_the_model_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, skills = write_genai_bench(tmp_path)
    output, questions = tmp_path / "run", ["--questions", str(prompts)]
    words = [*questions, "--output", str(output), "--limit", "3", "--model", str(folder), "--device", "cpu"]
    assert main(["evaluate", "genai-bench-527", *words, "--best-of", "2", "--seed", "9"]) == 0
    images = [output / "images" / f"0000{n}.png" for n in (1, 2, 3)]
    assert sorted((output / "images").iterdir()) == images
    best = Pipeline.load(folder, device="cpu").draw("a red circle number 1", best_of=2, seed=10)[0]
    assert best.info["seed"] in (10, 10 + STRIDE) and Image.open(images[1]).tobytes() == best.tobytes()
    score = ["evaluate", "score", str(output), *questions, "--annotations", str(skills)]
    assert main(score) == 2 and "give --scorer" in capsys.readouterr().err
    assert main([*score, "--scorer", "self", "--scorer-model", str(folder), "--scorer-device", "cpu"]) == 0
    result = read_json(output / "result.json")
    assert "PARTIAL: 3 of 527 items" in capsys.readouterr().out and not result["is_complete"]
    assert (result["judge"]["name"], result["judge"]["dtype"]) == ("self", "float32")
    assert (result["decoding"]["best_of"], result["image_format"]["file"], result["prompts"]) == (2, "png", "raw")
    opened, texts = [read_image(path) for path in images], prompts.read_text().splitlines()[:3]
    expected = Pipeline.load(folder, device="cpu").score(opened, texts)
    assert result["scores"]["all"]["value"] == pytest.approx(statistics.mean(expected), rel=1e-5)


def test_the_example_in_the_help_has_images_where_the_benchmark_shows_some() -> None:
    import_module("mllm.cli.evaluation")
    for name in BENCHMARKS:
        assert ("--images" in COMMANDS[f"evaluate {name}"].example) == (find_benchmark(name).mode == "text"), name


def test_a_model_of_transformers_scores_by_its_first_word(folder: Path, tmp_path: Path) -> None:
    scorer = find_scorer(f"hf:{folder}", model=None, device="cpu", python=None)
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    inputs = scorer.processor(Image.open(image), VQA_SCORE_QUESTION.format(text="a circle"))
    logits = scorer.model(**inputs).logits[0, -1].float()
    yes = scorer.processor.tokenizer.encode("Yes", add_special_tokens=False)[0]
    assert scorer([image], ["a circle"]) == [pytest.approx(logits.softmax(-1)[yes].item(), rel=1e-3)]
    assert scorer.description["name"] == f"hf:{folder}" and scorer.description["dtype"] == "float32"


def test_clip_flant5_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small module of the tool's interface in the place of the tool, which does not install beside ours."""
    (tmp_path / "t2v_metrics.py").write_text(
        "import numpy\n"
        "class VQAScore:\n"
        "    def __init__(self, model):\n"
        "        print('loading', model)\n"
        "    def batch_forward(self, dataset, batch_size):\n"
        "        assert batch_size == len(dataset)\n"
        "        return numpy.array([[[len(pair['texts'][0]) / 10]] for pair in dataset])\n"
    )
    (tmp_path / "t2v_metrics-3.0.dist-info").mkdir()
    (tmp_path / "t2v_metrics-3.0.dist-info" / "METADATA").write_text("Name: t2v-metrics\nVersion: 3.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scorer = find_scorer("clip-flant5-xxl", model=None, device=None, python=Path(sys.executable))
    assert scorer.description == {"name": "clip-flant5-xxl", "t2v-metrics": "3.0"}
    try:
        assert scorer([tmp_path / "a.png", tmp_path / "b.png"], ["abc", "abcde"]) == pytest.approx([0.3, 0.5])
        assert scorer([tmp_path / "c.png"], ["a"]) == pytest.approx([0.1])
    finally:
        scorer.process.stdin.close()
        scorer.process.wait()


# ---- official layouts ----


def test_geneval(tmp_path: Path) -> None:
    tags = ("single_object", "counting")
    asked = [{"tag": tag, "include": [], "prompt": f"a photo of {tag}"} for tag in tags]
    run = Run(GenEval(), write_jsonl(tmp_path / "metadata.jsonl", asked), tmp_path / "run")
    assert run.names == {f"0000{index}/samples/000{sample}.png" for index in range(2) for sample in range(4)}
    run.submit()
    assert read_json(run.folder / "00001" / "metadata.jsonl") == asked[1]
    right = {name: name[4] == "0" or name[-5] == "3" for name in sorted(run.names)}
    records = [{"filename": f"/x/{name}", "tag": tags[int(name[4])], "correct": right[name]} for name in right]
    scores = run.score(write_jsonl(tmp_path / "results.jsonl", records))
    assert scores.protocol == "geneval@official-detector-custom-8"
    values = {name: score.value for name, score in scores.scores.items()}
    assert values == {"overall": 62.5, "single_object": 100.0, "counting": 25.0}
    mistagged = [{**records[0], "tag": "shape"}, *records[1:]]
    for wrong, message in (
        *((records[1:], "got 7"), ([records[0], *records], r"results\.jsonl, line 2")),
        (mistagged, "line 1 must have a tag of single_object.*, got 'shape'"),
    ):
        with pytest.raises(ValueError, match=message):
            run.score(write_jsonl(tmp_path / "results.jsonl", wrong))


def test_dpg_bench_and_t2i_compbench(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "partiprompts7.txt").write_text("a long prompt\n")
    run = Run(DPGBench(), tmp_path / "prompts", tmp_path / "dpg")
    assert run.names == {f"samples/partiprompts7/{n}.png" for n in range(4)}
    run.submit()
    grid = run.pixels("grids/partiprompts7.png")
    for n in range(4):
        quarter = grid[n // 2 * 3 :, n % 2 * 2 :][:3, :2]
        assert (quarter == run.pixels(f"samples/partiprompts7/{n}.png")).all()
    (tmp_path / "results.txt").write_text("L1: 5\nDPG-Bench score: 81.25\n")
    assert run.score(tmp_path / "results.txt").scores["overall"].value == 81.25

    (tmp_path / "color_val.txt").write_text("a red bench\na blue bowl\n")
    run = Run(T2ICompBench(), tmp_path / "color_val.txt", tmp_path / "compbench")
    assert {"samples/a red bench_000009.png", "samples/a blue bowl_000010.png"} < run.names and len(run.names) == 20
    results = write_json(tmp_path / "vqa.json", [{"question_id": n, "answer": str(n / 20)} for n in range(20)])
    assert run.score(results).scores["overall"].value == pytest.approx(0.475)
    for wrong in ([], [{"question_id": 0}] * 20, [{"answer": "yes"}] * 20):
        with pytest.raises(ValueError, match=r"vqa\.json must have"):
            run.score(write_json(tmp_path / "vqa.json", wrong))


def test_mjhq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FID itself is clean-fid's; here a function in its place says which folders it was given."""
    categories, real = {"a1": "animals", "b2": "food", "c3": "food"}, tmp_path / "real"
    records = {name: {"category": category, "prompt": f"a {category}"} for name, category in categories.items()}
    run = Run(MJHQ30K(), write_json(tmp_path / "meta_data.json", records), tmp_path / "run")
    assert run.names == {f"images/{category}/{name}.png" for name, category in categories.items()}
    for category in categories.values():
        (real / category).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(real / "food" / "b2.jpg")
    asked: list[tuple[str, str]] = []

    def compute_fid(first: str, second: str) -> float:
        asked.append((first, second))
        return float(len(asked))

    for name in ("cleanfid", "cleanfid.fid"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(compute_fid=compute_fid))
    scores, made = run.score(real), run.folder / "images"
    pairs = [(real, made), *((real / name, made / name) for name in ("animals", "food"))]
    assert asked == [(str(a), str(b)) for a, b in pairs]
    found = {name: (score.value, score.count) for name, score in scores.scores.items()}
    assert found == {"FID": (1.0, 3), "FID animals": (2.0, 1), "FID food": (3.0, 2)}
    assert scores.protocol == "mjhq-30k@clean-fid-png-against-jpg-4x4-custom-3"
    Image.new("RGB", (5, 4)).save(real / "animals" / "a1.png")
    assert describe_references(real) == "jpg-png-mixed-sizes"


def test_class_samples_for_the_evaluator_of_adm(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("3\n0\n3\n")
    run = Run(ClassSamples(), tmp_path / "classes.txt", tmp_path / "run")
    asked = [as_message(one.item) for one in run.answered]
    assert asked == [Message("user", (ClassPart(number),)) for number in (3, 0, 3)]
    run.submit()
    archive = np.load(run.folder / "samples_3x3x2x3.npz")
    assert archive["arr_0"].dtype == np.uint8 and archive["arr_1"].tolist() == [3, 0, 3]
    assert all((archive["arr_0"][n] == run.pixels(f"images/00000{n + 1}.png")).all() for n in range(3))
    with pytest.raises(ValueError, match="guided-diffusion"):
        run.score(tmp_path)
