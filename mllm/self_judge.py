"""The model's own opinion whether a picture shows what a text says: its probability of "yes".

In: pictures and texts. Out: a number from 0 to 1 for each pair; no second model is needed. Two forms of the question:

    genai   VQAScore's (Lin et al. 2024): Does this figure show "..."? Please answer yes or no.
    world   the short questions of the synthetic world, one for each demand ("Is there a star?" yes, "How many hearts
            are there?" 2; mllm/world/demands.py); the product of the probabilities of the right answers

The probability of an answer is that of its words, all choices of the vocabulary included, without the end mark.

Letters: B dialogues, T places, V text vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from PIL import Image

from mllm.conversation import ImagePart, Message, TextPart
from mllm.generation.loop import generate
from mllm.looking import look
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from mllm.sequence import IGNORED
from mllm.world.demands import Demand, demands_of

QuestionForm = Literal["genai", "world"]
GENAI_QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
BATCH_SIZE = 32


def questions_about(text: str, form: QuestionForm) -> list[Demand]:
    """What to ask about a picture that should show this text."""
    match form:
        case "genai":
            return [Demand(GENAI_QUESTION.format(text=text), "yes")]
        case "world":
            return demands_of(text)
        case _:
            raise ValueError(f"unknown form of question: found {form!r}; use {' or '.join(get_args(QuestionForm))}")


def judge_pictures(
    model: MLLMForConditionalGeneration,
    processor: MLLMProcessor,
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    *,
    form: QuestionForm,
    batch_size: int = BATCH_SIZE,
) -> list[float]:
    """How probable the model finds it that each picture shows its text."""
    asked = [(n, demand) for n, text in enumerate(texts) for demand in questions_about(text, form)]
    shown = [[Message("user", (ImagePart(picture),))] for picture in pictures]
    parts = []
    for start in range(0, len(shown), batch_size):
        looked = look(shown[start : start + batch_size], processor, partial(generate, model))
        parts += [dialogue[0].parts for dialogue in looked]
    dialogues = [
        [Message("user", (*parts[n], TextPart(demand.question))), Message("assistant", (TextPart(demand.expected),))]
        for n, demand in asked
    ]
    totals = [0.0] * len(texts)
    for start in range(0, len(dialogues), batch_size):
        found = answer_log_probabilities(model, processor, dialogues[start : start + batch_size])
        for (n, _), log_probability in zip(asked[start : start + batch_size], found, strict=True):
            totals[n] += log_probability
    return [math.exp(total) for total in totals]


@torch.inference_mode()
def answer_log_probabilities(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, dialogues: Sequence[Sequence[Message]]
) -> list[float]:
    """The log probability of the last answer of each dialogue, its end mark left out."""
    sequences = [processor.build(messages) for messages in dialogues]
    inputs = processor.collate(sequences).to(model.device)
    mask_BT = inputs["attention_mask"]
    places_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    logits_BTV = model(**inputs, position_ids=places_BT).logits
    longest = mask_BT.shape[1]
    totals = []
    for logits_TV, sequence in zip(logits_BTV, sequences, strict=True):
        labels = sequence.labels_T
        spoken = [t for t in range(len(labels)) if labels[t] not in (IGNORED, model.config.eos_token_id)]
        if not spoken:
            raise ValueError("an answer has no words: found none to weigh; this prompt style does not answer in words")
        offset = longest - len(sequence)
        log_probabilities_SV = logits_TV[[offset + t - 1 for t in spoken]].float().log_softmax(dim=-1)
        words_S = torch.tensor([int(labels[t]) for t in spoken], device=log_probabilities_SV.device)
        totals.append(log_probabilities_SV.gather(1, words_S[:, None]).sum().item())
    return totals
