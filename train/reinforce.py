"""Policy gradients on answers to people's requests, beside the supervised loss.

Each step answers requests of the grammar (mllm/world/people.py) several times at temperature 1, as far as words go: to
the end of a text, or of the plan before an image. The check of `mllm evaluate requests` says which answers are right,
and these become more probable as far as they are better than the mean of their request: GRPO (Shao et al. 2024,
arXiv:2402.03300) with one step for every sample, no reference model, and neither lengths nor deviations divided out
(Liu et al. 2025, arXiv:2503.20783). T2I-R1 (arXiv:2505.00703) reinforces the plans of images in the same way.

Letters: B answers, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart
from mllm.engine.request import PLAN_BUDGET
from mllm.evaluation.requests import Expectation, check_answer, read_value
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import collate
from mllm.sequence import ImageLayout, TokenSequence, build_sequence
from mllm.vocabulary import decode_text
from mllm.world.checker import ParsedScene
from mllm.world.language import pick
from mllm.world.people import make_people
from mllm.world.plan import plan_of, planned_scene
from mllm.world.scene import MAX_OBJECTS, RADIUS, Scene
from train.data.packing import Tokenizers
from train.data.world import say, to_messages, without_images
from train.recipe import MLLMRecipe

ROWS = 64
"""Answers that are sampled, or learned from, at once: requests of a similar length."""
MIN_GAP = 0.01
"""Between planned objects. Rounding to the squares of a plan takes up to 0.022 of the world's gap."""


class Asked(NamedTuple):
    """What the model is to answer, and what a right answer must be."""

    prompt: TokenSequence
    expect: Expectation
    before: Scene | None  # in the last image before the answer


