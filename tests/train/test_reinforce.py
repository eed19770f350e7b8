"""Reinforced answers: what is sampled keeps the rules, what is right is judged as in evaluation, and the loss is the
sum over answers, one by one."""

import dataclasses
import shutil
from typing import Any

import pytest
import torch

from mllm.conversation import Message, TextPart
from mllm.evaluation.requests import Expectation, read_value
from mllm.sequence import build_sequence
from mllm.vocabulary import encode_text, load_text_tokenizer
from mllm.world.scene import Scene, SceneObject
from tests.train.launching import changed, losses, same, weights
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.data.packing import Tokenizers
from train.recipe import MLLMRecipe, Reinforce
from train.reinforce import Asked, PolicyGradient
from train.trainer import train_mllm


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe) -> MLLMRecipe:
    conversations = {"draw": 3.0, "edit": 3.0, "again": 1.0, "talk": 1.0}
    world = {"plans": True, "plan_digits": 2, "conversations": conversations, "conversation_images": 8}
    data = dataclasses.replace(mllm_recipe.data, **world)
    return changed(mllm_recipe, {"max_steps": 4}, data=data, reinforce=Reinforce(requests=4, answers=3, weight=0.5))


@pytest.fixture
def model(recipe: MLLMRecipe) -> Any:
    torch.manual_seed(0)
    tokenizer = UniTok.from_pretrained(recipe.image_tokenizer)
    return build_model(recipe, load_text_tokenizer(recipe.text_tokenizer), tokenizer, dtype=torch.float32)


@pytest.fixture
def policy(recipe: MLLMRecipe, model: Any) -> PolicyGradient:
    text, image = load_text_tokenizer(recipe.text_tokenizer), UniTok.from_pretrained(recipe.image_tokenizer)
    return PolicyGradient(recipe, Tokenizers(text=text, image=image, config=model.config))


def test_right_answers_that_end_are_rewarded(policy: PolicyGradient) -> None:
    config, text = policy.config, policy.tokenizers.text
    messages = [Message("user", (TextPart("a red circle"),))]
    prompt = build_sequence(messages, tokenizer=text, config=config, add_generation_prompt=True)
    star = {"shape": "star", "color": "red"}

    def reward(
        expect: dict[str, Any], words: str, *, plan: bool, ends: bool = True, before: Scene | None = None
    ) -> float:
        answer = [*(policy.opening if plan else []), *encode_text(text, f" {words}")]
        end = config.begin_image_id if plan else config.eos_token_id
        about = Asked(prompt, read_value(expect, Expectation), before)
        return policy.reward([*answer, end] if ends else answer, about)

    drawn = {"scene": {"objects": [{"shape": "circle", "color": "red"}], "total": 1}}
    assert reward(drawn, "white, large red circle 3535", plan=True) == 1
    for wrong in (
        "white, large blue circle 3535",
        "white, large red circle 3535, small red star 3600",  # touches it
        "white, small red star 6666, large red circle 2222",  # not in reading order
        "white, large red circle 0000",  # beyond the border
        "white",
    ):
        assert reward(drawn, wrong, plan=True) == 0, wrong
    assert reward(drawn, "white, large red circle 3535", plan=True, ends=False) == 0
    assert reward(drawn, "white, large red circle 3535", plan=False) == 0
    assert reward({"text": {"any_of": ["yes"]}}, "yes", plan=False) == 1
    assert reward({"text": {"any_of": ["yes"]}}, "no", plan=False) == 0
    before = Scene("white", (SceneObject("circle", "red", "small", 0.25, 0.25),))
    added = {"scene": {"objects": [star], "total": 2}, "keeps": True}
    assert reward(added, "white, small red circle 1177, small red star 5555", plan=True, before=before) == 1
    assert reward(added, "white, small red circle 3377, small red star 5555", plan=True, before=before) == 0


def test_answers_are_texts_or_plans_and_their_loss_is_the_sum_over_them(
    policy: PolicyGradient, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, text_logits, sampled = policy.config, model.text_logits, list[list[int]]()
    likely = torch.zeros(config.vocab_size)
    likely[config.begin_plan_id], likely[config.eos_token_id], likely[config.begin_image_id] = 6.0, 3.0, 3.0
    monkeypatch.setattr(model, "text_logits", lambda hidden: text_logits(hidden) + likely)
    asked: list[Asked] = []

    def reward(answer: list[int], about: Asked) -> float:
        sampled.append(answer)
        asked.append(about)
        return float(len(answer) % 2)

    monkeypatch.setattr(policy, "reward", reward)
    policy.learn(model, step=3)
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    first, opening = list(sampled), policy.opening
    for answer in sampled:
        is_plan, end = answer[0] == config.begin_plan_id, answer[-1]
        assert config.image_token_id not in answer and config.begin_plan_id not in answer[1:]
        assert not is_plan or (answer[: len(opening)] == opening and config.eos_token_id not in answer)
        assert is_plan or config.begin_image_id not in answer
        assert end in (config.eos_token_id, config.begin_image_id) or len(answer) == 64
    assert {answer[0] == config.begin_plan_id for answer in sampled} == {True, False}

    model.zero_grad()
    number, total = policy.options.answers, torch.zeros(())
    for place, (answer, about) in enumerate(zip(sampled, asked, strict=True)):
        group = sampled[place - place % number :][:number]
        advantage = len(answer) % 2 - sum(len(each) % 2 for each in group) / number
        ids = torch.tensor([[*about.prompt.token_ids_T.tolist(), *answer]])
        log_p = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        dictated = range(1, len(opening)) if answer[0] == opening[0] else range(0)
        for at, token in enumerate(answer):
            if at not in dictated:
                total = total - advantage * log_p[len(about.prompt) + at - 1, token]
    (total * policy.options.weight / len(sampled)).backward()
    for name, value in model.named_parameters():
        assert value.grad is None or torch.allclose(value.grad, found[name], rtol=1e-3, atol=1e-6), name
    sampled.clear()
    policy.learn(model, step=3)
    assert sampled == first  # a function of the step


def test_a_resumed_run_samples_and_learns_as_an_uninterrupted_one(recipe: MLLMRecipe) -> None:
    train_mllm(recipe)
    whole, rewards = weights(recipe.output / "final"), losses(recipe.output, "reward")
    assert set(rewards) == {1, 2, 3, 4} and all(0 <= reward <= 1 for reward in rewards.values())
    shutil.rmtree(recipe.output / "checkpoint-4")
    shutil.rmtree(recipe.output / "final")
    train_mllm(recipe)
    assert same(weights(recipe.output / "final"), whole) and losses(recipe.output, "reward") == rewards
    with pytest.raises(ValueError, match="reinforce must come with data.conversations"):
        changed(recipe, data=dataclasses.replace(recipe.data, conversations={}))
