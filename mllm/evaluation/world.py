"""Score a model on the synthetic world with the exact checker.

In: something that answers dialogues, how many items, a seed. Out: pass rates per job, pair group and skill
with 95 % intervals, and everything that is needed to read them: settings, seed, model fingerprint, the checker's own
error. An item passes when every part of every answer is right; `ask` items are dialogues whose questions count one by
one. How many of the passed had parts that the model's own image left open is reported too.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mllm.conversation import ImagePart, Message, Mode, TextPart
from mllm.engine.settings import Overrides
from mllm.engine.state_machine import NoRoomError
from mllm.evaluation.answerer import choose_groups, describe_measurement
from mllm.evaluation.intervals import as_rate, as_values, auroc, auroc_interval
from mllm.files import write_lines
from mllm.pipeline import Pipeline, candidate_seeds, check_count
from mllm.sequence import Size, default_size, grid_of
from mllm.world.checker import DenseScore, border_errors, checker_error, parse, same_scene, score_dense
from mllm.world.dialogue import (
    Check,
    Dialogue,
    Edit,
    ImageRef,
    Question,
    answer,
    apply_edit,
    check_edit,
    make_dialogue,
    make_episode,
    normalize_answer,
    possible_answers,
)
from mllm.world.plan import ask_about
from mllm.world.render import RenderSize, render
from mllm.world.scene import PairGroup, Scene, SceneObject, random_scene_for
from mllm.world.sentence_reader import check_description
from mllm.world.spec import ANY, satisfies
from tokenizer.codes import fingerprint
from tokenizer.images import ImageProcessor, to_images
from tokenizer.layers import cut_into_patches
from tokenizer.metrics import code_counts, entropy_of, psnr, ssim, usage_of
from tokenizer.unitok import UniTok

PROTOCOL = "world-3"
"""Name of the protocol; it changes when numbers are no longer comparable."""
CHECKER_COUNT = 2000
"""Rendered scenes on which the checker's own error is measured each time."""
DENSE_PASS = 0.9
"""Mean IoU from which a depth or segmentation image counts as right."""
ROUND_TRIP_BATCH = 64
MODES: dict[str, Mode] = dict.fromkeys(("draw", "edit", "depth", "segment"), "image")
MODES |= dict.fromkeys(("ask", "describe", "talk"), "text")
"""How an answer to a job is decoded; other jobs let the model choose between text and images."""
Part = str | Image.Image
Answer = Callable[[Sequence[Sequence[Message]], Mode, Sequence[int]], Iterable[tuple[int, list[Part]]]]
"""(dialogues that end with the user, mode, seeds) -> the index and the parts of each answer, as they end."""


class Group(NamedTuple):
    """Items that share one row of the table."""

    job: str
    pairs: PairGroup = "seen"

    @property
    def name(self) -> str:
        return f"{self.job}, {self.pairs.replace('_', '-')} pairs" if self.job == "draw" else self.job


JOBS = ("ask", "describe", "edit", "depth", "segment", "interleaved", "multi_turn", "talk")
GROUPS = (Group("draw"), Group("draw", "held_out"), *map(Group, JOBS))


def make_items(group: Group, count: int, *, seed: int) -> list[Dialogue]:
    """`count` dialogues about scenes that no training has seen; the same arguments give the same ones."""
    episodes = (make_episode(index, seed=seed, split="test", pairs=group.pairs) for index in range(count))
    name = f"items/{seed}/{group.job}/{group.pairs}"
    return [make_dialogue(group.job, each, Random(f"{name}/{index}")) for index, each in enumerate(episodes)]


