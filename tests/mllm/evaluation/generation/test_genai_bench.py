"""GenAI-Bench end to end: prompts in, numbered PNG files out, skills scored; arithmetic against a plain reference."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.evaluation.generation.genai_bench import BENCHMARK_527, BENCHMARK_1600
from mllm.evaluation.protocol import Answered, Item, ScoreOptions, match_answers
from mllm.evaluation.run import RunFolder, run_items
from mllm.evaluation.scorers import HubScorer, SelfScorer, T2VScorer, find_scorer
from mllm.files import read_lines
from mllm.pipeline import GENAI_QUESTION, STRIDE, Pipeline
from tests.mllm.evaluation.generation.genai_data import write_genai_bench

DESCRIPTION = {"benchmark": "genai-bench-527", "items": 527, "seed": 3, "model": {"fingerprint": "abc"}}


class BrightnessScorer:
    """Scores a picture by its red channel, and counts how many it was given."""

    batch_size = 50

    def __init__(self) -> None:
        self.num_scored = 0

    @property
    def description(self) -> Mapping[str, Any]:
        return {"name": "brightness"}

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        self.num_scored += len(pictures)
        return [np.asarray(Image.open(path))[0, 0, :2].dot([256, 1]).item() / 65535 for path in pictures]


def paint(items: Sequence[Item], seeds: Sequence[int]) -> list[str | Image.Image]:
    """A small picture whose color is the item's own."""
    return [Image.new("RGB", (2, 3), ((37 * seed) % 256, seed % 251, 0)) for seed in seeds]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, list[Answered]]:
    """All 527 pictures of the official layout, as the runner leaves them."""
    data = tmp_path_factory.mktemp("genai")
    prompts, skills = write_genai_bench(data)
    items = BENCHMARK_527.read_items(prompts, None)
    output = RunFolder(data / "run")
    assert run_items(items, paint, output, description=DESCRIPTION, batch_size=32)
    answered = match_answers(BENCHMARK_527, items, read_lines(output.answers_file), answers=output.folder)
    return prompts, skills, output.folder, answered


def test_pictures_are_png_files_numbered_from_one(run: tuple[Path, Path, Path, list[Answered]]) -> None:
    names = sorted(path.name for path in (run[2] / "images").iterdir())
    assert names == [f"{number:05d}.png" for number in range(1, 528)]
    assert [item.image.name for item in run[3] if item.image] == names


def test_skills_have_the_mean_deviation_and_interval_of_their_prompts(
    run: tuple[Path, Path, Path, list[Answered]],
) -> None:
    _, skills, folder, answered = run
    scorer = BrightnessScorer()
    scores = BENCHMARK_527.score(answered, ScoreOptions(annotations=skills, folder=folder, judge=scorer))
    values = [(37 * (3 + n) % 256 * 256 + (3 + n) % 251) / 65535 for n in range(527)]
    named = json.loads(skills.read_text()) | {"all": list(range(1, 528))}
    assert scores.headline == "advanced" and scores.protocol == "genai-bench-527@vqascore-brightness"
    assert list(scores.scores) == [
        *("attribute", "scene", "spatial relation", "action relation", "part relation", "basic"),
        *("counting", "comparison", "differentiation", "negation", "universal", "advanced", "all"),
    ]
    for name, score in scores.scores.items():
        mine = [values[number - 1] for number in named[name]]
        assert score.count == len(mine)
        assert score.value == pytest.approx(statistics.mean(mine))
        assert score.std == pytest.approx(statistics.stdev(mine))
        half = 1.96 * statistics.stdev(mine) / len(mine) ** 0.5
        assert (score.low, score.high) == (
            pytest.approx(score.value - half, abs=0.15 * half),
            pytest.approx(score.value + half, abs=0.15 * half),
        )
    BENCHMARK_527.score(answered, ScoreOptions(annotations=skills, folder=folder, judge=scorer))
    assert scorer.num_scored == 527  # the second time nothing is left to score


def test_the_set_of_1600_counts_from_zero_and_from_one_where_the_file_does(tmp_path: Path) -> None:
    for first in (0, 1):
        prompts, skills = write_genai_bench(tmp_path / str(first), size=1600, first=first)
        items = BENCHMARK_1600.read_items(prompts, None)[:200]
        image = tmp_path / "a.png"
        Image.new("RGB", (2, 2)).save(image)
        answered = [Answered(item, text="", image=image) for item in items]
        scores = BENCHMARK_1600.score(answered, ScoreOptions(annotations=skills, judge=BrightnessScorer()))
        assert scores.scores["basic"].count == 200 and "advanced" not in scores.scores
        assert scores.protocol == "genai-bench-1600@vqascore-brightness"


