"""Best of N: the candidates' seeds, the score that is a product of probabilities, the image that is kept."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import ImagePart, Message, TextPart
from mllm.pipeline import STRIDE, Pipeline, candidate_seeds, keep_best, load_planner, vqa_score_question
from mllm.world.plan import ScenePlanner, ask_about
from tests.mllm.tiny_folder import build_tiny_folder, random_picture

IMAGES = [random_picture(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(build_tiny_folder(tmp_path_factory.mktemp("tiny"), context=400), device="cpu")


def test_smaller_numbers_have_the_first_candidates_of_larger_ones_and_neighbours_share_none() -> None:
    assert candidate_seeds(7, 4) == [7, 7 + STRIDE, 7 + 2 * STRIDE, 7 + 3 * STRIDE]
    assert candidate_seeds(7, 2) == candidate_seeds(7, 4)[:2]
    used = [seed % 2**32 for first in range(50) for seed in candidate_seeds(first, 64)]
    assert len(set(used)) == len(used)


def test_the_first_of_the_highest_scores_is_kept(pipeline: Pipeline) -> None:
    assert keep_best(IMAGES, [0.1, 0.5, 0.5, 0.2], best_of=4) == [IMAGES[1]]
    kept = keep_best(IMAGES, [0.1, 0.5, 0.6, 0.6], best_of=2)
    assert kept == IMAGES[1:3] and kept[0].info == {"score": 0.5, "best_of": 2}
    assert pipeline.question_form == "genai" and load_planner(ScenePlanner.__module__ + ".ScenePlanner").name == "world"


def test_best_of_keeps_what_judging_all_candidates_picks(pipeline: Pipeline) -> None:
    chosen = pipeline.draw("a red circle", n=2, best_of=3, seed=11)
    for image, first in zip(chosen, (11, 12), strict=True):
        candidates = [pipeline.draw("a red circle", seed=seed)[0] for seed in candidate_seeds(first, 3)]
        scores = [pipeline.score([candidate], ["a red circle"])[0] for candidate in candidates]
        best = int(np.argmax(scores))
        assert image.info["seed"] == candidate_seeds(first, 3)[best] and image.info["best_of"] == 3
        assert image.info["score"] == pytest.approx(scores[best], rel=1e-4)
        assert image.tobytes() == candidates[best].tobytes()


@pytest.mark.parametrize("questions", [vqa_score_question, ask_about])
def test_the_score_is_the_probability_of_the_answers_word_by_word(
    pipeline: Pipeline, questions: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.pipeline.MAX_REQUESTS", 2)
    texts = ["a red circle above a blue star", "no hearts", "a small green square"]
    scores = pipeline.score(IMAGES[:3], texts, questions=questions)
    expected = [
        math.prod(plain_probability(pipeline, image, question, wanted) for question, wanted in questions(text))
        for image, text in zip(IMAGES, texts, strict=False)
    ]
    assert scores == pytest.approx(expected, rel=1e-3)
    assert all(0 < score < 1 for score in scores)


def plain_probability(pipeline: Pipeline, image: Image.Image, question: str, wanted: str) -> float:
    """One answer alone, one forward pass per word, nothing padded."""
    asked = [Message("user", (ImagePart(image), TextPart(question)))]
    prompt = pipeline.processor.build(asked, add_generation_prompt=True, answer="text")
    complete = pipeline.processor.build([*asked, Message("assistant", (TextPart(wanted),))])
    probability = 1.0
    for length in range(len(prompt), len(complete) - 1):
        with torch.no_grad():
            logits = pipeline.model(
                torch.from_numpy(complete.token_ids_T[None, :length]),
                codes=torch.from_numpy(complete.codes_PK),
                image_lengths=torch.from_numpy(complete.image_lengths_I),
            ).logits[0, -1]
        probability *= logits.softmax(dim=-1)[complete.token_ids_T[length]].item()
    return probability


def test_the_command_says_the_score(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["draw", "a red circle", "-o", str(tmp_path / "a.png"), "--device", "cpu", "--best-of", "2"]
    assert main([*words, "--model", pipeline.config.name_or_path]) == 0
    assert 0 <= float(capsys.readouterr().out.split("score ")[1].split()[0]) <= 1
    assert main([*words[:1], "--class", "1", *words[2:]]) == 2