def measure_world(
    pipeline: Pipeline,
    *,
    count: int,
    seed: int = 0,
    jobs: Sequence[str] | None = None,
    batch_size: int = 32,
    sampling: Overrides | None = None,
    size: Size | None = None,
    best_of: Sequence[int] = (),
    items: Path | None = None,
) -> dict:
    """Every score of a model on the world, with the settings it was measured with, as one dictionary for JSON.

    Args:
        count: items per group of the table.
        sampling: settings (guidance, temperature, top_k, top_p, resamples) of images where not the checkpoint's.
        size: (width, height) of the images that are shown and drawn; default: the checkpoint's default size.
        best_of: numbers of candidates among which the model chooses itself, measured in addition.
        items: file for the result of each item and a digest of its answers, a line each: two runs that write the same
            file gave the same answers.
    """
    groups = choose_groups(GROUPS, jobs)
    drawing = [group for group in groups if group.job == "draw"]
    if best_of and not drawing:
        raise ValueError(f"jobs must include draw to measure the best of N, got {', '.join(jobs or ())}")
    config, sampling = pipeline.config, sampling or {}
    size = size or default_size(config)
    grid_of(size, config)  # refuses a size that the model does not have
    answer = answer_with(pipeline, at_once=batch_size, size=size, sampling=sampling)
    done = run_groups(answer, count=count, seed=seed, size=size, groups=groups)
    if items is not None:
        write_lines(items, (each.as_line(group) for group, dialogues in done.items() for each in dialogues))
    settings: dict[str, Any] = {"best_of": best_of, "count": count, "seed": seed, "chunk": 8 * batch_size}
    score = partial(pipeline.score, questions=ask_about)
    self_scored = {g.name: measure_best_of(answer, score, g, **settings) for g in drawing if best_of}
    plans: dict[str, Any] = {}
    if config.begin_plan_id is not None:
        chosen = pipeline.requests.plan_settings(sampling)
        words = "greedy" if chosen.greedy else f"temperature {chosen.temperature} top_p {chosen.top_p}"
        plans = {"resamples": config.image_resamples, "plan": words}
    shown_size = size[0] if size[0] == size[1] else list(size)
    about = describe_measurement(pipeline, sampling, seed=seed, count=count, image_size=shown_size, more=plans)
    tokenizer = pipeline.processor.need_image_tokenizer()
    return {
        "protocol": PROTOCOL,
        **about,
        "checker_error": {"rate": checker_error(CHECKER_COUNT, seed=seed, size=size), "count": CHECKER_COUNT},
        "tokenizer": score_round_trip(tokenizer, count=count, seed=seed, size=size),
        "scores": {group.name: score_group(group, dialogues) for group, dialogues in done.items()},
        **({"self_scored": self_scored} if best_of else {}),
    }


def answer_with(
    pipeline: Pipeline,
    *,
    at_once: int,
    size: Size | None = None,
    sampling: Overrides | None = None,
    max_text: int | None = None,
) -> Answer:
    """A pipeline that answers so many dialogues at the same time; `sampling` is of images, `max_text` of texts."""

    def answer(
        dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Part]]]:
        chosen: Overrides = {"max_new_tokens": max_text} if mode == "text" else sampling or {}
        # all are built before the first is decoded: one that does not fit is noticed at once
        together = len(dialogues)
        return pipeline.answer_each(dialogues, mode, seeds, at_once=at_once, together=together, size=size, **chosen)

    return answer


def evaluate_world(
    answer: Answer, *, count: int, seed: int, size: RenderSize = 128, groups: Sequence[Group] = GROUPS
) -> dict[str, dict]:
    done = run_groups(answer, count=count, seed=seed, size=size, groups=groups)
    return {group.name: score_group(group, dialogues) for group, dialogues in done.items()}


def score_group(group: Group, dialogues: Sequence[WorldDialogue]) -> dict:
    results = [result for each in dialogues for result in each.results]
    skills = [(skill, each.passed) for each in dialogues for skill in each.dialogue.skills]
    passed = [each.passed for each in dialogues]
    if group.job == "ask":  # every question is an item
        passed = [result.passed for result in results]
        skills = list(zip((skill for skill, _ in skills), passed, strict=True))
    by_skill: dict[str, list[bool]] = defaultdict(list)
    for skill, is_passed in skills:
        by_skill[skill].append(is_passed)
    scores = as_values(passed)
    if group.job not in MODES:  # more is said after a drawing
        scores["left_open"] = sum(each.passed and any(j.left_open for j in each.results) for each in dialogues)
    scores["skills"] = {skill: as_values(items) for skill, items in sorted(by_skill.items())}
    dense = [result.dense for result in results if result.dense is not None]
    if dense and group.job in ("depth", "segment"):  # an answer without an image counts 0
        scores["mean_iou"] = sum(score.mean_iou for score in dense) / len(dialogues)
        scores["pixel_accuracy"] = sum(score.pixel_accuracy for score in dense) / len(dialogues)
    borders = [error for result in results for error in result.border_errors]
    if borders and group.job == "draw":
        scores["border_error"] = sum(borders) / len(borders)
    return scores


