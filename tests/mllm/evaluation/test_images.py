"""Benchmarks of image generation: prompts in, official layouts out, scores against plain references, wrong input."""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.evaluation.images import GenAIBench527, GenAIBench1600, describe_references
from mllm.evaluation.protocol import AnsweredItem, BenchmarkItem, ScoreOptions, match_answers
from mllm.evaluation.run import RunFolder, run_items
from mllm.evaluation.scorers import HubScorer, SelfScorer, T2VScorer, find_scorer
from mllm.files import read_lines
from mllm.pipeline import STRIDE, VQA_SCORE_QUESTION, Pipeline
from tests.mllm.evaluation.builders import write_genai_bench
from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, with room for the longest prompts."""
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), context=400)


# ---- GenAI-Bench ----

DESCRIPTION = {"benchmark": "genai-bench-527", "items": 527, "seed": 3, "model": {"fingerprint": "abc"}}


class BrightnessScorer:
    """Scores an image by its red channel, and counts how many it was given."""

    batch_size, description = 50, {"name": "brightness"}
    num_scored = 0

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        self.num_scored += len(images)
        return [np.asarray(Image.open(path))[0, 0, :2].dot([256, 1]).item() / 65535 for path in images]


def paint(items: Sequence[BenchmarkItem], seeds: Sequence[int], at_once: int) -> Iterable[tuple[int, Image.Image]]:
    """A small image whose color is the item's own."""
    return enumerate(Image.new("RGB", (2, 3), ((37 * seed) % 256, seed % 251, 0)) for seed in seeds)


def test_skills_have_the_mean_deviation_and_interval_of_their_prompts(tmp_path: Path) -> None:
    """All 527 images of the official layout, as the runner leaves them."""
    prompts, skills = write_genai_bench(tmp_path)
    output = RunFolder(tmp_path / "run")
    items = GenAIBench527().read_items(prompts, None)
    assert run_items(items, paint, output, description=DESCRIPTION, batch_size=32)
    answered = match_answers(GenAIBench527(), items, read_lines(output.answers_file), answers=output.folder)
    names = sorted(path.name for path in (output.folder / "images").iterdir())
    assert names == [item.image.name for item in answered] == [f"{number:05d}.png" for number in range(1, 528)]
    options = ScoreOptions(folder=output.folder, scorer=BrightnessScorer())
    scores = GenAIBench527().score(answered, skills, options)
    values = [(37 * (3 + n) % 256 * 256 + (3 + n) % 251) / 65535 for n in range(527)]
    named = json.loads(skills.read_text()) | {"all": list(range(1, 528))}
    assert scores.headline == "advanced" and scores.protocol == "genai-bench-527@vqascore-brightness"
    assert list(scores.scores) == [*GenAIBench527.skills, "all"]
    for name, score in scores.scores.items():
        mine = [values[number - 1] for number in named[name]]
        mean, deviation = statistics.mean(mine), statistics.stdev(mine)
        half = 1.96 * deviation / len(mine) ** 0.5
        expected = [pytest.approx(mean + sign * half, abs=0.15 * half) for sign in (-1, 1)]
        assert [score.low, score.high] == expected and score.count == len(mine)
        assert (score.value, score.std) == (pytest.approx(mean), pytest.approx(deviation))
    GenAIBench527().score(answered, skills, options)
    assert options.scorer.num_scored == 527  # the second time nothing is left to score
    wrong = tmp_path / "wrong_skills.json"
    for content, message in (
        (named | {"negation": [528]}, "negation"),
        (named | {"scene": [3, 3]}, "scene"),
        (named | {"scene": [1.5]}, "1.5"),
        (named | {"scene": 4}, "skills.json"),
        ({"basic": [1]}, "advanced"),
    ):
        wrong.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            GenAIBench527().score(answered, wrong, options)


