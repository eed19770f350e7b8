"""The bundled model describes images: through transformers' classes and pipelines it answers as through `Pipeline`."""

from importlib.util import find_spec
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from mllm.checkpoint import find_model_folder
from mllm.conversation import from_chat
from mllm.generate import describe, insert, read_prompts
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.world.render import render
from mllm.world.scene import random_scene

FOLDER = find_model_folder(None)


@pytest.fixture(scope="module")
def ours() -> Pipeline:
    return Pipeline.load(FOLDER, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model() -> MLLMForConditionalGeneration:
    return AutoModelForMultimodalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor() -> MLLMProcessor:
    return AutoProcessor.from_pretrained(FOLDER)


def turn(*content: Image.Image | str) -> dict[str, Any]:
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": "user", "content": parts}


def inputs_of(processor: MLLMProcessor, *chats: list[dict[str, Any]], **options: Any) -> Any:
    flags = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return processor.apply_chat_template(list(chats), **flags, processor_kwargs=options)


def test_images_of_all_turns_are_described_but_those_that_the_assistant_drew(
    ours: Pipeline, model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    """Several images, in several turns, in a batch: the prompts that `Pipeline` builds."""
    one, other = (render(random_scene(Random(seed)), 256) for seed in (1, 2))
    drawn = {"role": "assistant", "content": [{"type": "image", "image": other}]}
    chats = [[turn(one, "What is it?")], [turn("Hi")], [turn(one, "Depth?"), drawn, turn(one, other, "Which?")]]
    inputs = inputs_of(processor, *chats)
    prompts = list(read_prompts(inputs["input_ids"], None, inputs, ours.config))
    for chat, prompt, words in zip(chats, prompts, describe(model, prompts), strict=True):
        (messages,) = ours.describe([from_chat(chat)])
        expected = ours.build_request(messages, "text", task="ask").prompt.token_ids_T.tolist()
        assert insert(prompt, words, ours.config).token_ids_T.tolist() == expected
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs)
    assert ids[:, :length].equal(inputs["input_ids"]), "the descriptions are not returned"
    assert processor.batch_decode(ids[:1, length:])[0].strip() == ours.ask(one, "What is it?")
    inputs = inputs_of(processor, [turn(one, "Make it green.")], generation_mode="image")
    codes = model.generate(**inputs, generation_mode="image", seed=1)
    (edited,) = processor.post_process_multimodal_output(codes, generation_mode="image")
    assert edited.tobytes() == ours.edit(one, "Make it green.", seed=1).tobytes()


def test_pipelines_of_transformers_agree(
    ours: Pipeline, model: MLLMForConditionalGeneration, processor: MLLMProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs ask for torchvision, which not every build of torch can have beside it; only that check is left out."""
    if find_spec("torchvision") is None:
        with pytest.raises(ImportError, match="(?i)torchvision"):
            pipeline("any-to-any", model=model, processor=processor)
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *args: None)
    image = render(random_scene(Random(1)), 256)
    answer = ours.ask(image, "What do you see?")
    for task in ("image-text-to-text", "any-to-any"):
        pipe = pipeline(task, model=model, processor=processor)
        (found,) = pipe([turn(image, "What do you see?")], return_full_text=False)
        assert found["generated_text"].strip() == answer, task
    options = {"generation_mode": "image", "generate_kwargs": {"seed": 3}}
    (found,) = pipe([turn("a red circle")], processor_kwargs={"generation_mode": "image"}, **options)
    drawn = found if isinstance(found, Image.Image) else found["generated_image"]
    assert drawn.tobytes() == ours.draw("a red circle", seed=3)[0].tobytes()
    with pytest.raises(ValueError):
        pipe([turn(image, "What do you see?")], generation_mode="interleaved")
