"""Pictures with outlines on their way through the toolkit: drawn, shown, saved, and looked at again in a chat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from demo.answer import show
from mllm.conversation import CodesPart, ImagePart, Message, TextPart
from mllm.pictures import OUTLINE, save_picture
from mllm.pipeline import Done, ImageDone, Pipeline, TextDelta
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.image_processor import open_image


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = build_tiny_folder(tmp_path_factory.mktemp("outlined"), outlines=True, context=300)
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="module")
def drawn(pipeline: Pipeline) -> Image.Image:
    return pipeline.draw("a red circle", seed=3)[0]


def test_a_drawn_picture_says_its_outline(pipeline: Pipeline, drawn: Image.Image) -> None:
    assert drawn.info[OUTLINE]
    four = pipeline.draw("a red circle", n=4, seed=2)
    assert four[1].info[OUTLINE] == drawn.info[OUTLINE] and four[1].tobytes() == drawn.tobytes()
    assert len({picture.info[OUTLINE] for picture in four}) == 4
    assert pipeline.edit(drawn, "Make it green.", seed=1).info[OUTLINE]
    (parts,) = pipeline.answer([[Message("user", (TextPart("a red circle"),))]], "image", [3])
    assert [part.info[OUTLINE] for part in parts] == [drawn.info[OUTLINE]]
    greedy = {pipeline.draw("a red circle", seed=seed, greedy=True)[0].info[OUTLINE] for seed in range(3)}
    assert len(greedy) == 1


def test_a_png_keeps_it_and_other_files_do_not(drawn: Image.Image, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.jpg"):
        save_picture(drawn, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert open_image(tmp_path / "a.png").info[OUTLINE] == drawn.info[OUTLINE]
    assert OUTLINE not in open_image(tmp_path / "c.jpg").info
    save_picture(Image.new("RGB", (4, 4)), tmp_path / "plain.png")
    assert OUTLINE not in open_image(tmp_path / "plain.png").info


def test_a_chat_shows_no_outline_and_remembers_it(pipeline: Pipeline, tmp_path: Path) -> None:
    likes_to_draw = torch.zeros(pipeline.config.vocab_size)
    likes_to_draw[pipeline.config.begin_outline_id] = 30.0
    hook = pipeline.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + likes_to_draw)
    asked = [Message("user", (TextPart("a red circle"),))]
    try:
        events = list(pipeline.chat(asked, seed=1))
    finally:
        hook.remove()
    pictures = [event.image for event in events if isinstance(event, ImageDone)]
    done = events[-1]
    assert isinstance(done, Done) and pictures
    drawn = [part for part in done.message.parts if isinstance(part, CodesPart)]
    assert [part.outline for part in drawn] == [picture.info[OUTLINE] for picture in pictures]
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert not any(part.outline in said for part in drawn)

    content: list = []
    for event in events:
        show(event, content, tmp_path)
    files = [part["path"] for part in content if "path" in part]
    looked_at = pipeline.processor.encode_images([open_image(file) for file in files])
    assert [part.outline for part in looked_at] == [part.outline for part in drawn]


def test_only_the_assistants_pictures_are_outlined_in_the_prompt(pipeline: Pipeline, drawn: Image.Image) -> None:
    marker = pipeline.config.begin_outline_id
    answered = [Message("user", (TextPart("draw"),)), Message("assistant", (ImagePart(drawn),))]
    asked = Message("user", (ImagePart(drawn), TextPart("What is it?")))
    for messages, times in (([asked], 0), ([*answered, asked], 1)):
        sequence = pipeline.processor.build(messages, add_generation_prompt=True)
        assert sequence.token_ids_T.tolist().count(marker) == times


def test_a_model_without_outlines_forgets_those_of_others(drawn: Image.Image, tmp_path: Path) -> None:
    plain = Pipeline.load(build_tiny_folder(tmp_path / "plain"), device="cpu")
    assert plain.processor.encode_images([drawn])[0].outline is None
    assert OUTLINE not in plain.draw("a red circle", seed=1)[0].info


def test_generate_in_the_manner_of_transformers_draws_the_same(pipeline: Pipeline) -> None:
    row = pipeline.rows.build(
        [Message("user", (TextPart("a red circle"),))], "image", task="draw", overrides={"seed": 5}
    )
    codes = pipeline.run([row])[0].images[0].codes_KN
    inputs = pipeline.processor(text="a red circle", generation_mode="image")
    drawn = pipeline.model.generate(**inputs, generation_mode="image", seed=5)
    assert drawn.reshape(-1, pipeline.config.num_codebooks).T.tolist() == codes.tolist()


def test_outlines_need_the_native_prompt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outlines have a place in the native prompt only"):
        build_tiny_folder(tmp_path, outlines=True, prompt_style="unitok")


def test_a_person_may_write_the_outline(pipeline: Pipeline, drawn: Image.Image) -> None:
    told = pipeline.draw("a red circle", seed=3, outline=" red  a ")[0]
    assert told.info[OUTLINE] == "red  a" and told.tobytes() != drawn.tobytes()
    assert pipeline.edit(drawn, "Make it green.", outline="a", seed=1).info[OUTLINE] == "a"
    with pytest.raises(ValueError, match="the outline is empty"):
        pipeline.draw("a red circle", outline=" ")
