"""The facade on a model of random weights: what comes out, what is refused, what is the same twice."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.conversation import CodesPart, ImagePart, Message, TextPart
from mllm.engine.request import GenerationResult
from mllm.engine.settings import merge_settings
from mllm.pipeline import Done, ImageDone, ImageProgress, Pipeline, TextDelta, TextStream
from mllm.sampling import SamplingConfig
from mllm.vocabulary import decode_text
from tests.mllm.engine_helpers import liking
from tests.mllm.tiny_folder import build_tiny_folder, random_picture


@pytest.fixture(scope="module")
def grid_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = build_tiny_folder(tmp_path_factory.mktemp("grid"), layout="grid", tasks=["draw", "edit"])
    return Pipeline.load(folder, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    return random_picture()


def data(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_the_same_seed_draws_the_same_and_n_counts_seeds_up(pipeline: Pipeline) -> None:
    four = pipeline.draw("a red circle", n=np.int64(4), seed=np.int64(7))
    assert [image.size for image in four] == [(32, 32)] * 4
    assert [image.info["seed"] for image in four] == [7, 8, 9, 10]
    assert data(four) == [data(pipeline.draw("a red circle", seed=seed))[0] for seed in (7, 8, 9, 10)]
    assert len(set(data(four))) == 4
    assert data(pipeline.draw("a red circle", n=4, seed=7)) == data(four)


def test_settings_change_the_picture_and_defaults_are_the_checkpoint_s(pipeline: Pipeline) -> None:
    default = data(pipeline.draw("a red circle", seed=1))
    assert default == data(pipeline.draw("a red circle", seed=1, guidance=2.0, temperature=1.0, top_k=None))
    assert default != data(pipeline.draw("a red circle", seed=1, guidance=6.0))
    assert default != data(pipeline.draw("a blue square", seed=1))
    greedy = data(pipeline.draw("a red circle", seed=1, greedy=True))
    assert greedy == data(pipeline.draw("a red circle", seed=2, greedy=True)) != default
    assert greedy == data(pipeline.draw("a red circle", seed=3, top_k=1))


def test_settings_lie_over_each_other_and_variety_ends_greed() -> None:
    assert merge_settings({"greedy": True}) == SamplingConfig(greedy=True)
    assert merge_settings({"greedy": True}, {"seed": 3}, {"temperature": 0.5}) == SamplingConfig(temperature=0.5)
    assert merge_settings({"top_p": 0.9}, {"temperature": [0.5, 1.0], "greedy": True}) == SamplingConfig(
        top_p=0.9, temperature=(0.5, 1.0), greedy=True
    )


def test_a_question_gets_a_text(pipeline: Pipeline, picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    answer = pipeline.ask(picture, "What color is it?")
    assert answer == answer.strip()
    assert not any(name in answer for name in pipeline.processor.tokenizer.all_special_tokens)
    assert answer == pipeline.ask([tmp_path / "a.png"], "What color is it?"), "the most probable text has no seed"
    events: list = []
    answer = pipeline.ask([picture, picture], "Are they equal?", on_event=events.append, temperature=1.0, seed=4)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer
    assert isinstance(events[-1], Done)


def test_sizes_are_those_asked_for_and_edits_have_that_of_their_picture(
    pipeline: Pipeline, grid_pipeline: Pipeline
) -> None:
    wide, green = Image.new("RGB", (96, 48), "red"), "Make it green."
    dialogues = [[Message("user", parts)] for parts in ((TextPart("a"),), (ImagePart(wide), TextPart(green)))]
    answers = grid_pipeline.answer(dialogues, "image", [1, 2], size=(16, 48))
    assert [picture.size for (picture,) in answers] == [(16, 48), (32, 16)]
    assert grid_pipeline.sizes[0] == (32, 32) and len(grid_pipeline.sizes) == 9
    assert grid_pipeline.draw("a red circle", size=(48, 16), seed=1)[0].size == (48, 16)
    assert grid_pipeline.edit(wide, green, seed=1, size=(16, 48)).size == (16, 48)
    events: list = []
    assert pipeline.edit(wide, green, seed=1, on_event=events.append).size == (32, 32)
    assert [event.done for event in events if isinstance(event, ImageProgress)] == [1, 2, 3, 4]
    for call in (lambda: grid_pipeline.ask(wide, "What?"), lambda: grid_pipeline.chat(dialogues[0])):
        with pytest.raises(ValueError):  # a task that it was not trained for
            call()


def test_a_chat_answers_in_text_and_pictures(pipeline: Pipeline, picture: Image.Image) -> None:
    with liking(pipeline.model, {pipeline.config.begin_image_id: 4.0}):
        history = [Message("user", (ImagePart(picture), TextPart("Draw it again.")))]
        for _ in range(2):
            events = list(pipeline.chat(history, seed=5, max_new_tokens=20))
            message = events[-1].message
            pictures = data([event.image for event in events if isinstance(event, ImageDone)])
            codes = [part for part in message.parts if isinstance(part, CodesPart)]
            assert pictures and data(pipeline.processor.decode_images(codes)) == pictures
            texts = [part.text for part in message.parts if isinstance(part, TextPart)]
            assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(texts)
            again = pipeline.chat(history, seed=5, max_new_tokens=20)
            assert data([event.image for event in again if isinstance(event, ImageDone)]) == pictures
            history += [message, Message("user", (TextPart("And again."),))]
    chat = [{"role": "user", "content": "hello"}]
    assert isinstance(list(pipeline.chat(chat, max_new_tokens=3))[-1], Done)


def test_many_dialogues_are_answered_together_as_alone(pipeline: Pipeline, picture: Image.Image) -> None:
    dialogues = [
        [Message("user", (TextPart("a red circle"),))],
        [Message("user", (ImagePart(picture), TextPart("Make it green.")))],
    ]
    together = pipeline.answer(dialogues, "image", [3, 4])
    assert data([parts[0] for parts in together]) == data(
        [pipeline.draw("a red circle", seed=3)[0], pipeline.edit(picture, "Make it green.", seed=4)]
    )
    each = dict(pipeline.answer_each(iter(dialogues), "image", iter([3, 4]), at_once=1))
    assert data([parts[0] for _, parts in sorted(each.items())]) == data([parts[0] for parts in together])
    questions = [[Message("user", (ImagePart(picture), TextPart(words)))] for words in ("What?", "How many stars?")]
    assert ["".join(parts) for parts in pipeline.answer(questions, "text", [1, 2])] == [
        pipeline.ask(picture, words) for words in ("What?", "How many stars?")
    ]


def test_a_consumer_that_raises_leaves_the_pipeline_free(pipeline: Pipeline) -> None:
    """The error keeps the iterator alive, and a garbage collector may close it while another request is decoded."""
    expected = data(pipeline.draw("a red circle", seed=1))
    dialogues, chat = [[Message("user", (TextPart("a star"),))]] * 3, [{"role": "user", "content": "hello"}]
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
    assert data(pipeline.draw("a red circle", seed=1)) == expected
    assert not pipeline.engine.has_work and not pipeline.engine.inbox


WRONG_SETTINGS = (
    *({"n": 0}, {"n": "3"}, {"best_of": 1.5}, {"size": (64, 32)}, {"size": (256,)}, {"size": 256}, {"seed": -1}),
    *({"seed": "x"}, {"temperature": 0}, {"top_k": 0}, {"top_p": 1.5}, {"guidance": 0.5}, {"max_new_tokens": 3}),
    *({"tempreature": 1.0}, {"size": (32.0, 32)}),
)


def test_wrong_input_is_refused(pipeline: Pipeline, picture: Image.Image) -> None:
    long, hello = "a red circle " * 60, {"role": "user", "content": "hello"}
    calls = (
        *(lambda text=text: pipeline.draw(text) for text in ("  \n", None, 5, long)),
        *(lambda options=options: pipeline.draw("a", **options) for options in WRONG_SETTINGS),
        *(
            lambda image=image: pipeline.ask(image, "What?")
            for image in ([], None, 3, Image.new("RGB", (0, 0)), "http://127.0.0.1:9/a.png")
        ),
        *(lambda chat=chat: pipeline.chat(chat) for chat in ([], "hi", [{**hello, "role": "assistant"}])),
        *(lambda text=text: pipeline.chat([{**hello, "content": text}]) for text in (" ", long)),
        lambda: pipeline.ask(picture, ""),
        lambda: pipeline.ask(picture, "What?", temperature=-1),
        lambda: pipeline.ask(picture, "What?", guidance=2.0),
        lambda: pipeline.edit(picture, " "),
        lambda: pipeline.edit(picture, "Make it green.", mask=picture, plan="a"),
        lambda: pipeline.score([picture], ["a", "b"]),
    )
    for number, call in enumerate(calls):
        with pytest.raises(ValueError):
            pytest.fail(f"call {number} returned {call()}")


def test_a_mask_changes_the_image_only_where_it_is_white(
    pipeline: Pipeline, grid_pipeline: Pipeline, picture: Image.Image
) -> None:
    mask = Image.new("L", picture.size)
    mask.paste(255, (20, 20, 28, 28))  # within the last of 2 x 2 positions
    for pipe in (pipeline, grid_pipeline):
        (message,) = pipe.processor.encode_chat([Message("user", (ImagePart(picture),))])
        forced = pipe._force_outside(mask, message.parts[0])
        assert forced.is_forced_N.tolist() == [True, True, True, False]
        free, changed = (pipe.edit(picture, "Make it green.", seed=1, mask=m) for m in (None, mask))
        request = pipe.build_request([message], "image", task="edit", overrides={"seed": 1})
        codes_KN = pipe.run([replace(request, forced_codes=forced)])[0].images[0].codes_KN
        assert (codes_KN[:, :3] == message.parts[0].codes_KN[:, :3]).all()
        assert changed.tobytes() != free.tobytes()


def test_an_extended_image_keeps_its_codes(
    pipeline: Pipeline, grid_pipeline: Pipeline, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """2 x 2 positions of the image among those of the larger one."""
    (old,) = grid_pipeline.processor.encode_images([picture])
    old_KRC, sizes = old.codes_KN.reshape(-1, 2, 2), {"left": (48, 32), "bottom": (32, 48), "all": (48, 48)}
    begins = {"left": (0, 1), "right": (0, 0), "top": (1, 0), "bottom": (0, 0), "all": (0, 0)}
    for extend, (top, left) in begins.items():
        size = sizes.get(extend)  # None: the next one
        events: list = []
        image = grid_pipeline.edit(picture, "More.", extend=extend, size=size, seed=1, on_event=events.append)
        assert image.size == ((32, 48) if extend in ("top", "bottom") else (48, 48) if extend == "all" else (48, 32))
        (drawn,) = [event.codes for event in events if isinstance(event, ImageDone)]
        new_KRC = drawn.codes_KN.reshape(-1, *drawn.grid)
        assert np.array_equal(new_KRC[:, top : top + 2, left : left + 2], old_KRC), extend
    assert not caplog.records
    large = picture.resize((70, 70))
    assert grid_pipeline.edit(large, "More.", extend="right", seed=1).size == (48, 32)
    assert "70 x 70 pixels is extended as one of 32 x 32: codes are of patches of 16 x 16" in caplog.text
    for pipe, options, message in (
        (grid_pipeline, {"extend": "up"}, "one of left, right, top, bottom, all, got 'up'"),
        (grid_pipeline, {"extend": "right", "size": (40, 32)}, "one of this model's, got 40x32"),
        (grid_pipeline, {"extend": "right", "size": (32, 48)}, "wider than the 32x32 .* as high, got 32x48; use 48x32"),
        (grid_pipeline, {"extend": "top", "size": (32, 32)}, "higher than the 32x32 .* as wide, got 32x32; use 32x48"),
        (grid_pipeline, {"extend": "all", "size": (16, 48)}, "larger than the 32x32 of the image, got 16x48; use "),
        (grid_pipeline, {"extend": "all", "mask": picture}, "without extend"),
        (pipeline, {"extend": "left"}, "no such size in this model"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.edit(picture, "More.", **options)


def test_upstream_s_prompts_are_for_one_kind_of_answer_each(tmp_path: Path, picture: Image.Image) -> None:
    pipeline = Pipeline.load(build_tiny_folder(tmp_path, prompt_style="unitok", context=400), device="cpu")
    drawn = list(pipeline.chat([{"role": "user", "content": "a red circle"}], seed=1))
    assert data([event.image for event in drawn if isinstance(event, ImageDone)]) == data(
        pipeline.draw("a red circle", seed=1)
    )
    asked = [Message("user", (ImagePart(picture), TextPart("What?")))]
    text = "".join(event.text for event in pipeline.chat(asked) if isinstance(event, TextDelta))
    assert text == pipeline.ask(picture, "What?")
    with pytest.raises(ValueError):
        pipeline.edit(picture, "Make it green.")


def test_what_cannot_be_loaded_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (tmp_path / "nowhere", tmp_path, "nobody/nothing"):
        with pytest.raises(FileNotFoundError):
            Pipeline.load(name)
    for config in (json.dumps({"model_type": "llama"}), "{"):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ValueError):
            Pipeline.load(tmp_path)
    for options in ({"device": "abacus"}, {"device": "cpu", "dtype": "float12"}):
        with pytest.raises(ValueError):
            Pipeline.load(folder, **options)


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


@pytest.mark.parametrize(
    ("tasks", "reason", "refused", "declines"),
    [
        (["draw", "chat"], "eos", False, True),
        (["draw", "chat"], "length", False, False),
        (["draw", "chat"], "length", True, False),
        (["draw"], "eos", False, False),
        (None, "eos", False, False),
    ],
)
def test_without_a_planner_words_that_come_to_an_end_decline(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tasks: list, reason: str, refused: bool, declines: bool
) -> None:
    words = [300, 301, 302]
    monkeypatch.setattr(pipeline.config, "tasks", tasks)
    monkeypatch.setattr(pipeline, "run", lambda requests: [GenerationResult(words, [words], reason, 0, refused, [])])
    expected = pipeline.processor.to_text(words) if declines else None
    assert pipeline.decline("a lawn mower") == expected