@dataclass(kw_only=True)
class RunningDialogue:
    """What was said in a dialogue so far, what comes next, and how answers are checked."""

    seed: int
    messages: list[Message] = field(default_factory=list)
    scene: Scene | None = None  # what is being talked about, as far as it could be read

    def ask(self, turn: int) -> Sequence[TextPart | ImagePart]:
        """What the user says; nothing where the dialogue is over."""
        raise NotImplementedError

    def check(self, turn: int, given: Sequence[Part]) -> None:
        raise NotImplementedError


def run_dialogues(answer: Answer, dialogues: Sequence[RunningDialogue], mode: Mode, *, name: str) -> None:
    """Take dialogues to their ends, turn by turn; they are changed in place."""
    for turn in itertools.count():
        active = []
        for each in dialogues:
            if asked := tuple(each.ask(turn)):
                each.messages.append(Message("user", asked))
                active.append(each)
        if not active:
            return
        answers = answer_what_fits(answer, [each.messages for each in active], mode, [each.seed for each in active])
        for index, given in tqdm(answers, total=len(active), desc=name, leave=False):
            active[index].check(turn, given)
            said = [TextPart(part) if isinstance(part, str) else ImagePart(part) for part in given] or [TextPart(" ")]
            active[index].messages.append(Message("assistant", tuple(said)))


def run_groups(
    answer: Answer, *, count: int, seed: int, size: RenderSize, groups: Sequence[Group]
) -> dict[Group, Sequence[WorldDialogue]]:
    """`count` finished dialogues of each group; the one at index n has seed + n."""
    done = {}
    for group in groups:
        items = make_items(group, count, seed=seed)
        done[group] = [WorldDialogue(item, seed=seed + index, size=size) for index, item in enumerate(items)]
        run_dialogues(answer, done[group], MODES.get(group.job, "interleaved"), name=group.name)
        for each in done[group]:
            each.release()
    return done


def answer_what_fits(
    answer: Answer, dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
) -> Iterator[tuple[int, list[Part]]]:
    """Answers; none to a dialogue that long answers have made outgrow the context."""
    left = list(range(len(dialogues)))
    try:
        for index, parts in answer(dialogues, mode, seeds):
            left.remove(index)
            yield index, parts
        return
    except NoRoomError:  # maybe after others were answered
        if len(left) == 1:
            yield left[0], []
            return
    half = len(left) // 2
    for some in (left[:half], left[half:]):
        for index, parts in answer_what_fits(answer, [dialogues[n] for n in some], mode, [seeds[n] for n in some]):
            yield some[index], parts


@dataclass
class WorldDialogue(RunningDialogue):
    """A dialogue of the world, whose answers are checked part by part."""

    dialogue: Dialogue
    size: RenderSize = 128
    results: list[CheckResult] = field(default_factory=list)
    digest: str = ""  # of the answers, once they are released

    @property
    def passed(self) -> bool:
        return len(self.results) == len(self.dialogue.checks) and all(item.passed for item in self.results)

    def release(self) -> None:
        """Keep a digest of the answers, and none of the images: thousands of dialogues would fill the memory."""
        answers = [part for message in self.messages if message.role == "assistant" for part in message.parts]
        contents = (part.text.encode() if isinstance(part, TextPart) else part.image.tobytes() for part in answers)
        self.digest = fingerprint(contents)
        self.messages.clear()

    def as_line(self, group: Group) -> dict[str, Any]:
        """The item in plain values."""
        passed = [result.passed for result in self.results]
        return {"group": group.name, "seed": self.seed, "passed": passed, "answers": self.digest}

    def ask(self, turn: int) -> Sequence[TextPart | ImagePart]:
        """An image of the user is talked about from then on."""
        parts = [part for said in self.dialogue.turns[2 * turn : 2 * turn + 1] for part in said.parts]
        self.scene = next((part.scene for part in reversed(parts) if isinstance(part, ImageRef)), self.scene)
        return [TextPart(part) if isinstance(part, str) else ImagePart(part.render(self.size)) for part in parts]

    def check(self, turn: int, given: Sequence[Part]) -> None:
        num_before = sum(len(each.parts) for each in self.dialogue.turns[1 : 2 * turn : 2])
        checks = self.dialogue.checks[num_before : num_before + len(self.dialogue.turns[2 * turn + 1].parts)]
        for item, part in itertools.zip_longest(checks, given[: len(checks)]):
            result = CheckResult(False, self.scene) if part is None else check_answer(item, part, self.scene)
            self.results.append(result)
            self.scene = result.scene
        if len(given) > len(checks):  # more than was asked for
            self.results[-1] = CheckResult(False, self.scene)


