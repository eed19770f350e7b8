"""Best of N: which seeds are drawn, which picture is kept, what the model's own opinion is worth, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import ImagePart, Message, TextPart
from mllm.pipeline import STRIDE, Pipeline, candidate_seeds, index_of_best, judge_pictures, keep_best, questions_about
from mllm.world.reader import Demand
from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), context=400)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu", dtype="float32")


def random_pictures(count: int) -> list[Image.Image]:
    levels = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in levels]


def test_the_best_of_every_group_is_kept_and_the_first_of_equals() -> None:
    pictures = random_pictures(6)
    kept = keep_best(pictures, [0.1, 0.7, 0.7, 0.5, 0.2, 0.3], best_of=3)
    assert kept == [pictures[1], pictures[3]]
    assert kept[0].info == {"score": 0.7, "best_of": 3}
    assert index_of_best([0.0, 0.0]) == 0


def test_candidates_are_nested_and_do_not_meet_those_of_neighbours() -> None:
    assert candidate_seeds(5, 4) == candidate_seeds(5, 16)[:4] and candidate_seeds(5, 1) == [5]
    seeds = [seed for first in range(2000) for seed in candidate_seeds(first, 16)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)


def test_the_kept_picture_is_the_one_that_the_judge_prefers_among_all_candidates(pipeline: Pipeline) -> None:
    best = pipeline.draw("a red circle", n=2, best_of=3, seed=7)
    for index, picture in enumerate(best):
        seeds = [7 + index + j * STRIDE for j in range(3)]
        candidates = [pipeline.draw("a red circle", seed=seed)[0] for seed in seeds]
        scores = [pipeline.judge([candidate], ["a red circle"])[0] for candidate in candidates]
        assert picture.info["seed"] == seeds[int(np.argmax(scores))]
        assert picture.info["score"] == pytest.approx(max(scores), rel=1e-4)
        assert picture.tobytes() == candidates[int(np.argmax(scores))].tobytes()


@pytest.mark.parametrize("form", ["genai", "world"])
def test_the_score_is_the_probability_of_the_answers_word_by_word(pipeline: Pipeline, form: str) -> None:
    pictures, texts = random_pictures(3), ["a red circle above a blue star", "no hearts", "a small green square"]
    scores = judge_pictures(pipeline.model, pipeline.processor, pictures, texts, form=form, batch_size=2)
    expected = [
        math.prod(plain_probability(pipeline, picture, demand) for demand in questions_about(text, form))
        for picture, text in zip(pictures, texts, strict=True)
    ]
    assert scores == pytest.approx(expected, rel=1e-3)
    assert all(0 < score < 1 for score in scores)


def plain_probability(pipeline: Pipeline, picture: Image.Image, demand: Demand) -> float:
    """One answer alone, one forward pass per word, nothing padded."""
    asked = [Message("user", (ImagePart(picture), TextPart(demand.question)))]
    prompt = pipeline.processor.build(asked, add_generation_prompt=True, answer="text")
    whole = pipeline.processor.build([*asked, Message("assistant", (TextPart(demand.expected),))])
    probability = 1.0
    for length in range(len(prompt), len(whole) - 1):
        with torch.no_grad():
            logits = pipeline.model(
                torch.from_numpy(whole.token_ids_T[None, :length]),
                codes=torch.from_numpy(whole.codes_PK),
                image_lengths=torch.from_numpy(whole.image_lengths_I),
            ).logits[0, -1]
        probability *= logits.softmax(dim=-1)[whole.token_ids_T[length]].item()
    return probability


def test_only_the_bundled_model_is_asked_in_the_words_of_the_world(pipeline: Pipeline) -> None:
    assert pipeline.question_form == "genai"
    assert Pipeline.load(None, device="cpu").question_form == "world"


def test_the_command_keeps_the_best_and_says_its_score(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["draw", "a red circle", "-o", str(tmp_path / "a.png"), "--model", str(folder), "--device", "cpu"]
    assert main([*words, "--best-of", "2", "--seed", "3"]) == 0
    line = capsys.readouterr().out.split()
    assert line[1:3] in (["seed", "3"], ["seed", str(3 + STRIDE)]) and line[3] == "score"
    assert 0 < float(line[4]) + 1e-3 <= 1.001


def test_wrong_requests_are_refused(pipeline: Pipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for best_of in (0, 1.5):
        with pytest.raises(ValueError, match="best_of is no number of candidates"):
            pipeline.draw("a red circle", best_of=best_of)
    with pytest.raises(ValueError, match="unknown form of question: found 'sonnet'"):
        questions_about("a red circle", "sonnet")
    assert main(["draw", "--class", "1", "--best-of", "2", "-o", str(tmp_path / "a.png")]) == 2
    assert "no words to judge" in capsys.readouterr().err
