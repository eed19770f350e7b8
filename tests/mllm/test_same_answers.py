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
from mllm.world.dialogue import edit_sentence, propose_edit, propose_question, say_question
from mllm.world.language import make_draw_request
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


@pytest.mark.slow
def test_automodel_and_pipeline_agree(
    ours: Pipeline, model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    """60 answers, 20 drawings and 20 edits, as docs/transformers.md says."""
    rng = Random(0)
    scenes = [random_scene(rng) for _ in range(60)]
    asked = [(render(scene, 256), say_question(propose_question(scene, rng), rng)) for scene in scenes]
    for part in (asked[n : n + 10] for n in range(0, len(asked), 10)):
        inputs = inputs_of(processor, *([turn(*each)] for each in part))
        texts = processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :])
        assert [text.strip() for text in texts] == [ours.ask(image, question) for image, question in part]

    def images_of(*chats: list[dict[str, Any]], seed: int) -> list[bytes]:
        codes = model.generate(
            **inputs_of(processor, *chats, generation_mode="image"), generation_mode="image", seed=seed
        )
        return [image.tobytes() for image in processor.post_process_multimodal_output(codes, generation_mode="image")]

    texts = [make_draw_request(random_scene(rng), rng).text for _ in range(20)]
    expected = [ours.draw(text, seed=seed)[0].tobytes() for seed, text in enumerate(texts)]
    assert images_of(*([turn(text)] for text in texts), seed=0) == expected
    for seed in range(20):
        scene = random_scene(rng, num_objects=2)
        image, (instruction, _) = render(scene, 256), edit_sentence(propose_edit(scene, rng), scene, rng)
        found = images_of([turn(image, instruction)], seed=seed)
        assert found == [ours.edit(image, instruction, seed=seed).tobytes()], instruction


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