# ---- judging one part of an answer ----
# The scene that is talked about is the dialogue's own where the user gave the image, and what the checker read from the
# model's own image where the model drew it: then questions are answered again for that image, and an edit means the
# object that its words name there. A drawing may be right and still give the next words more than one meaning: "the
# large one", of two small or of two large. Such a step is left open: whatever the words may mean there is right.


class CheckResult(NamedTuple):
    """The result of one part, and what is talked about afterwards."""

    passed: bool  # nothing is wrong
    scene: Scene | None  # what the next parts are about; None when the image could not be read
    dense: DenseScore | None = None
    border_errors: tuple[float, ...] = ()  # of the objects of a drawing (checker.border_errors)
    left_open: bool = False  # the image that the model drew gives the words more than one meaning


def check_answer(item: Check, given: Part, scene: Scene | None) -> CheckResult:
    """Check `given` as the part of an answer that `item` checks; `scene` is what is being talked about."""
    if isinstance(given, Image.Image) != (item.kind in ("draw", "edit", "depth", "segmentation")):
        return CheckResult(False, scene)
    match item.kind:
        case "draw":
            drawn = parse(given).scene
            if drawn is None:
                return CheckResult(False, None)
            borders = tuple(border_errors(given, drawn))
            return CheckResult(satisfies(drawn, item.spec), drawn, border_errors=borders)
        case "edit":  # the change was made to the image that is talked about and the rest is untouched
            after = parse(given).scene
            if scene is None or after is None:
                return CheckResult(False, after)
            edits, left_open = ([item.edit], False) if scene == item.scene else _edits_elsewhere(item, item.edit, scene)
            passed = any(check_edit(scene, edit, after) for edit in edits)
            return CheckResult(passed, after, left_open=left_open)
        case "say":
            return CheckResult(bool(given.strip()), scene)
        case "answer" if item.question is None or scene == item.scene:
            return CheckResult(normalize_answer(given) == normalize_answer(item.expected), scene)
        case _ if scene is None:
            return CheckResult(False, None)
        case "answer":
            right, left_open = _answers_elsewhere(item, item.question, scene)
            return CheckResult(normalize_answer(given) in map(normalize_answer, right), scene, left_open=left_open)
        case "describe":
            return CheckResult(check_description(given, scene), scene)
        case _:
            score = score_dense(item.kind, given, scene)
            return CheckResult(score.mean_iou >= DENSE_PASS, scene, score)


def _answers_elsewhere(item: Check, question: Question, scene: Scene) -> tuple[frozenset[str], bool]:
    """The right answers in another scene, and whether it leaves open which of them."""
    if item.apart_from is not None:
        others = tuple(other for other in scene.objects if not item.apart_from.matches(other))
        question, scene = replace(question, first=ANY), Scene(scene.background, others or scene.objects)
    expected = answer(question, scene)
    return (possible_answers(question, scene), True) if expected is None else (frozenset((expected,)), False)


def _edits_elsewhere(item: Check, edit: Edit, scene: Scene) -> tuple[list[Edit], bool]:
    """What the words of an edit may mean in another scene, and whether that is anything but one object that they name.

    They may mean each object that they name, save one that already is as they want it where another is not. If they
    name none, they may mean those that are most like it: the shape counts more than color and size together.
    """
    if edit.index is None and edit.anchor is None:
        return [edit], False

    def likeness(other: SceneObject) -> tuple[bool, int]:
        wanted = item.reference
        return other.shape == wanted.shape, (other.color == wanted.color) + (other.size == wanted.size)

    named = [index for index, other in enumerate(scene.objects) if item.reference.matches(other)]
    highest = max(map(likeness, scene.objects))
    alike = [index for index, other in enumerate(scene.objects) if likeness(other) == highest]
    name = "anchor" if edit.kind == "add" else "index"
    edits = [replace(edit, **{name: index}) for index in named or alike]
    if len(named) > 1:
        edits = [each for each in edits if apply_edit(scene, each) != scene] or edits
    return edits, len(named) != 1


# ---- best of N: what the model's own score is worth ----
# All candidates are drawn and scored once; a smaller N looks at the first of them, so the rates differ by the choice
# alone.


Judge = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]
"""(images, requests) -> how right the model finds them."""


class Candidates(NamedTuple):
    """The images of one request, checked and scored."""

    scores: list[float]  # by the model
    is_right: list[bool]  # by the checker

    def best_is_right(self, number: int) -> bool:
        """Whether the request is satisfied when the best-scored of the first N candidates is kept."""
        return self.is_right[max(range(number), key=self.scores.__getitem__)]