def test_the_set_of_1600_counts_from_zero_and_from_one_where_the_file_does(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    for first in (0, 1):
        prompts, skills = write_genai_bench(tmp_path / str(first), size=1600, first=first)
        items = GenAIBench1600().read_items(prompts, None)[:200]
        answered = [AnsweredItem(item, image=tmp_path / "a.png") for item in items]
        scores = GenAIBench1600().score(answered, skills, ScoreOptions(folder=tmp_path, scorer=BrightnessScorer()))
        assert scores.scores["basic"].count == 200 and "advanced" not in scores.scores
        assert scores.protocol == "genai-bench-1600@vqascore-brightness"


def test_the_command_draws_resumes_and_scores_with_the_model_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, skills = write_genai_bench(tmp_path)
    output = tmp_path / "run"
    model = ["--model", str(folder), "--device", "cpu"]
    words = ["evaluate", "genai-bench-527", "--questions", str(prompts), "--output", str(output), "--limit", "3"]
    assert main([*words, *model, "--best-of", "2", "--seed", "9"]) == 0
    images = [output / "images" / f"0000{n}.png" for n in (1, 2, 3)]
    assert sorted((output / "images").iterdir()) == images
    best = Pipeline.load(folder, device="cpu").draw("a red circle number 1", best_of=2, seed=10)[0]
    assert best.info["seed"] in (10, 10 + STRIDE) and Image.open(images[1]).tobytes() == best.tobytes()
    assert "give --scorer" in refusal(prompts, output, capsys, "--annotations", str(skills))
    words = ["--annotations", str(skills), "--scorer", "self", "--scorer-model", str(folder), "--scorer-device", "cpu"]
    result = score(prompts, output, *words)
    assert "PARTIAL: 3 of 527 items" in capsys.readouterr().out and not result["is_complete"]
    assert (result["judge"]["name"], result["judge"]["dtype"]) == ("self", "float32")
    assert (result["decoding"]["best_of"], result["image_format"]["file"], result["prompts"]) == (2, "png", "raw")
    expected = SelfScorer.load(str(folder), device="cpu")(images, prompts.read_text().splitlines()[:3])
    assert result["scores"]["all"]["value"] == pytest.approx(statistics.mean(expected), rel=1e-5)


def test_a_model_of_transformers_scores_by_its_first_word(folder: Path, tmp_path: Path) -> None:
    scorer = HubScorer.load(str(folder), device="cpu")
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
        "import torch\n"
        "class VQAScore:\n"
        "    def __init__(self, model):\n"
        "        print('loading', model)\n"
        "    def batch_forward(self, dataset, batch_size):\n"
        "        assert batch_size == len(dataset)\n"
        "        return torch.tensor([[[len(pair['texts'][0]) / 10]] for pair in dataset])\n"
    )
    (tmp_path / "t2v_metrics-3.0.dist-info").mkdir()
    (tmp_path / "t2v_metrics-3.0.dist-info" / "METADATA").write_text("Name: t2v-metrics\nVersion: 3.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scorer = T2VScorer("clip-flant5-xxl", python=Path(sys.executable))
    assert scorer.description == {"name": "clip-flant5-xxl", "t2v-metrics": "3.0"}
    try:
        assert scorer([tmp_path / "a.png", tmp_path / "b.png"], ["abc", "abcde"]) == pytest.approx([0.3, 0.5])
        assert scorer([tmp_path / "c.png"], ["a"]) == pytest.approx([0.1])
    finally:
        scorer.process.stdin.close()
        scorer.process.wait()


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    prompts, _ = write_genai_bench(tmp_path)
    with pytest.raises(ValueError, match="genai-bench-527"):
        GenAIBench1600().read_items(prompts, None)
    prompts.write_text("a\n\nb")
    with pytest.raises(ValueError, match="1 empty"):
        GenAIBench527().read_items(prompts, None)
    with pytest.raises(FileNotFoundError, match="pip install -r scripts/requirements-t2v.txt"):
        _ = T2VScorer("clip-flant5-xxl", python=tmp_path / "none").description
    for name, message in (("eyes", "eyes"), (f"hf:{tmp_path}", str(tmp_path))):
        with pytest.raises(ValueError, match=message):
            find_scorer(name, model=None, device="cpu", python=None)


# ---- official layouts ----


def draw(folder: Path, benchmark: str, questions: Path, output: Path) -> set[str]:
    """Run a benchmark; the images it wrote."""
    words = ["--questions", str(questions), "--output", str(output), "--model", str(folder), "--device", "cpu"]
    assert main(["evaluate", benchmark, *words]) == 0
    return {str(path.relative_to(output)) for path in output.rglob("*.png")}


def score(questions: Path, output: Path, *more: str) -> dict:
    assert main(["evaluate", "score", str(output), "--questions", str(questions), *more]) == 0
    return json.loads((output / "result.json").read_text())


def refusal(questions: Path, output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", "score", str(output), "--questions", str(questions), *more]) == 2
    return capsys.readouterr().err


def submit(questions: Path, output: Path) -> None:
    assert main(["evaluate", "submit", str(output), "--questions", str(questions)]) == 0


def test_geneval(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output, results = (tmp_path / name for name in ("metadata.jsonl", "run", "results.jsonl"))
    tags = ("single_object", "counting")
    lines = [json.dumps({"tag": tag, "include": [], "prompt": f"a photo of {tag}"}) for tag in tags]
    questions.write_text("\n".join(lines))
    names = draw(folder, "geneval", questions, output)
    assert names == {f"0000{index}/samples/000{sample}.png" for index in range(2) for sample in range(4)}
    submit(questions, output)
    assert (output / "00001" / "metadata.jsonl").read_text() == lines[1]
    records = [
        {"filename": str(output / name), "tag": tags[int(name[4])], "correct": name[4] == "0" or name[-5] == "3"}
        for name in sorted(names)
    ]
    results.write_text("\n".join(map(json.dumps, records)))
    result = score(questions, output, "--annotations", str(results))
    values = {name: value["value"] for name, value in result["scores"].items()}
    assert values == {"overall": 62.5, "single_object": 100.0, "counting": 25.0}
    assert result["protocol"] == "geneval@official-detector-custom-8"
    for wrong, message in ((records[1:], "got 7"), ([records[0], *records], "results.jsonl, line 2")):
        results.write_text("\n".join(map(json.dumps, wrong)))
        assert message in refusal(questions, output, capsys, "--annotations", str(results))


def test_dpg_bench(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output, results = (tmp_path / name for name in ("prompts", "run", "results.txt"))
    questions.mkdir()
    (questions / "partiprompts7.txt").write_text("a long prompt\n")
    assert draw(folder, "dpg-bench", questions, output) == {f"samples/partiprompts7/{n}.png" for n in range(4)}
    submit(questions, output)
    grid = np.asarray(Image.open(output / "grids" / "partiprompts7.png"))
    for n in range(4):
        quarter = grid[n // 2 * 32 :, n % 2 * 32 :][:32, :32]
        assert (quarter == np.asarray(Image.open(output / f"samples/partiprompts7/{n}.png"))).all()
    assert "ELLA" in refusal(questions, output, capsys)
    results.write_text("L1: 5\nDPG-Bench score: 81.25\n")
    assert score(questions, output, "--annotations", str(results))["scores"]["overall"]["value"] == 81.25


def test_t2i_compbench(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions, output, results = (tmp_path / name for name in ("color_val.txt", "run", "vqa_result.json"))
    questions.write_text("a red bench\na blue bowl\n")
    names = draw(folder, "t2i-compbench", questions, output)
    assert {"samples/a red bench_000009.png", "samples/a blue bowl_000010.png"} < names and len(names) == 20
    results.write_text(json.dumps([{"question_id": n, "answer": str(n / 20)} for n in range(20)]))
    found = score(questions, output, "--annotations", str(results))["scores"]["overall"]["value"]
    assert found == pytest.approx(0.475)
    results.write_text("[]")
    assert "got 0" in refusal(questions, output, capsys, "--annotations", str(results))


def test_mjhq(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID itself is clean-fid's; here a function in its place says which folders it was given."""
    questions, output, real = tmp_path / "meta_data.json", tmp_path / "run", tmp_path / "real"
    records = {"a1": "animals", "b2": "food", "c3": "food"}
    questions.write_text(json.dumps({name: {"category": c, "prompt": f"a {c}"} for name, c in records.items()}))
    assert draw(folder, "mjhq-30k", questions, output) == {f"images/{c}/{name}.png" for name, c in records.items()}
    for category in records.values():
        (real / category).mkdir(parents=True, exist_ok=True)
    annotations = ["--annotations", str(real)]
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    assert "pip install 'mllm-toolkit[eval-images]'" in refusal(questions, output, capsys, *annotations)
    asked: list[tuple[str, str]] = []

    def compute_fid(first: str, second: str) -> float:
        asked.append((first, second))
        return float(len(asked))

    for name in ("cleanfid", "cleanfid.fid"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(compute_fid=compute_fid))
    assert "got none" in refusal(questions, output, capsys, *annotations)
    Image.new("RGB", (4, 4)).save(real / "food" / "b2.jpg")
    result = score(questions, output, *annotations)
    pairs = [(real, output / "images")] + [(real / c, output / "images" / c) for c in ("animals", "food")]
    assert asked == [(str(a), str(b)) for a, b in pairs]
    found = {name: (s["value"], s["count"]) for name, s in result["scores"].items()}
    assert found == {"FID": (1.0, 3), "FID animals": (2.0, 1), "FID food": (3.0, 2)}
    assert (
        result["protocol"] == "mjhq-30k@clean-fid-png-against-jpg-4x4-custom-3" and "clean-fid" in result["scored_with"]
    )
    Image.new("RGB", (5, 4)).save(real / "animals" / "a1.png")
    assert describe_references(real) == "jpg-png-mixed-sizes"


def test_class_samples_for_the_evaluator_of_adm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_tiny_folder(
        tmp_path / "model", layout="bare", prompt_style="class", num_classes=4, tasks=["draw_class"], image_guidance=1.0
    )
    questions, output = tmp_path / "classes.txt", tmp_path / "run"
    questions.write_text("3\n0\n3\n")
    names = sorted(draw(folder, "class-samples", questions, output))
    assert names == [f"images/00000{n}.png" for n in (1, 2, 3)]
    submit(questions, output)
    archive = np.load(output / "samples_3x32x32x3.npz")
    assert archive["arr_0"].dtype == np.uint8 and archive["arr_1"].tolist() == [3, 0, 3]
    assert all((archive["arr_0"][n] == np.asarray(Image.open(output / names[n]))).all() for n in range(3))
    assert "guided-diffusion" in refusal(questions, output, capsys)