class PolicyGradient:
    """The policy gradient of a step: a function of the recipe, the step and the weights."""

    def __init__(self, recipe: MLLMRecipe, tokenizers: Tokenizers) -> None:
        assert recipe.reinforce is not None, "made where the recipe has it"
        self.options, self.data, self.length = recipe.reinforce, recipe.data, recipe.length
        self.tokenizers, self.config = tokenizers, tokenizers.config
        self.opening = ImageLayout.from_config(self.config).plan_opening((self.config.grid_side,) * 2)
        self.rewards: list[float] = []  # of the steps since `drain`

    def learn(
        self, model: MLLMForConditionalGeneration, *, step: int, backward: Callable[[Tensor], object] = Tensor.backward
    ) -> None:
        """Add the gradient of this step's loss: -A log p of every answer, summed over its tokens and averaged over
        answers; A: reward less the mean reward of the request. Answers to a request that are all right, or all wrong,
        teach nothing and are left out."""
        rng = Random(f"reinforce/{self.data.seed}/{self.data.mixture_seed}/{step}")
        asked = sorted((self.ask(rng) for _ in range(self.options.requests)), key=lambda each: len(each.prompt))
        answers = self.answer(model, asked, seed=rng.getrandbits(63))
        number = self.options.answers
        rewards = [self.reward(each, asked[place // number]) for place, each in enumerate(answers)]
        self.rewards.append(sum(rewards) / len(rewards))
        learned: list[tuple[Asked, list[int], float]] = []
        for place, reward in enumerate(rewards):
            first = place - place % number
            if advantage := reward - sum(rewards[first : first + number]) / number:
                learned.append((asked[place // number], answers[place], advantage))
        for begin in range(0, len(learned), ROWS):  # each part at once, as its activations take memory
            gained = self.weighted_log_probability(model, learned[begin : begin + ROWS])
            backward(gained * (-self.options.weight / len(answers)))

    def ask(self, rng: Random) -> Asked:
        """A conversation up to one of its requests, without the positions of its images."""
        config, side = self.config, self.config.grid_side
        blank = CodesPart(np.zeros((config.num_codebooks, side * side), dtype=np.int64), (side, side))
        while True:
            turns = make_people(pick(self.data.conversations, rng), rng, max_turns=8)
            turns = turns[: rng.randint(1, len(turns))]
            messages = to_messages(say(turns)[:-1], lambda _: blank, plan_digits=self.data.plan_digits)
            options = {"tokenizer": self.tokenizers.text, "config": config, "add_generation_prompt": True}
            prompt = without_images(build_sequence(messages, **options), config)
            if len(prompt) <= self.length:
                scenes = [part for turn in turns for part in (turn.shown, turn.answer) if isinstance(part, Scene)]
                if isinstance(turns[-1].answer, Scene):
                    scenes.pop()  # the answer itself
                return Asked(prompt, read_value(turns[-1].expect, Expectation), scenes[-1] if scenes else None)

    @torch.no_grad()
    def answer(self, model: MLLMForConditionalGeneration, asked: Sequence[Asked], *, seed: int) -> list[list[int]]:
        """The tokens of several answers to each request, with what ends them."""
        config, number = self.config, self.options.answers
        ends = [config.eos_token_id, config.begin_image_id]
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": PLAN_BUDGET, "pad_token_id": config.pad_token_id}
        plain = GenerationConfig(**settings, eos_token_id=ends)
        was_training, answers = model.training, []
        model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for begin in range(0, len(asked), step := max(1, ROWS // number)):
                inputs = collate([each.prompt for each in asked[begin : begin + step]], config).to(model.device)
                ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
                cache = DynamicCache()  # a request is read once, but for its last token
                places_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, :-1]
                read = {"attention_mask": mask_BT[:, :-1], "position_ids": places_BT, "logits_to_keep": 1}
                model(ids_BT[:, :-1], **read, past_key_values=cache, use_cache=True)
                cache.batch_repeat_interleave(number)
                ids_BT, mask_BT = (each.repeat_interleave(number, dim=0) for each in (ids_BT, mask_BT))
                length = ids_BT.shape[1]
                rules = LogitsProcessorList([AnswerRules(config, self.opening, length)])
                given = {"attention_mask": mask_BT, "past_key_values": cache, "logits_processor": rules}
                rows = GenerationMixin.generate(model, ids_BT, generation_config=plain, **given)
                for row in rows[:, length:].tolist():
                    last = next((place for place, id_ in enumerate(row) if id_ in ends), len(row) - 1)
                    answers.append(row[: last + 1])
        model.train(was_training)
        return answers

    def reward(self, answer: list[int], asked: Asked) -> float:
        """1 for a right answer that came to its end, else 0."""
        words, end = answer[:-1], answer[-1]
        given: ParsedScene | str = decode_text(self.tokenizers.text, words).strip()
        if words[:1] == self.opening[:1]:
            plan = decode_text(self.tokenizers.text, words[len(self.opening) :]).strip()
            scene = planned_scene(plan)
            if scene is None or not stands_apart(scene) or plan_of(scene, digits=self.data.plan_digits) != plan:
                return 0.0
            given = ParsedScene(scene)
        is_ended = end == (self.config.eos_token_id if isinstance(given, str) else self.config.begin_image_id)
        return float(is_ended and not check_answer(asked.expect, [given], asked.before))

    def weighted_log_probability(
        self, model: MLLMForConditionalGeneration, learned: Sequence[tuple[Asked, list[int], float]]
    ) -> Tensor:
        """The sum of A log p over answers; what opens a plan after its marker is dictated, so it does not count."""
        rows = [[*asked.prompt.token_ids_T.tolist(), *answer] for asked, answer, _ in learned]
        ids_BT = torch.full((len(rows), max(map(len, rows))), self.config.pad_token_id)
        mask_BT, weight_BT = torch.zeros_like(ids_BT), torch.zeros(ids_BT.shape)
        for index, (row, (asked, answer, advantage)) in enumerate(zip(rows, learned, strict=True)):
            begin = len(asked.prompt)
            ids_BT[index, : len(row)] = torch.tensor(row)
            mask_BT[index, : len(row)] = 1
            weight_BT[index, begin : len(row)] = advantage
            if answer[0] == self.opening[0]:
                weight_BT[index, begin + 1 : begin + len(self.opening)] = 0
        ids_BT, mask_BT, weight_BT = (each.to(model.device) for each in (ids_BT, mask_BT, weight_BT))
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1].float()
        chosen_BT = logits_BTV.log_softmax(dim=-1).gather(2, ids_BT[:, 1:, None])[..., 0]
        return (chosen_BT * weight_BT[:, 1:]).sum()

    def drain(self) -> float:
        """The mean reward since the last call."""
        rewards, self.rewards = self.rewards, []
        return sum(rewards) / len(rewards) if rewards else math.nan


class AnswerRules(LogitsProcessor):
    """What may come where in an answer: a plan at its beginning alone, opened as the layout says, which ends in an
    image; or a text, which does not."""

    def __init__(self, config: MLLMConfig, opening: Sequence[int], length: int) -> None:
        self.opening, self.config, self.length = opening, config, length
        self.allows = opening  # in what is generated as a text (mllm/generate.py)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        config, place = self.config, input_ids.shape[1] - self.length
        scores[:, config.image_token_id] = -torch.inf
        if place == 0:
            scores[:, config.begin_image_id] = -torch.inf
            return scores
        scores[:, config.begin_plan_id] = -torch.inf
        is_plan_B = input_ids[:, self.length] == config.begin_plan_id
        scores[:, config.begin_image_id].masked_fill_(~is_plan_B, -torch.inf)
        scores[:, config.eos_token_id].masked_fill_(is_plan_B, -torch.inf)
        if place < len(self.opening):
            scores[is_plan_B] = -torch.inf
            scores[is_plan_B, self.opening[place]] = 0.0
        return scores


def stands_apart(scene: Scene) -> bool:
    """Whether a planned scene has one to four objects, inside the image and apart from each other."""
    items = scene.objects
    are_inside = all(RADIUS[item.size] <= at <= 1 - RADIUS[item.size] for item in items for at in (item.x, item.y))
    gaps = (math.hypot(a.x - b.x, a.y - b.y) - RADIUS[a.size] - RADIUS[b.size] for a, b in combinations(items, 2))
    return len(items) <= MAX_OBJECTS and are_inside and all(gap >= MIN_GAP for gap in gaps)
