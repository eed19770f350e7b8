"""`model.generate` with `AutoProcessor`, as the page of a transformers model shows it: the same as the pipeline."""

from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor, DynamicCache, GenerationConfig
from transformers import pipeline as transformers_pipeline
from transformers.generation.streamers import TextStreamer

from mllm.checkpoint import find_model_folder
from mllm.conversation import Message, TextPart, from_chat
from mllm.engine.request import GenerationRequest
from mllm.generate import describe, insert, read_prompts
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Done, Pipeline
from mllm.processor import MLLMProcessor
from mllm.sequence import build_sequence
from mllm.world.dialogue import edit_sentence, propose_edit, propose_question, say_question
from mllm.world.language import make_draw_request
from mllm.world.render import render
from mllm.world.scene import random_scene
from tests.mllm.engine_helpers import liking
from tests.mllm.tiny_folder import build_tiny_folder, pixels, random_image, turn
from tests.train.launching import command, run_program


@pytest.fixture(scope="module")
def model(folder: Path) -> MLLMForConditionalGeneration:
    return AutoModelForMultimodalLM.from_pretrained(folder)


IMAGE = random_image()
user = partial(turn, "user")
QUESTION, DOUBLE = user(IMAGE, "What is it?"), user(IMAGE, "or", IMAGE)


PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}


def chat_inputs(processor: MLLMProcessor, turn: dict[str, Any], mode: str) -> Any:
    return processor.apply_chat_template([turn], **PROMPT, processor_kwargs={"generation_mode": mode})


def test_an_image_is_the_one_that_the_pipeline_draws(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, pipeline: Pipeline
) -> None:
    inputs = processor(text="a red circle", generation_mode="image", return_tensors="pt")
    same = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 1}
    for theirs, ours in (
        ({"num_return_sequences": 2, "seed": 7}, {"n": 2, "seed": 7}),
        ({"guidance_scale": 4.0, **same}, {"guidance": 4.0, **same}),
        ({"do_sample": False}, {"greedy": True}),
    ):
        codes = model.generate(**inputs, generation_mode="image", **theirs)
        assert codes.shape == (ours.get("n", 1), 4 * 3) and codes.dtype == torch.int64
        drawn = pipeline.draw("a red circle", **ours)
        assert pixels(processor.post_process_multimodal_output(codes, generation_mode="image")) == pixels(drawn)
    bare = processor(text="a red circle")
    assert model.generate(**bare, generation_mode="image", guidance_scale=1, seed=1).shape == (1, 12)


def test_an_edit_and_a_mixed_answer_are_the_pipeline_s(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, pipeline: Pipeline
) -> None:
    inputs = processor(IMAGE, "Make it green.", generation_mode="image")
    out = model.generate(**inputs, generation_mode="image", seed=5, return_dict_in_generate=True)
    edited = pipeline.edit(IMAGE, "Make it green.", seed=5)
    assert pixels(processor.post_process_multimodal_output(out, generation_mode="image")) == pixels([edited])
    assert out.finish_reasons == ["image"] and out.seeds == [5]
    inputs = chat_inputs(processor, QUESTION, "interleaved")
    likes, options = {model.config.begin_image_id: 4.0}, {"seed": 2, "max_new_tokens": 25}
    with liking(model, likes), liking(pipeline.model, likes):
        out = model.generate(**inputs, generation_mode="interleaved", **options)
        done = list(pipeline.chat([QUESTION], **options))[-1]
    assert isinstance(done, Done) and len(out.images[0]) >= 1
    parts = processor.post_process_multimodal_output(out, generation_mode="interleaved")[0]
    texts = [part.text for part in done.message.parts if isinstance(part, TextPart) and part.text]
    assert [part for part in parts if isinstance(part, str)] == texts
    codes = [part.codes_KN for part in done.message.parts if not isinstance(part, TextPart)]
    assert all((ours.codes_KN == theirs).all() for ours, theirs in zip(out.images[0], codes, strict=True))


def test_a_batch_is_each_prompt_alone(model: MLLMForConditionalGeneration, processor: MLLMProcessor) -> None:
    chats = [
        [user("a red circle")],
        [QUESTION],
        [user("a", IMAGE, "a", IMAGE)],
    ]
    together = processor.apply_chat_template(chats, **PROMPT, generation_mode="image")
    codes = model.generate(**together, generation_mode="image", seed=[4, 5, 6])
    for row, chat in enumerate(chats):
        alone = processor(messages=chat, generation_mode="image")
        assert codes[row].equal(model.generate(**alone, generation_mode="image", seed=4 + row)[0])