def measure_best_of(
    answer: Answer, score: Judge, group: Group, *, best_of: Sequence[int], count: int, seed: int, chunk: int = 256
) -> dict:
    """Pass rates for every N, what a perfect judge would reach, and the AUROC of the score over all candidates, of
    which `chunk` are in memory at the same time."""
    for number in best_of:
        check_count(number, name="best_of")
    dialogues = make_items(group, count, seed=seed)
    requests = [str(dialogue.turns[0].parts[0]) for dialogue in dialogues]
    jobs = [(index, each) for index in range(count) for each in candidate_seeds(seed + index, max(best_of))]
    items = [Candidates([], []) for _ in dialogues]
    for start in tqdm(range(0, len(jobs), chunk), desc=f"best of {max(best_of)}, {group.name}", leave=False):
        indices, seeds = zip(*jobs[start : start + chunk], strict=True)
        asked = [requests[index] for index in indices]
        drawn = dict(answer([[Message("user", (TextPart(words),))] for words in asked], "image", seeds))
        images = [drawn[index][0] for index in range(len(drawn))]
        for index, image, value in zip(indices, images, score(images, asked), strict=True):
            items[index].scores.append(value)
            items[index].is_right.append(check_answer(dialogues[index].checks[0], image, None).passed)
    scores, is_right = ([value for item in items for value in item[field]] for field in (0, 1))
    low, high = auroc_interval(items) or (None, None)
    rates = {str(n): as_values(item.best_is_right(n) for item in items) for n in sorted(set(best_of))}
    any_right = {n: as_values(any(item.is_right[: int(n)]) for item in items) for n in rates}
    area = {"auroc": auroc(scores, is_right), "auroc_low": low, "auroc_high": high}
    return {"best_of": rates, "any_right": any_right, **area, "candidates": len(scores)}


MORE = {
    "left_open": ("of these partly left open", "{left_open}"),
    "border_error": ("border error, in 256ths", "{border_error:.2f}"),
    "mean_iou": ("mean IoU, pixel accuracy", "{mean_iou:.3f}, {pixel_accuracy:.3f}"),
}
"""Further scores of some groups: title and form."""


def as_table(report: dict) -> str:
    lines = [f"Synthetic world, protocol {report['protocol']}, seed {report['seed']}, model {report['model']}"]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    lines += [f"Settings: {settings}", "", f"{'job':<28} pass rate (95 % interval, items)"]
    for name, scores in report["scores"].items():
        lines.append(f"{name:<28} {as_rate(scores)}")
        lines += [f"  {title:<26} {form.format(**scores)}" for key, (title, form) in MORE.items() if key in scores]
        lines += [f"  {skill:<26} {as_rate(values)}" for skill, values in scores["skills"].items()]
    for name, values in report.get("self_scored", {}).items():
        lines += best_of_lines(name, values)
    tokenizer, checker = report["tokenizer"], report["checker_error"]
    highest = tokenizer["highest_perplexity"]
    limit = "" if highest is None else f" (of {highest:.0f} that are possible)"
    names = ("perplexity", "perplexity_of_borders")
    perplexity, of_borders = (" ".join(f"{value:.0f}" for value in tokenizer[name]) for name in names)
    lines += [
        "",
        f"Image tokenizer: {100 * tokenizer['scenes_read_right']:.1f} % of scenes read right after a round trip, "
        f"PSNR {tokenizer['psnr']:.1f} dB, SSIM {tokenizer['ssim']:.3f},",
        f"  perplexity per codebook {perplexity}{limit},",
        f"  over patches with a border alone {of_borders}",
        f"Checker's own error: {100 * checker['rate']:.2f} % of {checker['count']} rendered scenes",
    ]
    return "\n".join(lines)


def best_of_lines(name: str, values: dict) -> list[str]:
    lines = [f"{name}, chosen by the model itself"]
    for number, rate in values["best_of"].items():
        perfect = as_rate(values["any_right"][number]).share
        lines.append(f"  {'best of ' + number:<26} {as_rate(rate)}; a perfect judge {100 * perfect:.1f} %")
    area = "undefined: the candidates are all right or all wrong"
    if values["auroc"] is not None:
        interval = f"{values['auroc_low']:.3f} to {values['auroc_high']:.3f}"
        area = f"{values['auroc']:.3f} ({interval}, n = {values['candidates']})"
    return [*lines, f"  {'AUROC of its score':<26} {area}"]


