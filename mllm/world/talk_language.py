"""Questions without a picture and their one right answer: facts of the world, little sums, what lies outside."""

from __future__ import annotations

from random import Random

from mllm.world.phrases import NUMBER_WORDS, capitalize, say, with_article
from mllm.world.questions import DIRECTIONS
from mllm.world.relations import OPPOSITE, RELATIONS
from mllm.world.scene import SHAPES
from mllm.world.templates import talk as talk_templates

KIND_WEIGHTS = {"fact": 60, "outside": 16, "sizes": 8, "reversed": 8, "sum": 8}


def make_talk(rng: Random) -> tuple[str, str, str]:
    """A question, its answer and its kind."""
    kind = rng.choices(tuple(KIND_WEIGHTS), tuple(KIND_WEIGHTS.values()))[0]
    match kind:
        case "fact":
            questions, answer = rng.choice(talk_templates.FACTS)
            question = rng.choice(questions)
        case "outside":
            question = rng.choice(talk_templates.OUTSIDE_REQUESTS).format(thing=rng.choice(talk_templates.OUTSIDE))
            answer = talk_templates.REFUSAL
        case "sizes":
            small, large = rng.sample(SHAPES, 2)
            phrases = [with_article(f"{say('small', rng)} {small}"), with_article(f"{say('large', rng)} {large}")]
            rng.shuffle(phrases)
            question = rng.choice(talk_templates.COMPARED_SIZES).format(a=phrases[0], b=phrases[1])
            answer = large
        case "reversed":
            a, b = rng.sample(SHAPES, 2)
            relation = rng.choice(RELATIONS)
            question = rng.choice(talk_templates.REVERSED).format(a=a, b=b, relation=say(relation, rng))
            answer = DIRECTIONS[OPPOSITE[relation]]
        case _:
            left, right = rng.choice([(left, right) for left in range(1, 4) for right in range(1, 5 - left)])
            question = capitalize(rng.choice(talk_templates.SUMS).format(a=NUMBER_WORDS[left], b=NUMBER_WORDS[right]))
            answer = str(left + right)
    return (question.lower() if rng.random() < 0.1 else question), answer, kind
