"""The facade on models of random weights: what comes out, what is refused, what is the same twice; best of N; images
with plans on their way through the toolkit: drawn, shown, saved, and described again in a chat."""

import gc
import math
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from demo.answer import show
from mllm.conversation import CodesPart, ImagePart, Message, TextPart
from mllm.engine.request import PLAN_BUDGET, GenerationRequest, GenerationResult
from mllm.engine.settings import merge_settings
from mllm.pipeline import (
    STRIDE,
    Done,
    EventDecoder,
    ImageDone,
    ImagePreview,
    ImageProgress,
    Pipeline,
    TextDelta,
    TextStream,
    candidate_seeds,
    vqa_score_question,
)
from mllm.processor import PLAN, save_image
from mllm.sampling import SamplingConfig
from mllm.vocabulary import decode_text
from mllm.world.plan import ask_about
from tests.mllm.engine_helpers import liking
from tests.mllm.tiny_folder import build_tiny_folder, pixels, random_image
from tokenizer.images import read_image


@pytest.fixture(scope="module")
def grid_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = build_tiny_folder(tmp_path_factory.mktemp("grid"), layout="grid", tasks=["draw", "edit"])
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = build_tiny_folder(tmp_path_factory.mktemp("planned"), layout="grid", outlines=True, context=800)
    pipeline = Pipeline.load(folder, device="cpu")
    likes_to_plan = 5.0 * (torch.arange(pipeline.config.vocab_size) == pipeline.config.begin_plan_id)
    pipeline.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + likes_to_plan)
    return pipeline


@pytest.fixture(scope="module")
def drawn(planner: Pipeline) -> Image.Image:
    return planner.draw("a red circle", seed=3)[0]


@pytest.fixture
def image() -> Image.Image:
    return random_image()


def user(*parts: Image.Image | str) -> Message:
    return Message("user", tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts))


def test_settings_change_the_image_and_defaults_are_the_checkpoint_s(pipeline: Pipeline) -> None:
    def draw(text: str = "a red circle", **settings: object) -> bytes:
        return pipeline.draw(text, **{"seed": 1, **settings})[0].tobytes()

    default, greedy = draw(), draw(greedy=True)
    assert default == draw(guidance=2.0, temperature=1.0, top_k=None)
    assert default not in (draw(guidance=6.0), draw("a blue square"), greedy)
    assert greedy == draw(seed=2, greedy=True) == draw(seed=3, top_k=1)
    assert merge_settings({"greedy": True}) == SamplingConfig(greedy=True)
    assert merge_settings({"greedy": True}, {"seed": 3}, {"temperature": 0.5}) == SamplingConfig(temperature=0.5)
    merged = merge_settings({"top_p": 0.9}, {"temperature": [0.5, 1.0], "greedy": True})
    assert merged == SamplingConfig(top_p=0.9, temperature=(0.5, 1.0), greedy=True)


def test_a_misspelled_keyword_is_refused_with_those_that_exist(pipeline: Pipeline) -> None:
    for call, known in (
        (lambda: Pipeline.load(devce="cpu"), "Pipeline.load must be among folder, compile, device,"),
        (lambda: pipeline.draw("a red circle", best_off=2), "draw must be among prompt, n, best_of,"),
        (lambda: pipeline.chat([], sed=2), "chat must be among messages, seed,"),
    ):
        with pytest.raises(TypeError, match=known):
            call()


