"""The facade on a model of random weights: what comes out, what is refused, what is the same twice."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.conversation import CodesPart, ImagePart, Message, TextPart
from mllm.engine.request import merge_settings
from mllm.pipeline import Done, ImageDone, ImageProgress, Pipeline, TextDelta, TextStream
from mllm.sampling import SamplingConfig
from mllm.vocabulary import decode_text
from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="module")
def grid_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = build_tiny_folder(tmp_path_factory.mktemp("grid"), layout="grid", tasks=["draw", "edit"])
    return Pipeline.load(folder, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def data(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_the_same_seed_draws_the_same_and_n_counts_seeds_up(pipeline: Pipeline) -> None:
    four = pipeline.draw("a red circle", n=np.int64(4), seed=np.int64(7))
    assert [image.size for image in four] == [(32, 32)] * 4
    assert [image.info["seed"] for image in four] == [7, 8, 9, 10]
    assert data(four) == [data(pipeline.draw("a red circle", seed=seed))[0] for seed in (7, 8, 9, 10)]
    assert len(set(data(four))) == 4
    assert data(pipeline.draw("a red circle", n=4, seed=7)) == data(four)


def test_without_a_seed_every_call_has_its_own(pipeline: Pipeline) -> None:
    assert len({pipeline.draw("a red circle")[0].info["seed"] for _ in range(3)}) == 3


def test_settings_change_the_picture_and_defaults_are_the_checkpoint_s(pipeline: Pipeline) -> None:
    default = data(pipeline.draw("a red circle", seed=1))
    assert default == data(pipeline.draw("a red circle", seed=1, guidance=2.0, temperature=1.0, top_k=None))
    assert default != data(pipeline.draw("a red circle", seed=1, guidance=6.0))
    assert default != data(pipeline.draw("a blue square", seed=1))
    greedy = data(pipeline.draw("a red circle", seed=1, greedy=True))
    assert greedy == data(pipeline.draw("a red circle", seed=2, greedy=True)) != default
    assert greedy == data(pipeline.draw("a red circle", seed=3, top_k=1))


def test_settings_of_one_task_are_stored_with_the_checkpoint(
    folder: Path, tmp_path: Path, picture: Image.Image
) -> None:
    pipeline = Pipeline.load(folder, device="cpu")
    pipeline.model.generation_config.task_settings = {"edit": {"guidance": 4.0, "temperature": [0.5, 1.0, 2.0]}}
    pipeline.model.save_pretrained(tmp_path)
    pipeline.processor.save_pretrained(tmp_path)
    again = Pipeline.load(tmp_path, device="cpu")
    edited = again.edit(picture, "Make it green.", seed=1)
    assert data([edited]) == data(
        [Pipeline.load(folder).edit(picture, "Make it green.", seed=1, guidance=4.0, temperature=(0.5, 1.0, 2.0))]
    )
    assert data(again.draw("a", seed=1)) == data(Pipeline.load(folder).draw("a", seed=1))


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
    assert isinstance(pipeline.ask([picture, picture], "Are they equal?", temperature=0.9, seed=1), str)


def test_an_answer_streams_what_it_returns(pipeline: Pipeline, picture: Image.Image) -> None:
    events: list = []
    answer = pipeline.ask(picture, "What is it?", on_event=events.append, temperature=1.0, seed=4)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer
    assert isinstance(events[-1], Done)


def test_an_edit_has_the_size_of_the_picture(pipeline: Pipeline, grid_pipeline: Pipeline) -> None:
    wide = Image.new("RGB", (96, 48), "red")
    events: list = []
    assert pipeline.edit(wide, "Make it green.", seed=1, on_event=events.append).size == (32, 32)
    assert [event.done for event in events if isinstance(event, ImageProgress)] == [1, 2, 3, 4]
    assert grid_pipeline.edit(wide, "Make it green.", seed=1).size == (32, 16)
    assert grid_pipeline.edit(wide, "Make it green.", seed=1, size=(16, 48)).size == (16, 48)


def test_many_are_answered_in_one_size_and_edits_in_that_of_their_picture(grid_pipeline: Pipeline) -> None:
    drawing = [Message("user", (TextPart("a red circle"),))]
    editing = [Message("user", (ImagePart(Image.new("RGB", (96, 48))), TextPart("Make it green.")))]
    answers = grid_pipeline.answer([drawing, editing], "image", [1, 2], size=(16, 48))
    assert [picture.size for (picture,) in answers] == [(16, 48), (32, 16)]


def test_sizes_of_the_grid_layout_are_drawn_as_asked(grid_pipeline: Pipeline) -> None:
    assert grid_pipeline.sizes[0] == (32, 32)
    assert len(grid_pipeline.sizes) == 9
    for size in [(48, 16), (16, 32), (48, 48)]:
        assert grid_pipeline.draw("a red circle", size=size, seed=1)[0].size == size


def test_a_chat_answers_in_text_and_pictures(pipeline: Pipeline, picture: Image.Image) -> None:
    begin = pipeline.config.begin_image_id
    handle = pipeline.model.lm_head.register_forward_hook(lambda m, i, logits: push(logits, begin))
    try:
        history = [Message("user", (ImagePart(picture), TextPart("Draw it again.")))]
        for _ in range(2):
            events = list(pipeline.chat(history, seed=5, max_new_tokens=20))
            done = events[-1]
            pictures = [event.image for event in events if isinstance(event, ImageDone)]
            codes = [part for part in done.message.parts if isinstance(part, CodesPart)]
            assert data(pipeline.processor.decode_images(codes)) == data(pictures)
            assert len(pictures) >= 1
            texts = [part.text for part in done.message.parts if isinstance(part, TextPart)]
            assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(texts)
            assert data(pictures) == data(
                [e.image for e in pipeline.chat(history, seed=5, max_new_tokens=20) if isinstance(e, ImageDone)]
            )
            history += [done.message, Message("user", (TextPart("And again."),))]
    finally:
        handle.remove()
    chat = [{"role": "user", "content": "hello"}]
    assert isinstance(list(pipeline.chat(chat, max_new_tokens=3))[-1], Done)


def push(logits: object, index: int) -> object:
    """The same logits, with one choice more probable."""
    pushed = logits.clone()
    pushed[..., index] += 4.0
    return pushed


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


def test_two_threads_get_what_one_gets(pipeline: Pipeline) -> None:
    expected = {seed: data(pipeline.draw("a red circle", seed=seed)) for seed in (1, 2)}
    given: dict[int, list[bytes]] = {}
    threads = [
        threading.Thread(target=lambda s=seed: given.update({s: data(pipeline.draw("a red circle", seed=s))}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == expected


def test_a_dropped_stream_frees_the_pipeline(pipeline: Pipeline) -> None:
    events = pipeline.chat([{"role": "user", "content": "hello"}], seed=1)
    next(events)
    events.close()
    assert pipeline.draw("a red circle", seed=1)


def test_wrong_input_is_refused(pipeline: Pipeline, picture: Image.Image) -> None:
    calls = (
        lambda: pipeline.draw("  \n"),
        lambda: pipeline.ask(picture, ""),
        lambda: pipeline.ask([], "What?"),
        lambda: pipeline.edit(picture, " "),
        lambda: pipeline.edit(picture, "Make it green.", mask=picture, plan="a"),
        lambda: pipeline.chat([]),
        lambda: pipeline.chat([{"role": "user", "content": " "}]),
        lambda: pipeline.chat([{"role": "assistant", "content": "hi"}]),
        lambda: pipeline.draw("a", n=0),
        lambda: pipeline.draw("a", best_of=1.5),
        lambda: pipeline.draw("a", size=(64, 32)),
        lambda: pipeline.draw("a", temperature=0),
        lambda: pipeline.draw("a", top_k=0),
        lambda: pipeline.draw("a", top_p=1.5),
        lambda: pipeline.ask(picture, "What?", temperature=-1),
        lambda: pipeline.draw("a", guidance=0.5),
        lambda: pipeline.draw("a", seed=-1),
        lambda: pipeline.draw("a", tempreature=1.0),
        lambda: pipeline.ask(picture, "What?", guidance=2.0),
        lambda: pipeline.draw("a red circle " * 60),
        lambda: pipeline.chat([{"role": "user", "content": "a red circle " * 60}]),
        lambda: pipeline.draw("a", max_new_tokens=3),
        lambda: pipeline.draw("a", seed="x"),
        lambda: pipeline.draw("a", n="3"),
        lambda: pipeline.draw("a", size=(256,)),
        lambda: pipeline.draw("a", size=256),
        lambda: pipeline.draw(None),
        lambda: pipeline.ask(None, "What?"),
        lambda: pipeline.ask(3, "What?"),
        lambda: pipeline.ask(Image.new("RGB", (0, 0)), "What?"),
        lambda: pipeline.ask("http://127.0.0.1:9/a.png", "What?"),
        lambda: pipeline.chat("hi"),
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


def test_a_task_that_the_model_was_not_trained_for_is_refused(grid_pipeline: Pipeline, picture: Image.Image) -> None:
    with pytest.raises(ValueError):
        grid_pipeline.ask(picture, "What?")
    with pytest.raises(ValueError):
        grid_pipeline.chat([{"role": "user", "content": "hello"}])


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


def test_an_unknown_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        Pipeline.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        Pipeline.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError):
        Pipeline.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError):
        Pipeline.load(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError):
        Pipeline.load("nobody/nothing")


def test_an_unknown_device_or_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError):
        Pipeline.load(folder, device="abacus")
    with pytest.raises(ValueError):
        Pipeline.load(folder, device="cpu", dtype="float12")


def test_half_precision_draws_and_answers(folder: Path, picture: Image.Image) -> None:
    pipeline = Pipeline.load(folder, device="cpu", dtype="bfloat16")
    assert pipeline.draw("a red circle", n=2, seed=1)[1].size == (32, 32)
    assert isinstance(pipeline.ask(picture, "What?"), str)


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
