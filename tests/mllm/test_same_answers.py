"""The bundled model through transformers (AutoModel, AutoProcessor, pipelines, Trainer) and through `Pipeline`: the
same answers, drawings and edits."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from mllm.checkpoint import find_model_folder
from mllm.generate import describe, insert, read_prompts
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.world.dialogue import edit_sentence, propose_edit, propose_question, say_question
from mllm.world.language import make_draw_request
from mllm.world.render import render
from mllm.world.scene import random_scene

FOLDER = find_model_folder(None)
CHUNK = 10


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


def prompts(processor: MLLMProcessor, turns: list[dict[str, Any]], **options: Any) -> Iterator[Any]:
    """Model inputs of a batch at a time."""
    for start in range(0, len(turns), CHUNK):
        chats = [[chat] for chat in turns[start : start + CHUNK]]
        yield processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=options
        )


@pytest.mark.parametrize(
    ("questions", "drawings", "edits"), [(3, 1, 1), pytest.param(60, 20, 20, marks=pytest.mark.slow)]
)
def test_automodel_and_pipeline_agree(
    ours: Pipeline,
    model: MLLMForConditionalGeneration,
    processor: MLLMProcessor,
    questions: int,
    drawings: int,
    edits: int,
) -> None:
    rng = Random(0)
    scenes = [random_scene(rng) for _ in range(questions)]
    asked = [(render(scene, 256), say_question(propose_question(scene, rng), rng)) for scene in scenes]
    answers = []
    for inputs in prompts(processor, [turn(*parts) for parts in asked]):
        new = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new)]
    assert answers == [ours.ask(image, question) for image, question in asked]
    texts = [make_draw_request(random_scene(rng), rng).text for _ in range(drawings)]
    images = []
    for inputs in prompts(processor, [turn(text) for text in texts], generation_mode="image"):
        codes = model.generate(**inputs, generation_mode="image", seed=len(images))
        images += processor.post_process_multimodal_output(codes, generation_mode="image")
    for seed, (text, image) in enumerate(zip(texts, images, strict=True)):
        assert ours.draw(text, seed=seed)[0].tobytes() == image.tobytes(), text
    for seed in range(edits):
        scene = random_scene(rng, num_objects=2)
        image, instruction = render(scene, 256), edit_sentence(propose_edit(scene, rng), scene, rng)[0]
        (inputs,) = prompts(processor, [turn(image, instruction)], generation_mode="image")
        codes = model.generate(**inputs, generation_mode="image", seed=seed)
        (edited,) = processor.post_process_multimodal_output(codes, generation_mode="image")
        assert ours.edit(image, instruction, seed=seed).tobytes() == edited.tobytes(), instruction


def test_images_of_all_turns_are_described_but_those_that_the_assistant_drew(
    ours: Pipeline, model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    """Several images, in several turns, in a batch: the prompts that `Pipeline` builds."""
    one, other = (render(random_scene(Random(seed)), 256) for seed in (1, 2))
    drawn = {"role": "assistant", "content": [{"type": "image", "image": other}]}
    chats = [[turn(one, "What is it?")], [turn("Hi")], [turn(one, "Depth?"), drawn, turn(one, other, "Which?")]]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    inputs = processor.apply_chat_template(chats, **options)
    prompts = list(read_prompts(inputs["input_ids"], None, inputs, ours.config))
    for chat, prompt, words in zip(chats, prompts, describe(model, prompts), strict=True):
        (messages,) = ours.describe([processor.read_chat(chat)])
        expected = ours.build_request(messages, "text", task="ask").prompt.token_ids_T.tolist()
        assert insert(prompt, words, ours.config).token_ids_T.tolist() == expected
    ids = model.generate(**inputs, max_new_tokens=3)
    assert ids[:, : inputs["input_ids"].shape[1]].equal(inputs["input_ids"]), "the descriptions are not returned"


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
