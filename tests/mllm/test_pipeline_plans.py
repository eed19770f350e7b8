"""Images with plans on their way through the toolkit: drawn, shown, saved, and described again in a chat."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.answer import show
from mllm.conversation import CodesPart, ImagePart, Message, TextPart
from mllm.engine.request import PLAN_BUDGET, GenerationRequest
from mllm.pipeline import ImageDone, Pipeline, TextDelta
from mllm.processor import PLAN, save_image
from mllm.sampling import SamplingConfig
from tests.mllm.engine_helpers import liking
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.images import read_image


@pytest.fixture(scope="module", params=["fixed", "grid"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("planned")
    build_tiny_folder(folder, layout=request.param, outlines=True, context=800)
    pipeline = Pipeline.load(folder, device="cpu")
    likes_to_plan = 5.0 * (torch.arange(pipeline.config.vocab_size) == pipeline.config.begin_plan_id)
    pipeline.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + likes_to_plan)
    return pipeline


@pytest.fixture(scope="module")
def drawn(pipeline: Pipeline) -> Image.Image:
    return pipeline.draw("a red circle", seed=3)[0]


def test_a_drawn_picture_says_its_plan(pipeline: Pipeline, drawn: Image.Image) -> None:
    assert drawn.info[PLAN]
    four = pipeline.draw("a red circle", n=4, seed=2)
    assert four[1].info[PLAN] == drawn.info[PLAN] and four[1].tobytes() == drawn.tobytes()
    assert len({picture.info[PLAN] for picture in four}) == 4
    assert pipeline.edit(drawn, "Make it green.", seed=1).info[PLAN]
    (parts,) = pipeline.answer([[Message("user", (TextPart("a red circle"),))]], "image", [3])
    assert [part.info[PLAN] for part in parts] == [drawn.info[PLAN]]
    greedy = {pipeline.draw("a red circle", seed=seed, greedy=True)[0].info[PLAN] for seed in range(3)}
    assert len(greedy) == 1


def test_a_png_keeps_it_and_other_files_do_not(drawn: Image.Image, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.jpg"):
        save_image(drawn, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_image(tmp_path / "a.png").info[PLAN] == drawn.info[PLAN]
    assert PLAN not in read_image(tmp_path / "c.jpg").info
    save_image(Image.new("RGB", (4, 4)), tmp_path / "plain.png")
    assert PLAN not in read_image(tmp_path / "plain.png").info


def test_a_chat_shows_no_plan_and_remembers_it(pipeline: Pipeline, tmp_path: Path) -> None:
    with liking(pipeline.model, {pipeline.config.begin_plan_id: 30.0}):
        events = list(pipeline.chat([Message("user", (TextPart("a red circle"),))], seed=1))
    drawn = [part for part in events[-1].message.parts if isinstance(part, CodesPart)]
    pictures = [event.image for event in events if isinstance(event, ImageDone)]
    assert drawn and [part.plan for part in drawn] == [picture.info[PLAN] for picture in pictures]
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert not any(part.plan in said for part in drawn)

    content: list = []
    for event in events:
        show(event, content, tmp_path)
    files = [part["path"] for part in content if "path" in part]
    again = [Message("assistant", (ImagePart(read_image(file)),)) for file in files]
    remembered = [pipeline.processor.encode_chat([message])[0].parts[0] for message in again]
    assert [part.plan for part in remembered] == [part.plan for part in drawn]


def test_a_picture_that_is_shown_is_described_and_one_that_was_drawn_is_not(
    pipeline: Pipeline, drawn: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = pipeline.config.begin_plan_id
    answered = [Message("user", (TextPart("draw"),)), Message("assistant", (ImagePart(drawn),))]
    asked = Message("user", (ImagePart(drawn), TextPart("What is it?"), ImagePart(drawn.rotate(90))))
    (alone, after) = pipeline.describe([[asked], [*answered, asked]])
    assert after[1].parts[0].plan == drawn.info[PLAN]
    for message in (alone[0], after[2]):
        seen = [part.plan for part in message.parts if isinstance(part, CodesPart)]
        assert len(seen) == 2 and drawn.info[PLAN] not in seen, "what was meant is not what is seen"
    assert pipeline.describe([[asked]])[0][0].parts[0].plan == alone[0].parts[0].plan
    monkeypatch.setattr(pipeline.engine, "generate", lambda requests: pytest.fail("described already"))
    again = pipeline.describe([alone])
    assert again[0][0].parts[0] is alone[0].parts[0]
    request = pipeline.build_request(after, "text", task="ask")
    assert request.prompt.token_ids_T.tolist().count(marker) == 1 + 2 + 2


def test_descriptions_share_the_passes_of_answers(pipeline: Pipeline, drawn: Image.Image) -> None:
    """A dialogue that cannot be answered is told after the others are answered."""
    shown = [[Message("user", (ImagePart(drawn.rotate(n)), TextPart("What is it?")))] for n in range(6)]

    def turns(at_once: int) -> tuple[int, dict[int, list]]:
        fresh = Pipeline(pipeline.model, pipeline.processor)  # has no descriptions to guess
        answers = dict(fresh.answer_each(shown, "text", range(6), at_once=at_once, max_new_tokens=8))
        assert not fresh.engine.has_work and not fresh.engine.inbox
        return fresh.engine.turn, answers

    (together, answers), (in_turn, expected) = turns(4), turns(1)
    assert answers == expected and 3 * together < 2 * in_turn
    answered: list[int] = []
    with pytest.raises(ValueError, match="say something"):
        for place, _ in pipeline.answer_each([*shown[:2], [], *shown[2:]], "text", range(7), at_once=3):
            answered.append(place)
    assert sorted(answered)[:2] == [0, 1]


def test_an_answer_rests_on_what_is_seen(pipeline: Pipeline, drawn: Image.Image) -> None:
    """Asking equals writing the plan by hand, then answering."""
    message = Message("user", (ImagePart(drawn), TextPart("What is it?")))
    (codes, words) = pipeline.processor.encode_chat([message])[0].parts
    begun = pipeline.processor.build([Message("user", (replace(codes, plan="?"), words))]).token_ids_T.tolist()
    marker = pipeline.config.begin_plan_id
    sequence = pipeline.processor.build([Message("user", (codes,))])
    prompt = replace(sequence, token_ids_T=np.array(begun[: begun.index(marker) + 1]))
    options = {"end_id": marker, "max_new_tokens": PLAN_BUDGET, "text": SamplingConfig(greedy=True)}
    request = GenerationRequest(prompt=prompt, mode="text", **options)
    seen = pipeline.processor.to_text(pipeline.run([request])[0].text_ids)
    told = pipeline.build_request(
        [Message("user", (replace(codes, plan=seen), words))], "text", task="ask", overrides={"max_new_tokens": 20}
    )
    expected = pipeline.processor.to_text(pipeline.run([told])[0].text_ids)
    assert pipeline.ask(drawn, "What is it?", max_new_tokens=20) == expected
    assert prompt.token_ids_T.tolist() == told.prompt.token_ids_T[: len(prompt)].tolist()
    (answer,) = pipeline.answer([[message]], "text", [0], max_new_tokens=20)
    assert answer == [expected]


def test_a_model_without_plans_forgets_those_of_others(drawn: Image.Image, tmp_path: Path) -> None:
    plain = Pipeline.load(build_tiny_folder(tmp_path / "plain"), device="cpu")
    message = Message("assistant", (ImagePart(drawn),))
    assert plain.processor.encode_chat([message])[0].parts[0].plan is None
    assert plain.describe([[Message("user", message.parts)]])[0][0].parts[0].plan is None
    assert PLAN not in plain.draw("a red circle", seed=1)[0].info


def test_a_person_may_write_the_plan(pipeline: Pipeline, drawn: Image.Image) -> None:
    told = pipeline.draw("a red circle", seed=3, plan=" red  a ")[0]
    assert told.info[PLAN] == "red  a" and told.tobytes() != drawn.tobytes()
    assert pipeline.edit(drawn, "Make it green.", plan="a", seed=1).info[PLAN] == "a"
    with pytest.raises(ValueError):
        pipeline.draw("a red circle", plan=" ")


def test_plans_are_sampled_greedily_or_as_the_checkpoint_says(pipeline: Pipeline) -> None:
    default = pipeline.requests.plan_settings({})
    assert default.top_p == 0.5 and pipeline.requests.plan_settings({"temperature": 0.5}) == default, "the image's"
    assert pipeline.requests.plan_settings({"greedy": True}).greedy