# ---- the image tokenizer: images to codes and back, then parsed by the checker ----
# Letters: B batch, H W pixels, M patches, K codebooks, C entries, N positions.


@torch.inference_mode()
def score_round_trip(tokenizer: UniTok, *, count: int, seed: int, size: Size) -> dict:
    """PSNR, SSIM, share of test scenes still parsed right, and usage, entropy (nats) and perplexity of each codebook.

    Most patches of a drawing are plain background of a few colors. Where codes depend on their patch alone, each such
    color is one entry of a codebook, which bounds its perplexity: `highest_perplexity` is what a codebook of this size
    can reach. So `perplexity_of_borders` is over patches of more than one color; `plain_share` is that of the others.
    """
    config, prepare = tokenizer.config, ImageProcessor(width=size[0], height=size[1])
    rng = Random(f"round trip/{seed}")
    scenes = [random_scene_for("test", rng) for _ in range(count)]
    num_right, found = 0, defaultdict[str, list[Tensor]](list)
    colors = Counter[tuple[float, ...]]()  # of patches of one color only
    for start in tqdm(range(0, count, ROUND_TRIP_BATCH), desc="image tokenizer", leave=False):
        batch = scenes[start : start + ROUND_TRIP_BATCH]
        pixels_B3HW = prepare([render(scene, size) for scene in batch]).to(tokenizer.device)
        codes_BKN = tokenizer.encode(pixels_B3HW)
        decoded_B3HW = tokenizer.decode(codes_BKN, grid=tokenizer.grid_of(pixels_B3HW))
        for scene, image in zip(batch, to_images(decoded_B3HW), strict=True):
            num_right += same_scene(scene, parse(image).scene)
        is_plain_M, color_M3 = plain_patches(pixels_B3HW, config.patch_size)
        colors.update(map(tuple, color_M3[is_plain_M].tolist()))
        found["psnr"].append(psnr(decoded_B3HW, pixels_B3HW))
        found["ssim"].append(ssim(decoded_B3HW, pixels_B3HW))
        found["codes"].append(codes_BKN.transpose(0, 1).flatten(1))
        found["is_border"].append(~is_plain_M)
    codes_KM, is_border_M = torch.cat(found["codes"], dim=1), torch.cat(found["is_border"])
    both = codes_KM[None], codes_KM[None, :, is_border_M]
    counts_KC, border_counts_KC = (code_counts(codes_1KM, config.codebook_size).cpu() for codes_1KM in both)
    entropy_K, total, plain = entropy_of(counts_KC), len(is_border_M), [*colors.values()]
    is_bound = config.encoder_scope == "patch"
    return {
        "count": count,
        "scenes_read_right": num_right / count,
        "psnr": torch.cat(found["psnr"]).mean().item(),
        "ssim": torch.cat(found["ssim"]).mean().item(),
        "usage": usage_of(counts_KC).tolist(),
        "entropy": entropy_K.tolist(),
        "perplexity": entropy_K.exp().tolist(),
        "perplexity_of_borders": entropy_of(border_counts_KC).exp().tolist(),
        "plain_share": sum(plain) / max(total, 1),
        "highest_perplexity": highest_perplexity(plain, total, config.codebook_size) if is_bound else None,
    }


def plain_patches(pixels_B3HW: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Which patches have one color only, (M,), and the first color of each, (M, 3); in the order of their codes."""
    patches_M3P = cut_into_patches(pixels_B3HW, patch_size).flatten(2)
    return (patches_M3P == patches_M3P[:, :, :1]).all(dim=2).all(dim=1), patches_M3P[:, :, 0]


def highest_perplexity(fixed: Sequence[int], total: int, num_entries: int) -> float:
    """No codebook can have a larger perplexity over `total` codes of which groups, as large as `fixed` says, share an
    entry each: the other codes at best fill up the rarest entries to one level. With more groups than entries, that
    is the number of entries."""
    if len(fixed) > num_entries:
        return float(num_entries)
    rising = torch.tensor(sorted([*fixed, *[0] * (num_entries - len(fixed))]), dtype=torch.float64)
    numbers = torch.arange(1, num_entries + 1)
    levels = (total - sum(fixed) + rising.cumsum(0)) / numbers  # if the n rarest are filled up
    return float(entropy_of(torch.maximum(rising, levels.min())[None])[0].exp())