def test_the_command_draws_resumes_and_scores_with_the_model_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, skills = write_genai_bench(tmp_path)
    output = str(tmp_path / "run")
    model = ["--model", str(folder), "--device", "cpu"]
    words = ["evaluate", "genai-bench-527", "--questions", str(prompts), "--output", output, "--limit", "3"]
    assert main([*words, *model, "--best-of", "2", "--seed", "9"]) == 0
    assert sorted(path.name for path in (tmp_path / "run" / "images").iterdir()) == [f"0000{n}.png" for n in (1, 2, 3)]
    best = Pipeline.load(folder, device="cpu").draw("a red circle number 1", best_of=2, seed=10)[0]
    assert best.info["seed"] in (10, 10 + STRIDE)
    assert Image.open(tmp_path / "run/images/00002.png").tobytes() == best.tobytes()
    score = ["evaluate", "score", output, "--questions", str(prompts), "--annotations", str(skills)]
    assert main(score) == 2
    assert "give --scorer" in capsys.readouterr().err
    assert main([*score, "--scorer", "self", "--scorer-model", str(folder), "--scorer-device", "cpu"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "PARTIAL: 3 of 527 items" in printed and not result["is_complete"]
    assert (result["judge"]["name"], result["judge"]["dtype"]) == ("self", "float32")
    assert result["decoding"]["best_of"] == 2
    assert result["image_format"]["file"] == "png" and result["prompts"] == "raw"
    scorer = SelfScorer.load(str(folder), device="cpu")
    texts = prompts.read_text().splitlines()[:3]
    expected = scorer([tmp_path / "run" / "images" / f"0000{n}.png" for n in (1, 2, 3)], texts)
    assert result["scores"]["all"]["value"] == pytest.approx(statistics.mean(expected), rel=1e-5)


def test_a_model_of_transformers_scores_by_its_first_word(folder: Path, tmp_path: Path) -> None:
    scorer = HubScorer.load(str(folder), device="cpu")
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    inputs = scorer.processor(Image.open(picture), GENAI_QUESTION.format(text="a circle"))
    logits = scorer.model(**inputs).logits[0, -1].float()
    yes = scorer.processor.tokenizer.encode("Yes", add_special_tokens=False)[0]
    assert scorer([picture], ["a circle"]) == [pytest.approx(logits.softmax(-1)[yes].item(), rel=1e-3)]
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
        scorer.close()


def test_what_is_missing_or_wrong_is_named(tmp_path: Path, run: tuple[Path, Path, Path, list[Answered]]) -> None:
    prompts, skills, _, answered = run
    with pytest.raises(ValueError, match="is the other GenAI-Bench: found 527 prompts, this one has 1600"):
        BENCHMARK_1600.read_items(prompts, None)
    with pytest.raises(FileNotFoundError, match="pip install -r scripts/requirements-t2v.txt"):
        _ = T2VScorer("clip-flant5-xxl", python=tmp_path / "none").description
    with pytest.raises(ValueError, match="there is no scorer 'eyes'"):
        find_scorer("eyes", model=None, device=None, python=None)
    with pytest.raises(ValueError, match="is no image-text model"):
        find_scorer(f"hf:{tmp_path}", model=None, device="cpu", python=None)
    empty = tmp_path / "prompts.txt"
    empty.write_text("a\n\nb")
    with pytest.raises(ValueError, match="line 2 has no prompt"):
        BENCHMARK_527.read_items(empty, None)
    for change, message in (
        ({"negation": [528]}, "found number 528 in 'negation'"),
        ({"scene": [3, 3]}, "found a number twice in 'scene'"),
        ({"scene": [1.5]}, "names a prompt by 1.5"),
        ({"scene": 4}, "names no skills"),
    ):
        wrong = tmp_path / "skills.json"
        wrong.write_text(json.dumps(json.loads(skills.read_text()) | change))
        with pytest.raises(ValueError, match=message):
            BENCHMARK_527.score(answered, ScoreOptions(annotations=wrong, judge=BrightnessScorer()))
    wrong.write_text(json.dumps({"basic": [1]}))
    with pytest.raises(ValueError, match="has no 'advanced'"):
        BENCHMARK_527.score(answered, ScoreOptions(annotations=wrong, judge=BrightnessScorer()))