def test_without_a_seed_torch_s_random_state_settles_it(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    inputs, drawn = processor(text="a red circle", generation_mode="image"), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**inputs, generation_mode="image").tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_settings_of_a_task_are_those_of_the_checkpoint(
    folder: Path, tmp_path: Path, processor: MLLMProcessor, pipeline: Pipeline
) -> None:
    model = MLLMForConditionalGeneration.from_pretrained(folder)
    model.generation_config.task_settings = {"draw": {"guidance": 4.0, "temperature": [0.5, 1.0, 2.0]}}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MLLMForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor(text="a red circle", generation_mode="image")
    expected = pipeline.draw("a red circle", seed=1, guidance=4.0, temperature=(0.5, 1.0, 2.0))
    codes = again.generate(**inputs, generation_mode="image", seed=1)
    assert pixels(processor.post_process_multimodal_output(codes, generation_mode="image")) == pixels(expected)
    assert pixels(Pipeline.load(tmp_path, device="cpu").draw("a red circle", seed=1)) == pixels(expected)


def test_the_text_loop_is_that_of_transformers(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ways to the most probable answer agree, and its options and results are there, with images in a batch."""
    chats = [[QUESTION], [user("a red circle")], [DOUBLE]]
    inputs, length = processor.apply_chat_template(chats, **PROMPT), 12
    given = inputs["input_ids"].shape[1]
    greedy = model.generate(**inputs, max_new_tokens=length)
    for more in (
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"generation_config": GenerationConfig(num_beams=1)},
        {"attention_mask": None},
    ):
        assert model.generate(**{**inputs, "max_new_tokens": length, **more}).equal(greedy), more
    one, streamer = processor.apply_chat_template([DOUBLE], **PROMPT), TextStreamer(processor.tokenizer, True)
    for more in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": model}, {"past_key_values": DynamicCache()}):
        assert model.generate(**one, max_new_tokens=length, **more)[0, -length:].equal(greedy[2, -length:]), more
    capsys.readouterr()
    model.generate(**one, streamer=streamer, max_new_tokens=length)
    assert processor.decode(greedy[2, given:]).strip() in capsys.readouterr().out
    sample = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 2, "top_k": 0, "seed": 3}
    several, again = model.generate(**inputs, **sample), model.generate(**inputs, **sample)
    assert several.shape == (6, given + 5) and several.equal(again)
    search = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2}
    beams = model.generate(**inputs, **search)
    for row, chat in enumerate(chats):
        alone = model.generate(**processor.apply_chat_template(chat, **PROMPT), **search)
        assert alone[:, -5:].equal(beams[2 * row : 2 * row + 2, -5:])
    more = {"output_logits": True, "output_hidden_states": True, "return_dict_in_generate": True}
    out = model.generate(**inputs, max_new_tokens=4, **more)
    assert len(out.logits) == 4 and len(out.hidden_states[0]) == 3
    expected = model(**{**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}).logits[:, -1]
    torch.testing.assert_close(out.logits[0], expected)
    third = greedy[0, given + 2].item()
    for more in (
        {"generation_config": GenerationConfig(eos_token_id=third)},
        {"generation_config": GenerationConfig(max_length=given + 3)},
        {"stopping_criteria": [lambda ids, scores: torch.full(ids.shape[:1], ids.shape[1] >= given + 3)]},
    ):
        found = model.generate(**{name: tensor for name, tensor in inputs.items() if name != "code_targets"}, **more)
        assert found[0, given : given + 3].equal(greedy[0, given : given + 3]) and not found[0, given + 3 :].any(), more


def test_logits_processors_see_padding_for_images_and_no_text_begins_an_image(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    def only_nine(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert int(ids.min()) >= 0
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([9]), 0.0)

    inputs = processor(IMAGE, "What is it?")
    assert model.generate(**inputs, logits_processor=[only_nine], max_new_tokens=3)[0, -3:].tolist() == [9, 9, 9]
    with liking(model, {model.config.begin_image_id: 100.0}):
        new = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert model.config.begin_image_id not in new.tolist()


def test_images_of_other_sizes_keep_theirs(tmp_path: Path) -> None:
    folder = build_tiny_folder(tmp_path, layout="grid")
    pipeline, processor = Pipeline.load(folder, device="cpu"), MLLMProcessor.from_pretrained(folder)
    wide = IMAGE.resize((48, 16))
    for images in ([wide, IMAGE, wide], wide):
        inputs = processor(images, "Make it green.", generation_mode="image")
        out = pipeline.model.generate(**inputs, generation_mode="image", seed=1, return_dict_in_generate=True)
        (edited,) = processor.post_process_multimodal_output(out, generation_mode="image")
        assert edited.size == (48, 16)
    assert pixels([edited]) == pixels([pipeline.edit(wide, "Make it green.", seed=1)])
    codes = pipeline.model.generate(**inputs, generation_mode="image", seed=1)
    with pytest.raises(ValueError):
        processor.post_process_multimodal_output(codes, generation_mode="image")
    drawn = processor(text="a", generation_mode="image")
    codes = pipeline.model.generate(**drawn, generation_mode="image", seed=1, size=(32, 48))
    assert codes.shape == (1, 6 * 3)


def test_a_generation_config_may_be_a_dict(model: MLLMForConditionalGeneration, processor: MLLMProcessor) -> None:
    for mode, settings in (("text", {"max_new_tokens": 3, "do_sample": False}), ("image", {"seed": 1, "top_k": 5})):
        inputs = {**processor(text="a red circle", generation_mode=mode), "generation_mode": mode}
        expected = model.generate(**inputs, generation_config=GenerationConfig(**settings))
        assert model.generate(**inputs, generation_config=settings).equal(expected)
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(**inputs, generation_config={"num_beams": 4})


def test_a_description_is_asked_for_as_it_is_learned_with_describe_share(
    processor: MLLMProcessor, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an image without a question (train/data/mixture.py `choose_sample`)."""
    learned = [Message("user", tuple(processor.encode_images([IMAGE]))), Message("assistant", (TextPart("a star"),))]
    sequence = build_sequence(learned, tokenizer=processor.tokenizer, config=pipeline.config)
    asked = processor(IMAGE)["input_ids"][0].tolist()
    requests: list[GenerationRequest] = []
    monkeypatch.setattr(pipeline, "events", requests.append)
    pipeline.chat([user(IMAGE)])
    assert asked == requests[0].prompt.token_ids_T.tolist() == sequence.token_ids_T[: len(asked)].tolist()


def test_what_cannot_be_done_is_refused_and_what_asks_for_nothing_is_not(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor
) -> None:
    """Of the call, of its generation config, and of the model's."""
    drawn = processor(text="a red circle", generation_mode="image")
    drawing = {"generation_mode": "image", "seed": 1, "return_dict_in_generate": True}
    expected = model.generate(**drawn, **drawing).sequences
    for name, value, neutral in (
        ("num_beams", 4, 1),
        ("eos_token_id", 5, [model.config.eos_token_id]),
        ("min_new_tokens", 5, None),
        ("output_scores", True, False),
        ("bad_words_ids", [[5]], []),
    ):
        before = getattr(model.generation_config, name)
        for how, setting in product(("call", "config", "model"), (value, neutral)):
            options = {"call": {name: setting}, "config": {"generation_config": GenerationConfig(**{name: setting})}}
            if how == "model":
                setattr(model.generation_config, name, setting)
            if setting == neutral:
                assert model.generate(**drawn, **drawing, **options.get(how, {})).sequences.equal(expected)
            else:
                with pytest.raises(ValueError, match=name):
                    model.generate(**drawn, **drawing, **options.get(how, {}))
            setattr(model.generation_config, name, before)
    inputs = processor(IMAGE, "What is it?")
    image = {"generation_mode": "image", "guidance_scale": 1.0}
    for options in (
        {"input_ids": torch.full((1, 500), 5), "attention_mask": None, "codes": None, "image_lengths": None},
        {"image_lengths": inputs["image_lengths"] + 1},
        *({"max_new_tokens": 0}, {"max_length": 10}, {"size": (32, 32)}, {"unknown": 1}, {"generation_mode": "sound"}),
        *({name: None} for name in ("input_ids", "codes", "image_lengths")),
        {"generation_mode": "image"},  # guided, without a negative prompt
        *({**image, **more} for more in ({"synced_gpus": True}, {"unknown": 1}, {"seed": [1, 2]}, {"seed": -1})),
        *({**image, **more} for more in ({"seed": "x"}, {"num_return_sequences": 0})),
        *({**image, **more} for more in ({"size": (64, 64)}, {"image_lengths": None})),
        {**image, "position_ids": torch.arange(inputs["input_ids"].shape[1])[None]},
    ):
        with pytest.raises(ValueError):
            model.generate(**{**inputs, **options})


@pytest.mark.slow
def test_processes_that_answer_together_answer_as_alone(tmp_path: Path) -> None:
    """`synced_gpus`, by itself and as ZeRO-3 sets it: one process describes two images, the other has none."""
    folder = build_tiny_folder(tmp_path / "model", outlines=True, context=700)
    words = command("torchrun", folder, module="tests.train.workers answer")
    assert run_program(*words).count("answers as alone") == 2


# ---- the bundled model, which describes images ----

FOLDER = find_model_folder(None)


@pytest.fixture(scope="module")
def bundled() -> tuple[Pipeline, MLLMForConditionalGeneration, MLLMProcessor]:
    model = AutoModelForMultimodalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return Pipeline.load(FOLDER, device="cpu", dtype="float32"), model, AutoProcessor.from_pretrained(FOLDER)


def inputs_of(processor: MLLMProcessor, *chats: list[dict[str, Any]], **options: Any) -> Any:
    return processor.apply_chat_template(list(chats), **PROMPT, processor_kwargs=options)


@pytest.mark.slow
def test_automodel_and_pipeline_agree(bundled: tuple) -> None:
    """60 answers, 20 drawings and 20 edits, as docs/transformers.md says."""
    ours, model, processor = bundled
    rng = Random(0)
    scenes = [random_scene(rng) for _ in range(60)]
    asked = [(render(scene, 256), say_question(propose_question(scene, rng), rng)) for scene in scenes]
    for part in (asked[n : n + 10] for n in range(0, len(asked), 10)):
        inputs = inputs_of(processor, *([user(*each)] for each in part))
        texts = processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :])
        assert [text.strip() for text in texts] == [ours.ask(image, question) for image, question in part]

    def images_of(*chats: list[dict[str, Any]], seed: int) -> list[bytes]:
        codes = model.generate(
            **inputs_of(processor, *chats, generation_mode="image"), generation_mode="image", seed=seed
        )
        return pixels(processor.post_process_multimodal_output(codes, generation_mode="image"))

    texts = [make_draw_request(random_scene(rng), rng).text for _ in range(20)]
    expected = [ours.draw(text, seed=seed)[0].tobytes() for seed, text in enumerate(texts)]
    assert images_of(*([user(text)] for text in texts), seed=0) == expected
    for seed in range(20):
        scene = random_scene(rng, num_objects=2)
        image, (instruction, _) = render(scene, 256), edit_sentence(propose_edit(scene, rng), scene, rng)
        found = images_of([user(image, instruction)], seed=seed)
        assert found == [ours.edit(image, instruction, seed=seed).tobytes()], instruction


