"""What a dialogue is: turns of text and pictures by reference, and one check for every part of every answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mllm.world.edits import Edit
from mllm.world.episode import Picture
from mllm.world.questions import Question
from mllm.world.scene import Scene
from mllm.world.spec import Filter, Spec

Part = str | Picture
Role = Literal["user", "assistant"]
DenseKind = Literal["depth", "segmentation"]
CheckKind = Literal["draw", "edit", "describe", "answer", "depth", "segmentation", "say"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: text and pictures in order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """What one part of an answer must be. Which fields are set depends on the kind."""

    kind: CheckKind
    scene: Scene | None = None  # the scene the part is about: before the edit, described, asked about, to be segmented
    spec: Spec | None = None  # draw: what the sentence demands
    edit: Edit | None = None  # edit: the change to the scene
    reference: Filter | None = None  # edit: how its words name the object they speak of, to find it in another scene
    question: Question | None = None  # answer: the question, so that it can be put to another scene
    apart_from: Filter | None = None  # answer: asked about "the other one", the object that this does not match
    expected: str = ""  # answer, describe: the right words; say: the words used in training (any will do)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole dialogue of one job, with the right answers."""

    job: str
    turns: tuple[Turn, ...]
    checks: tuple[Check, ...]  # one for each part of the assistant's turns, in order
    skills: tuple[str, ...] = ()  # what it exercises: skills of a drawing, kinds of questions, kind of edit

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in order of appearance, repetitions included."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Picture))


def user(*parts: Part) -> Turn:
    return Turn("user", parts)


def assistant(*parts: Part) -> Turn:
    return Turn("assistant", parts)
