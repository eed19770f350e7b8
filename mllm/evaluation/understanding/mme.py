"""MME: two yes/no questions about each picture, in 14 subtasks (Fu et al. 2023).

An answer counts by "yes" or "no" within its first four characters, in lower case, outer spaces included; anything else
is wrong. A subtask scores its accuracy plus its accuracy+ (both questions of a picture right), each times 100; ten
subtasks add up to perception (most papers quote it alone), four to cognition.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm.evaluation.intervals import score_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, Score, ScoreOptions, Scores, read_questions
from mllm.files import write_text

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)
INSTRUCTION = "Answer the question using a single word or phrase."
YES_NO = "Please answer yes or no."
QUESTIONS_PER_PICTURE = 2
PREFIX = 4  # characters of an answer that count

Gold = dict[tuple[str, str, str], str]
"""(subtask, name of the picture's text file, question) -> yes or no."""


def verdict_of(text: str) -> str:
    """yes, no or other, as the official tool reads an answer."""
    prefix = text.lower()[:PREFIX]
    return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"


def score_subtask(rights: Mapping[int, int]) -> float:
    """Accuracy plus accuracy+, 0 to 200, from how many pictures have 0, 1, 2 right answers."""
    pictures = sum(rights.values())
    right = sum(num_right * count for num_right, count in rights.items())
    both = rights.get(QUESTIONS_PER_PICTURE, 0)
    return 100 * right / (QUESTIONS_PER_PICTURE * pictures) + 100 * both / pictures


def accuracy(rights: Mapping[int, int]) -> float:
    """Share of right answers, as a percentage."""
    right = sum(num_right * count for num_right, count in rights.items())
    return 100 * right / (QUESTIONS_PER_PICTURE * sum(rights.values()))


def accuracy_plus(rights: Mapping[int, int]) -> float:
    """Share of pictures with both answers right, as a percentage."""
    return 100 * rights.get(QUESTIONS_PER_PICTURE, 0) / sum(rights.values())


def read_gold(folder: Path) -> Gold:
    """MME_Benchmark_release_version: a folder per subtask, a text file per picture, two questions with answers each."""
    gold: Gold = {}
    for subtask in SUBTASKS:
        texts = folder / subtask / "questions_answers_YN"
        for path in sorted((texts if texts.is_dir() else folder / subtask).glob("*.txt")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                question, tab, answer = line.strip().partition("\t")
                if not tab or answer.lower() not in ("yes", "no"):
                    raise ValueError(
                        f"{path}, line {number} is no question with its answer: found {line!r}; write the question, a "
                        "tab, and Yes or No"
                    )
                gold[subtask, path.name, question] = answer
    if not gold:
        raise ValueError(f"{folder} holds no MME subtask: found no <subtask>/*.txt; give MME_Benchmark_release_version")
    return gold


def place_of(item: Item) -> tuple[str, str]:
    """(subtask, name of the picture's text file) of a question id such as code_reasoning/0020.png."""
    subtask, slash, name = str(item.question_id).partition("/")
    if not slash or subtask not in SUBTASKS:
        raise ValueError(
            f"{item.where} has no subtask in its id: found {item.question_id!r}; write <subtask>/<picture>, a subtask "
            f"being one of {', '.join(SUBTASKS)}"
        )
    return subtask, name.split("/")[-1].split(".")[0] + ".txt"


def question_of(item: Item, gold: Gold) -> str:
    """The question as the published files have it: LLaVA took its last sentence away and put its own there."""
    subtask, file = place_of(item)
    bare = item.prompt.replace(INSTRUCTION, "").strip()
    candidates = [bare] if YES_NO in bare else [f"{bare} {YES_NO}", f"{bare}  {YES_NO}"]
    for candidate in candidates:
        if (subtask, file, candidate) in gold:
            return candidate
    raise ValueError(
        f"{item.where} asks what is not in the published files: found {candidates[0]!r} for {subtask}/{file}; give the "
        "files of the same release"
    )


def read_rights(answered: Sequence[Answered], gold: Gold) -> dict[str, list[int]]:
    """How many answers of each picture are right, by subtask."""
    pictures: dict[tuple[str, str], list[bool]] = defaultdict(list)
    first: dict[tuple[str, str], Item] = {}
    for one in answered:
        subtask, file = place_of(one.item)
        expected = gold[subtask, file, question_of(one.item, gold)].lower()
        pictures[subtask, file].append(verdict_of(one.text) == expected)
        first.setdefault((subtask, file), one.item)
    rights: dict[str, list[int]] = {name: [] for name in SUBTASKS}
    for (subtask, file), answers in pictures.items():
        if len(answers) != QUESTIONS_PER_PICTURE:
            raise ValueError(
                f"accuracy+ needs {QUESTIONS_PER_PICTURE} answers about each picture: found {len(answers)} about "
                f"{subtask}/{file} ({first[subtask, file].where}); score pairs, with an even --limit"
            )
        rights[subtask].append(sum(answers))
    return rights


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Perception, cognition, and every subtask; a total is there only if all its subtasks are."""
    assert options.annotations is not None, "the scorer of MME needs the published folder"
    rights = read_rights(answered, read_gold(options.annotations))
    scores: dict[str, Score] = {}
    for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if all(rights[subtask] for subtask in subtasks):
            scores[name] = score_with_interval(
                [rights[subtask] for subtask in subtasks], lambda counts: sum(map(score_subtask, counts))
            )
    for subtask, pictures in rights.items():
        if pictures:
            scores[subtask] = score_with_interval([pictures], lambda counts: score_subtask(counts[0]))
            scores[f"{subtask} accuracy"] = score_with_interval([pictures], lambda counts: accuracy(counts[0]))
            scores[f"{subtask} accuracy+"] = score_with_interval([pictures], lambda counts: accuracy_plus(counts[0]))
    headline = "perception" if "perception" in scores else next(iter(scores))
    return Scores(BENCHMARK.protocol("official", count=len(answered)), headline, scores)


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """The files of the official tool: <subtask>.txt, lines of picture, question, answer, prediction."""
    assert options.folder is not None and options.annotations is not None, "a submission needs folder and annotations"
    gold = read_gold(options.annotations)
    lines: dict[str, list[str]] = defaultdict(list)
    for one in answered:
        subtask, file = place_of(one.item)
        question = question_of(one.item, gold)
        said = one.text.replace("\t", " ").replace("\n", " ")  # the tool would take these for columns and rows
        lines[subtask].append("\t".join((file, question, gold[subtask, file, question], said)) + "\n")
    paths = [options.folder / "mme" / f"{subtask}.txt" for subtask in lines]
    for path, rows in zip(paths, lines.values(), strict=True):
        write_text(path, "".join(rows))
    return paths


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """Ids are those of pictures, so the two questions about one share it."""
    items = read_questions(questions, images, key_of=BENCHMARK.key_of)
    for item in items:
        place_of(item)
    return items


BENCHMARK = Benchmark(
    name="mme",
    summary="MME: llava_mme.jsonl; scored with the folder MME_Benchmark_release_version",
    read_items=read_items,
    score=score,
    submit=submit,
    official_counts=(2374,),
    keyed_by_prompt=True,
)