def test_images_of_all_turns_are_described_but_those_that_the_assistant_drew(bundled: tuple) -> None:
    """Several images, in several turns, in a batch: the prompts that `Pipeline` builds."""
    ours, model, processor = bundled
    one, other = (render(random_scene(Random(seed)), 256) for seed in (1, 2))
    drawn = turn("assistant", other)
    chats = [[user(one, "What is it?")], [user("Hi")], [user(one, "Depth?"), drawn, user(one, other, "Which?")]]
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
    inputs = inputs_of(processor, [user(one, "Make it green.")], generation_mode="image")
    codes = model.generate(**inputs, generation_mode="image", seed=1)
    (edited,) = processor.post_process_multimodal_output(codes, generation_mode="image")
    assert edited.tobytes() == ours.edit(one, "Make it green.", seed=1).tobytes()


def test_pipelines_of_transformers_agree(bundled: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs ask for torchvision, which not every build of torch can have beside it; only that check is left out."""
    ours, model, processor = bundled
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *args: None)
    image = render(random_scene(Random(1)), 256)
    answer = ours.ask(image, "What do you see?")
    for task in ("image-text-to-text", "any-to-any"):
        pipe = transformers_pipeline(task, model=model, processor=processor)
        (found,) = pipe([user(image, "What do you see?")], return_full_text=False)
        assert found["generated_text"].strip() == answer, task
    options = {"generation_mode": "image", "generate_kwargs": {"seed": 3}}
    (found,) = pipe([user("a red circle")], processor_kwargs={"generation_mode": "image"}, **options)
    drawn = found if isinstance(found, Image.Image) else found["generated_image"]
    assert drawn.tobytes() == ours.draw("a red circle", seed=3)[0].tobytes()
    with pytest.raises(ValueError):
        pipe([user(image, "What do you see?")], generation_mode="interleaved")
