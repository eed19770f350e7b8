"""`model.generate` with `AutoProcessor`, as the page of a transformers model shows it: the same as the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig, LogitsProcessor
from transformers.generation.streamers import TextStreamer

from mllm.conversation import ImagePart, Message, TextPart
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Done, Pipeline
from mllm.processor import MLLMProcessor
from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="module")
def model(folder: Path) -> MLLMForConditionalGeneration:
    return AutoModelForMultimodalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> MLLMProcessor:
    return AutoProcessor.from_pretrained(folder)


PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8))
QUESTION = {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]}


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def chat_inputs(processor: MLLMProcessor, *turns: dict[str, Any], mode: str) -> Any:
    return processor.apply_chat_template(
        list(turns),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"generation_mode": mode},
    )


def test_a_picture_is_the_one_that_the_pipeline_draws(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, pipeline: Pipeline
) -> None:
    inputs = processor(text="a red circle", generation_mode="image", return_tensors="pt")
    codes = model.generate(**inputs, generation_mode="image", num_return_sequences=2, seed=7)
    assert codes.shape == (2, 4 * 3) and codes.dtype == torch.int64
    pictures = processor.post_process_multimodal_output(codes, generation_mode="image")
    assert pixels(pictures) == pixels(pipeline.draw("a red circle", n=2, seed=7))
    settings = {"temperature": 0.7, "top_k": 5, "top_p": 0.9}
    codes = model.generate(**inputs, generation_mode="image", guidance_scale=4.0, seed=1, **settings)
    drawn = pipeline.draw("a red circle", seed=1, guidance=4.0, **settings)
    assert pixels(processor.post_process_multimodal_output(codes, generation_mode="image")) == pixels(drawn)
    greedy = model.generate(**inputs, generation_mode="image", do_sample=False)
    drawn = pipeline.draw("a red circle", greedy=True)
    assert pixels(processor.post_process_multimodal_output(greedy, generation_mode="image")) == pixels(drawn)


def test_an_answer_is_the_one_that_the_pipeline_gives(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, pipeline: Pipeline
) -> None:
    inputs = chat_inputs(processor, QUESTION, mode="text")
    ids = model.generate(**inputs, max_new_tokens=40)
    num_given = inputs["input_ids"].shape[1]
    assert ids[:, :num_given].equal(inputs["input_ids"])
    answer = processor.batch_decode(ids[:, num_given:])[0].strip()
    assert answer == pipeline.ask(PICTURE, "What is it?", max_new_tokens=40)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=True, temperature=0.9, top_k=0, seed=3)
    answer = processor.batch_decode(ids[:, num_given:])[0].strip()
    assert answer == pipeline.ask(PICTURE, "What is it?", max_new_tokens=40, temperature=0.9, seed=3)
    whole = processor.post_process_multimodal_output(ids)[0]
    assert "What is it?" in whole and "<" not in whole, "the picture of the prompt is no text"


def test_an_edit_and_a_mixed_answer_are_the_pipeline_s(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, pipeline: Pipeline
) -> None:
    inputs = processor(PICTURE, "Make it green.", generation_mode="image")
    out = model.generate(**inputs, generation_mode="image", seed=5, return_dict_in_generate=True)
    edited = pipeline.edit(PICTURE, "Make it green.", seed=5)
    assert pixels(processor.post_process_multimodal_output(out, generation_mode="image")) == pixels([edited])
    assert out.finish_reasons == ["image"] and out.seeds == [5]
    inputs = chat_inputs(processor, QUESTION, mode="interleaved")
    begin = model.config.begin_image_id
    handles = [m.lm_head.register_forward_hook(lambda m, i, o: push(o, begin)) for m in (model, pipeline.model)]
    try:
        out = model.generate(**inputs, generation_mode="interleaved", seed=2, max_new_tokens=25)
        history = [Message("user", (ImagePart(PICTURE), TextPart("What is it?")))]
        done = list(pipeline.chat(history, seed=2, max_new_tokens=25))[-1]
    finally:
        for handle in handles:
            handle.remove()
    assert isinstance(done, Done) and len(out.images[0]) >= 1
    parts = processor.post_process_multimodal_output(out, generation_mode="interleaved")[0]
    texts = [part.text for part in done.message.parts if isinstance(part, TextPart) and part.text]
    assert [part for part in parts if isinstance(part, str)] == texts
    codes = [part.codes_KN for part in done.message.parts if not isinstance(part, TextPart)]
    assert all((ours.codes_KN == theirs).all() for ours, theirs in zip(out.images[0], codes, strict=True))


def push(logits: torch.Tensor, index: int) -> torch.Tensor:
    """The same logits, with one choice more probable."""
    pushed = logits.clone()
    pushed[..., index] += 4.0
    return pushed


def test_a_batch_is_each_prompt_alone(model: MLLMForConditionalGeneration, processor: MLLMProcessor) -> None:
    chats = [
        [{"role": "user", "content": "a red circle"}],
        [QUESTION],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": PICTURE}] * 2}],
    ]
    together = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, generation_mode="image"
    )
    codes = model.generate(**together, generation_mode="image", seed=[4, 5, 6])
    for row, chat in enumerate(chats):
        alone = processor(messages=chat, generation_mode="image")
        assert codes[row].equal(model.generate(**alone, generation_mode="image", seed=4 + row)[0])


def test_without_a_seed_torch_s_random_state_settles_it(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    inputs = processor(text="a red circle", generation_mode="image")
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**inputs, generation_mode="image").tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_generation_config_says_the_same_as_options(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    inputs = processor(PICTURE, "What is it?")
    by_config = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.9, max_new_tokens=20)
    one = model.generate(**inputs, generation_config=by_config, seed=1)
    other = model.generate(**inputs, do_sample=True, temperature=0.8, top_p=0.9, max_new_tokens=20, seed=1)
    assert one.equal(other)
    cold = model.generate(**inputs, generation_config=by_config, temperature=1e-4, seed=1)
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=20)
    assert cold.equal(greedy), "an option lies over the config"


def test_settings_of_a_task_are_those_of_the_checkpoint(folder: Path, tmp_path: Path, processor: MLLMProcessor) -> None:
    model = MLLMForConditionalGeneration.from_pretrained(folder)
    model.generation_config.task_settings = {"draw": {"guidance": 4.0, "temperature": [0.5, 1.0, 2.0]}}
    model.save_pretrained(tmp_path)
    again = MLLMForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor(text="a red circle", generation_mode="image")
    expected = Pipeline.load(folder, device="cpu").draw(
        "a red circle", seed=1, guidance=4.0, temperature=(0.5, 1.0, 2.0)
    )
    codes = again.generate(**inputs, generation_mode="image", seed=1)
    assert pixels(processor.post_process_multimodal_output(codes, generation_mode="image")) == pixels(expected)


class OnlyThis(LogitsProcessor):
    """Leaves one token."""

    def __init__(self, token_id: int) -> None:
        self.token_id, self.lengths = token_id, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.lengths.append(input_ids.shape[1])
        assert int(input_ids.min()) >= 0
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([self.token_id]), 0.0)


def test_logits_processors_settle_the_text_and_see_what_came_before(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    inputs = processor(PICTURE, "What is it?")
    only = OnlyThis(9)
    ids = model.generate(**inputs, logits_processor=[only], max_new_tokens=3)
    assert ids[0, -3:].tolist() == [9, 9, 9]
    num_given = inputs["input_ids"].shape[1]
    assert only.lengths == [num_given, num_given + 1, num_given + 2]


def test_a_streamer_gets_the_text(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = processor(PICTURE, "What is it?", return_tensors="pt")
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = model.generate(**inputs, streamer=streamer, max_new_tokens=20)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert capsys.readouterr().out.strip() == processor.decode(new).strip()
    with pytest.raises(ValueError):
        model.generate(**inputs, streamer=streamer, num_return_sequences=2)


def test_pictures_of_other_sizes_keep_theirs(tmp_path: Path) -> None:
    folder = build_tiny_folder(tmp_path, layout="grid")
    pipeline, processor = Pipeline.load(folder, device="cpu"), MLLMProcessor.from_pretrained(folder)
    wide = PICTURE.resize((48, 16))
    inputs = processor([wide, PICTURE, wide], "Make it green.", generation_mode="image")
    out = pipeline.model.generate(**inputs, generation_mode="image", seed=1, return_dict_in_generate=True)
    assert processor.post_process_multimodal_output(out, generation_mode="image")[0].size == (48, 16)
    edited = pipeline.edit(wide, "Make it green.", seed=1)
    inputs = processor(wide, "Make it green.", generation_mode="image")
    out = pipeline.model.generate(**inputs, generation_mode="image", seed=1, return_dict_in_generate=True)
    assert pixels(processor.post_process_multimodal_output(out, generation_mode="image")) == pixels([edited])
    codes = pipeline.model.generate(**inputs, generation_mode="image", seed=1)
    with pytest.raises(ValueError):
        processor.post_process_multimodal_output(codes, generation_mode="image")
    drawn = processor(text="a", generation_mode="image")
    codes = pipeline.model.generate(**drawn, generation_mode="image", seed=1, size=(32, 48))
    assert codes.shape == (1, 6 * 3)


def test_images_may_be_named_by_their_files(processor: MLLMProcessor, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    named = [{"type": "image", key: str(tmp_path / "a.png")} for key in ("path", "url", "image")]
    chats = [[{"role": "user", "content": [image, QUESTION["content"][1]]}] for image in named]
    found = [processor(messages=chat) for chat in chats] + [processor(str(tmp_path / "a.png"), "What is it?")]
    assert all(inputs["codes"].equal(processor(messages=[QUESTION])["codes"]) for inputs in found)


def test_what_cannot_be_done_is_refused(model: MLLMForConditionalGeneration, processor: MLLMProcessor) -> None:
    inputs = processor(PICTURE, "What is it?")
    for options in (
        {"num_beams": 4},
        {"max_length": 40},
        {"generation_mode": "sound"},
        {"generation_mode": "image"},  # guided, without a negative prompt
        {"guidance_scale": 3.0},
        {"temperature": 0.0},
        {"seed": [1, 2]},
        {"input_ids": None},
        {"codes": None},
        {"generation_mode": "image", "guidance_scale": 1.0, "size": (64, 64)},
    ):
        with pytest.raises(ValueError):
            model.generate(**{**inputs, **options})


def test_guidance_one_needs_no_second_prompt(model: MLLMForConditionalGeneration, processor: MLLMProcessor) -> None:
    inputs = processor(text="a red circle")
    assert model.generate(**inputs, generation_mode="image", guidance_scale=1, seed=1).shape == (1, 12)


def test_a_processor_refuses_what_the_model_does_not_read(processor: MLLMProcessor, tmp_path: Path) -> None:
    upstream = MLLMProcessor.from_pretrained(build_tiny_folder(tmp_path, prompt_style="unitok", context=400))
    model = MLLMForConditionalGeneration.from_pretrained(tmp_path)
    for call in (
        lambda: processor(text="a", audio=[0.0]),
        lambda: processor.apply_chat_template([QUESTION], tokenize=True, continue_final_message=True),
        lambda: processor.post_process_multimodal_output(torch.zeros(1, 3), generation_mode="interleaved"),
        lambda: upstream(PICTURE, "Make it green.", generation_mode="image"),
        lambda: model.generate(**upstream(text="a"), generation_mode="interleaved"),
    ):
        with pytest.raises(ValueError):
            call()