def test_a_question_gets_a_text(pipeline: Pipeline, image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    answer = pipeline.ask(image, "What color is it?")
    assert answer == answer.strip()
    assert not any(name in answer for name in pipeline.processor.tokenizer.all_special_tokens)
    assert answer == pipeline.ask([tmp_path / "a.png"], "What color is it?"), "the most probable text has no seed"
    events: list = []
    answer = pipeline.ask([image, image], "Are they equal?", on_event=events.append, temperature=1.0, seed=4)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer
    assert isinstance(events[-1], Done)
    for wrong in ({"guidance": 2.0}, {"preview_every": "often"}):
        with pytest.raises(ValueError):
            pipeline.ask(image, "What?", **wrong)


def test_sizes_are_those_asked_for_and_edits_have_that_of_their_image(
    pipeline: Pipeline, grid_pipeline: Pipeline
) -> None:
    wide, green = Image.new("RGB", (96, 48), "red"), "Make it green."
    dialogues = [[user("a")], [user(wide, green)]]
    answers = grid_pipeline.answer(dialogues, "image", [1, 2], size=(16, 48))
    assert [image.size for (image,) in answers] == [(16, 48), (32, 16)]
    assert grid_pipeline.sizes[0] == (32, 32) and len(grid_pipeline.sizes) == 9
    assert grid_pipeline.draw("a red circle", size=(48, 16), seed=1)[0].size == (48, 16)
    assert grid_pipeline.edit(wide, green, seed=1, size=(16, 48)).size == (16, 48)
    events: list = []
    assert pipeline.edit(wide, green, seed=1, on_event=events.append).size == (32, 32)
    assert [event.done for event in events if isinstance(event, ImageProgress)] == [1, 2, 3, 4]
    for call in (lambda: grid_pipeline.ask(wide, "What?"), lambda: grid_pipeline.chat(dialogues[0])):
        with pytest.raises(ValueError):  # a task that it was not trained for
            call()


def test_a_chat_answers_in_text_and_images(pipeline: Pipeline, image: Image.Image) -> None:
    with liking(pipeline.model, {pipeline.config.begin_image_id: 4.0}):
        history = [user(image, "Draw it again.")]
        for _ in range(2):
            events = list(pipeline.chat(history, seed=5, max_new_tokens=20))
            message = events[-1].message
            images = pixels([event.image for event in events if isinstance(event, ImageDone)])
            codes = [part for part in message.parts if isinstance(part, CodesPart)]
            assert images and pixels(pipeline.processor.decode_images(codes)) == images
            texts = [part.text for part in message.parts if isinstance(part, TextPart)]
            assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(texts)
            again = pipeline.chat(history, seed=5, max_new_tokens=20)
            assert pixels([event.image for event in again if isinstance(event, ImageDone)]) == images
            history += [message, user("And again.")]


def test_many_dialogues_are_answered_together_as_alone(pipeline: Pipeline, image: Image.Image) -> None:
    dialogues = [[user("a red circle")], [user(image, "Make it green.")]]
    alone = [pipeline.draw("a red circle", seed=3)[0], pipeline.edit(image, "Make it green.", seed=4)]
    assert pixels([parts[0] for parts in pipeline.answer(dialogues, "image", [3, 4])]) == pixels(alone)
    each = dict(pipeline.answer_each(iter(dialogues), "image", iter([3, 4]), at_once=1))
    assert pixels([parts[0] for _, parts in sorted(each.items())]) == pixels(alone)
    words = ("What?", "How many stars?")
    answers = pipeline.answer([[user(image, question)] for question in words], "text", [1, 2])
    assert answers == [[pipeline.ask(image, question)] for question in words]


def test_a_consumer_that_raises_leaves_the_pipeline_free(pipeline: Pipeline) -> None:
    """The error keeps the iterator alive, and a garbage collector may close it while another request is decoded."""
    expected = pixels(pipeline.draw("a red circle", seed=1))
    dialogues, chat = [[user("a star")]] * 3, [{"role": "user", "content": "hello"}]
    streams = [pipeline.answer_each(dialogues, "image", [1, 2, 3], at_once=2), pipeline.chat(chat, seed=1)]
    for events in streams:
        with pytest.raises(KeyError):
            for _ in events:
                raise KeyError
    pipeline.engine.is_turning = True
    streams.clear()
    del events
    gc.collect()
    pipeline.engine.is_turning = False
    assert pixels(pipeline.draw("a red circle", seed=1)) == expected
    assert not pipeline.engine.has_work and not pipeline.engine.inbox


def test_a_mask_changes_the_image_only_where_it_is_white(
    pipeline: Pipeline, grid_pipeline: Pipeline, image: Image.Image
) -> None:
    mask = Image.new("L", image.size)
    mask.paste(255, (20, 20, 28, 28))  # within the last of 2 x 2 positions
    for pipe in (pipeline, grid_pipeline):
        (codes,) = pipe.processor.encode_images([image])
        events: list = []
        free, changed = (
            pipe.edit(image, "Make it green.", seed=1, mask=m, on_event=events.append) for m in (None, mask)
        )
        _, drawn_KN = (event.codes.codes_KN for event in events if isinstance(event, ImageDone))
        assert (drawn_KN[:, :3] == codes.codes_KN[:, :3]).all() and changed.tobytes() != free.tobytes()
        with pytest.raises(ValueError, match="without white"):
            pipe.edit(image, "Make it green.", mask=Image.new("L", image.size))


def test_an_extended_image_keeps_its_codes(
    pipeline: Pipeline, grid_pipeline: Pipeline, image: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """2 x 2 positions of the image among those of the larger one."""
    (old,) = grid_pipeline.processor.encode_images([image])
    old_KRC, sizes = old.codes_KN.reshape(-1, 2, 2), {"left": (48, 32), "bottom": (32, 48), "all": (48, 48)}
    begins = {"left": (0, 1), "right": (0, 0), "top": (1, 0), "bottom": (0, 0), "all": (0, 0)}
    for extend, (top, left) in begins.items():
        size = sizes.get(extend)  # None: the next one
        events: list = []
        wide = grid_pipeline.edit(image, "More.", extend=extend, size=size, seed=1, on_event=events.append)
        assert wide.size == ((32, 48) if extend in ("top", "bottom") else (48, 48) if extend == "all" else (48, 32))
        (drawn,) = [event.codes for event in events if isinstance(event, ImageDone)]
        new_KRC = drawn.codes_KN.reshape(-1, *drawn.grid)
        assert np.array_equal(new_KRC[:, top : top + 2, left : left + 2], old_KRC), extend
    assert not caplog.records
    large = image.resize((70, 70))
    assert grid_pipeline.edit(large, "More.", extend="right", seed=1).size == (48, 32)
    assert "70 x 70" in caplog.text
    for pipe, extend, more in (
        (pipeline, "left", {}),  # no such size in this model
        (grid_pipeline, "up", {}),
        *((grid_pipeline, "right", {"size": size}) for size in ((40, 32), (32, 48), (32, 32))),
        (grid_pipeline, "all", {"mask": image}),
    ):
        with pytest.raises(ValueError):
            pipe.edit(image, "More.", extend=extend, **more)


def test_upstream_s_prompts_are_for_one_kind_of_answer_each(tmp_path: Path, image: Image.Image) -> None:
    pipeline = Pipeline.load(build_tiny_folder(tmp_path, prompt_style="unitok", context=400), device="cpu")
    *_, drawn, _ = pipeline.chat([user("a red circle")], seed=1)
    assert pixels([drawn.image]) == pixels(pipeline.draw("a red circle", seed=1))
    text = "".join(event.text for event in pipeline.chat([user(image, "What?")]) if isinstance(event, TextDelta))
    assert text == pipeline.ask(image, "What?")
    with pytest.raises(ValueError):
        pipeline.edit(image, "Make it green.")


def test_text_arrives_whole_characters_at_a_time(pipeline: Pipeline) -> None:
    tokenizer = pipeline.processor.tokenizer
    text = " a red \u2605 circle \u00e9 "
    stream = TextStream(pipeline.processor)
    deltas = [stream.add(token_id) for token_id in tokenizer(text, add_special_tokens=False).input_ids]
    assert "".join(deltas) + stream.finish() == text.strip()
    assert not any("\ufffd" in delta for delta in deltas)
    assert stream.finish() == ""
    for seed in range(20):  # any ids, broken characters included
        ids = np.random.default_rng(seed).integers(3, len(tokenizer), 30).tolist()
        assert "".join(stream.add(token_id) for token_id in ids) + stream.finish() == decode_text(tokenizer, ids)


def test_a_preview_that_is_late_is_not_shown_of_the_next_image(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded beside the decoding of the codes, and has come when its image has."""
    codes, late = CodesPart(np.zeros((3, 4), dtype=np.uint16), (2, 2)), Event()
    image, decoder = Image.new("RGB", (4, 4)), EventDecoder(pipeline.processor)

    def decode(images: list[CodesPart]) -> list[Image.Image]:
        assert images[0].image is not None or late.wait(60)
        return [image]

    monkeypatch.setattr(pipeline.processor, "decode_images", decode)
    done = ImageDone(codes=replace(codes, image=image))
    shown = [*decoder.decode(ImagePreview(done=2, codes=codes)), *decoder.decode(done)]
    late.set()
    decoder.previews.shutdown()
    shown += decoder.decode(ImageProgress(done=1, total=4))
    assert [type(event) for event in shown] == [ImageDone, ImageProgress]


def test_without_a_planner_words_that_come_to_an_end_decline(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [300, 301, 302]
    for tasks, reason, refused, declines in (
        (["draw", "chat"], "eos", False, True),
        (["draw", "chat"], "length", False, False),
        (["draw", "chat"], "length", True, False),
        (["draw"], "eos", False, False),
        (None, "eos", False, False),
    ):
        result = GenerationResult(words, [words], reason, 0, refused, [])
        monkeypatch.setattr(pipeline.config, "tasks", tasks)
        monkeypatch.setattr(pipeline, "run", lambda requests, result=result: [result])
        expected = pipeline.processor.to_text(words) if declines else None
        assert pipeline.decline("a lawn mower") == expected


# ---- best of N ----


def test_smaller_numbers_have_the_first_candidates_of_larger_ones_and_neighbours_share_none() -> None:
    assert candidate_seeds(7, 4) == [7, 7 + STRIDE, 7 + 2 * STRIDE, 7 + 3 * STRIDE]
    assert candidate_seeds(7, 2) == candidate_seeds(7, 4)[:2]
    used = [seed % 2**32 for first in range(50) for seed in candidate_seeds(first, 64)]
    assert len(set(used)) == len(used)


def test_best_of_keeps_what_judging_all_candidates_picks(pipeline: Pipeline) -> None:
    chosen = pipeline.draw("a red circle", n=np.int64(2), best_of=3, seed=np.int64(11))
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
    images = [random_image(seed) for seed in range(3)]
    scores = pipeline.score(images, texts, questions=questions)
    expected = [
        math.prod(plain_probability(pipeline, image, question, wanted) for question, wanted in questions(text))
        for image, text in zip(images, texts, strict=True)
    ]
    assert scores == pytest.approx(expected, rel=1e-3)
    assert all(0 < score < 1 for score in scores)


def plain_probability(pipeline: Pipeline, image: Image.Image, question: str, wanted: str) -> float:
    """One answer alone, one forward pass per word, nothing padded."""
    asked = [user(image, question)]
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


# ---- plans ----


def test_a_drawn_image_says_its_plan(planner: Pipeline, drawn: Image.Image) -> None:
    assert drawn.info[PLAN]
    other, same = planner.draw("a red circle", n=2, seed=2)
    assert same.info[PLAN] == drawn.info[PLAN] != other.info[PLAN] and same.tobytes() == drawn.tobytes()
    assert planner.edit(drawn, "Make it green.", seed=1).info[PLAN]
    (parts,) = planner.answer([[user("a red circle")]], "image", [3])
    assert [part.info[PLAN] for part in parts] == [drawn.info[PLAN]]
    greedy = [planner.draw("a red circle", seed=seed, greedy=True)[0].info[PLAN] for seed in range(2)]
    assert greedy[0] == greedy[1]


def test_a_png_keeps_it_and_other_files_do_not(drawn: Image.Image, tmp_path: Path) -> None:
    for name, plan in (("a.png", drawn.info[PLAN]), ("b.png", drawn.info[PLAN]), ("c.jpg", None)):
        save_image(drawn, tmp_path / name)
        assert read_image(tmp_path / name).info.get(PLAN) == plan
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_chat_shows_no_plan_and_remembers_it(planner: Pipeline, tmp_path: Path) -> None:
    with liking(planner.model, {planner.config.begin_plan_id: 30.0}):
        events = list(planner.chat([user("a red circle")], seed=1))
    drawn = [part for part in events[-1].message.parts if isinstance(part, CodesPart)]
    images = [event.image for event in events if isinstance(event, ImageDone)]
    assert drawn and [part.plan for part in drawn] == [image.info[PLAN] for image in images]
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert not any(part.plan in said for part in drawn)

    content: list = []
    for event in events:
        show(event, content, tmp_path)
    files = [part["path"] for part in content if "path" in part]
    again = [Message("assistant", (ImagePart(read_image(file)),)) for file in files]
    remembered = [planner.processor.encode_chat([message])[0].parts[0] for message in again]
    assert [part.plan for part in remembered] == [part.plan for part in drawn]


def test_an_image_that_is_shown_is_described_and_one_that_was_drawn_is_not(
    planner: Pipeline, drawn: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = planner.config.begin_plan_id
    answered = [user("draw"), Message("assistant", (ImagePart(drawn),))]
    asked = user(drawn, "What is it?", drawn.rotate(90))
    (alone, after) = planner.describe([[asked], [*answered, asked]])
    assert after[1].parts[0].plan == drawn.info[PLAN]
    for message in (alone[0], after[2]):
        seen = [part.plan for part in message.parts if isinstance(part, CodesPart)]
        assert len(seen) == 2 and drawn.info[PLAN] not in seen, "what was meant is not what is seen"
    assert planner.describe([[asked]])[0][0].parts[0].plan == alone[0].parts[0].plan
    monkeypatch.setattr(planner.engine, "generate", lambda requests: pytest.fail("described already"))
    again = planner.describe([alone])
    assert again[0][0].parts[0] is alone[0].parts[0]
    request = planner.build_request(after, "text", task="ask")
    assert request.prompt.token_ids_T.tolist().count(marker) == 1 + 2 + 2


def test_descriptions_share_the_passes_of_answers(planner: Pipeline, drawn: Image.Image) -> None:
    """A dialogue that cannot be answered is told after the others are answered."""
    shown = [[user(drawn.rotate(n), "What is it?")] for n in range(4)]

    def turns(at_once: int) -> tuple[int, dict[int, list]]:
        fresh = Pipeline(planner.model, planner.processor)  # has no descriptions to guess
        answers = dict(fresh.answer_each(shown, "text", range(4), at_once=at_once, max_new_tokens=8))
        assert not fresh.engine.has_work and not fresh.engine.inbox
        return fresh.engine.turn, answers

    (together, answers), (in_turn, expected) = turns(4), turns(1)
    assert answers == expected and 3 * together < 2 * in_turn
    answered: list[int] = []
    with pytest.raises(ValueError, match="say something"):
        for index, _ in planner.answer_each([*shown[:2], [], *shown[2:]], "text", range(5), at_once=3):
            answered.append(index)
    assert sorted(answered)[:2] == [0, 1]


def test_an_answer_rests_on_what_is_seen(planner: Pipeline, drawn: Image.Image) -> None:
    """Asking equals writing the plan by hand, then answering."""
    message = user(drawn, "What is it?")
    (codes, words) = planner.processor.encode_chat([message])[0].parts
    begun = planner.processor.build([Message("user", (replace(codes, plan="?"), words))]).token_ids_T.tolist()
    marker = planner.config.begin_plan_id
    sequence = planner.processor.build([Message("user", (codes,))])
    prompt = replace(sequence, token_ids_T=np.array(begun[: begun.index(marker) + 1]))
    options = {"end_id": marker, "max_new_tokens": PLAN_BUDGET, "text": SamplingConfig(greedy=True)}
    request = GenerationRequest(prompt=prompt, mode="text", **options)
    seen = planner.processor.to_text(planner.run([request])[0].text_ids)
    told = planner.build_request(
        [Message("user", (replace(codes, plan=seen), words))], "text", task="ask", overrides={"max_new_tokens": 20}
    )
    expected = planner.processor.to_text(planner.run([told])[0].text_ids)
    assert planner.ask(drawn, "What is it?", max_new_tokens=20) == expected
    assert prompt.token_ids_T.tolist() == told.prompt.token_ids_T[: len(prompt)].tolist()
    (answer,) = planner.answer([[message]], "text", [0], max_new_tokens=20)
    assert answer == [expected]


def test_a_model_without_plans_forgets_those_of_others(pipeline: Pipeline, drawn: Image.Image) -> None:
    message = Message("assistant", (ImagePart(drawn),))
    assert pipeline.processor.encode_chat([message])[0].parts[0].plan is None
    assert pipeline.describe([[user(drawn)]])[0][0].parts[0].plan is None
    assert PLAN not in pipeline.draw("a red circle", seed=1)[0].info


def test_a_person_may_write_the_plan(planner: Pipeline, drawn: Image.Image) -> None:
    told = planner.draw("a red circle", seed=3, plan=" red  a ")[0]
    assert told.info[PLAN] == "red  a" and told.tobytes() != drawn.tobytes()
    assert planner.edit(drawn, "Make it green.", plan="a", seed=1).info[PLAN] == "a"
    default = planner.requests.plan_settings({})
    assert default.top_p == 0.5 and planner.requests.plan_settings({"temperature": 0.5}) == default, "the image's"
