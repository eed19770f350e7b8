"""Visual question answering, as the UniTok and LLaVA papers report it: VQAv2, GQA, TextVQA, POPE, MME.

In: answers and the published annotations. Out: scores, and the files that official servers and tools take. The rules
and quirks are those of the reference scorers, to the letter, because published numbers depend on them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import eq
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm.evaluation.intervals import Statistic, means, score_with_interval
from mllm.evaluation.protocol import (
    AnsweredItem,
    Answers,
    Benchmark,
    BenchmarkItem,
    Score,
    ScoreOptions,
    Scores,
    find_annotation,
    read_mapping,
)
from mllm.files import Line, need_field, read_json, read_lines, text_lines, write_json, write_text

Values = NDArray[np.float64]

# ---- the answer normaliser of EvalAI and of the VQA server ("M4C" in Pythia) ----

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True))
NUMBERS["none"] = "0"
PERIOD = re.compile(r"\.(?!\d)")  # the reference means "nor after a digit" too, but its pattern does not say so
MAX_PERIODS = 32  # the reference passes the flag re.UNICODE (32) where the number of replacements goes
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

CONTRACTIONS_FILE = Path(__file__).with_name("contractions.txt")


@cache
def contractions() -> dict[str, str]:
    """As the reference has them, the odd ones (somebody'd) included. Its capitalised ones never match."""
    return dict(line.split("=") for line in text_lines(CONTRACTIONS_FILE))


def normalise(answer: str) -> str:
    """The answer as EvalAI's processor leaves it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return tidy(flatten(text))


def tidy(text: str) -> str:
    """What the VQA server does to an answer: punctuation, then numbers, articles and contractions."""
    words = [NUMBERS.get(word, word) for word in remove_punctuation(text).lower().split()]
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def remove_punctuation(text: str) -> str:
    """Drop a mark that touches a space anywhere, replace it by a space otherwise; drop periods not before a digit.

    One comma between digits anywhere ("1,000-2,000") makes every mark be dropped without a space.
    """
    has_long_number = DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches_space or has_long_number else " ")
    return PERIOD.sub("", result, count=MAX_PERIODS)


def flatten(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


NUM_PEOPLE = 10


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """0 to 1: the mean over the people of min(1, how many of the others gave the answer / 3) (Antol et al. 2015)."""
    same = [said == answer for said in people]
    return sum(min(1.0, (sum(same) - is_same) / 3) for is_same in same) / len(same)


def read_people(record: Mapping, where: str) -> list[str]:
    """The ten human answers of an annotation; the score is not defined for another number."""
    answers = record.get("answers")
    answers = answers if isinstance(answers, list) else []
    said = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    texts = [answer for answer in said if isinstance(answer, str)]
    if len(texts) != NUM_PEOPLE or len(said) != NUM_PEOPLE:
        raise ValueError(f"{where} must have {NUM_PEOPLE} human answers, got {len(texts)}; give the published file")
    return texts


def read_records(path: Path, field: str, *needed: str, name: str) -> list[dict]:
    """The list in this field of an annotation file, of records that have the needed fields."""
    data = read_json(path)
    listed = data.get(field) if isinstance(data, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and set(needed) <= one.keys() for one in listed):
        raise ValueError(f"{path} must contain a list {field!r} of records with {', '.join(needed)}; give {name}")
    return listed


class VQAv2(Benchmark):
    """Open questions about COCO images (Goyal et al. 2017).

    The server cleans up the ten human answers and ours only if the ten disagree; ours went through EvalAI's normaliser
    before, as in a submission.
    """

    name = "vqav2"
    annotations = "v2_mscoco_val2014_annotations.json (those of test-dev are not public: use mllm evaluate submit)"
    official_counts = (107394, 214354)  # test-dev, val

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Overall accuracy and that of each answer type, in percent."""
        published = "v2_mscoco_val2014_annotations.json"
        records = read_records(annotations, "annotations", "question_id", "answers", name=published)
        by_id = {str(record["question_id"]): record for record in records}
        values: dict[str, list[float]] = {name: [] for name in ("overall", "yes/no", "number", "other")}
        for one in answered:
            record = find_annotation(by_id, str(one.item.question_id), one.item, annotations)
            people = read_people(record, f"{annotations}, question {one.item.question_id}")
            for name in ("overall", record.get("answer_type", "other")):
                values.setdefault(name, []).append(self.score_answer(normalise(one.text), people))
        return Scores(self.protocol("evalai-normalised", count=len(answered)), "overall", means(values))

    @staticmethod
    def score_answer(answer: str, people: Sequence[str]) -> float:
        """Official accuracy, 0 to 1, of one answer of a submission."""
        said, answer = [flatten(text) for text in people], flatten(answer)
        if len(set(said)) > 1:
            said, answer = [tidy(text) for text in said], tidy(answer)
        return soft_accuracy(answer, said)

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """EvalAI's file: a list of {"question_id", "answer"} over the complete split, "" where nothing was asked."""
        given = {str(one.item.question_id): normalise(one.text) for one in answered}
        ids = dict.fromkeys(given)
        if split is not None:
            ids = dict.fromkeys(str(need_field(line, "question_id")) for line in read_lines(split))
            if unknown := [id_ for id_ in given if id_ not in ids]:
                raise ValueError(f"{split} must contain every answered question, got no {unknown[0]!r}")
        numbers = {id_: int(id_) if id_.isdecimal() else id_ for id_ in ids}  # the server compares numbers
        answers = [{"question_id": number, "answer": given.get(id_, "")} for id_, number in numbers.items()]
        write_json(path := folder / "vqav2_submission.json", answers)
        return [path]


class GQA(Benchmark):
    """Compositional questions (Hudson and Manning 2019): exact match after lower-casing and dropping final periods."""

    name = "gqa"
    annotations = "testdev_balanced_questions.json"
    official_counts = (12578,)

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Accuracy, that of binary and of open questions, and of each structural type, in percent."""
        gold = read_mapping(annotations, "answer", name=self.annotations)
        rights: dict[str, list[float]] = {"accuracy": [], "binary": [], "open": []}
        types: dict[str, list[float]] = defaultdict(list)
        for one in answered:
            question = find_annotation(gold, str(one.item.question_id), one.item, annotations)
            if not question.get("isBalanced", True):
                continue  # as in the official script
            right = float(self.prediction_of(one.text) == question["answer"])
            rights["accuracy"].append(right)
            if structure := question.get("types", {}).get("structural"):
                rights["open" if structure == "query" else "binary"].append(right)
                types[f"type: {structure}"].append(right)
        if not rights["accuracy"]:
            raise ValueError(f"{annotations} must mark the answered questions as balanced; give {self.annotations}")
        scores = means(rights | dict(sorted(types.items())))
        return Scores(self.protocol("exact-match", count=len(answered)), "accuracy", scores)

    @staticmethod
    def prediction_of(text: str) -> str:
        return text.rstrip(".").lower()

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """The official script's file: a list of {"questionId", "prediction"}."""
        records = [{"questionId": str(a.item.question_id), "prediction": self.prediction_of(a.text)} for a in answered]
        write_json(path := folder / "gqa_predictions.json", records)
        return [path]


class TextVQA(Benchmark):
    """Questions about text in the image (Singh et al. 2019), scored as M4C does.

    The question file of the LLaVA line gives OCR tokens in the prompt; the protocol says whether it did, because the
    score differs by more than ten points. An annotation is found by its image and the question inside the prompt.
    """

    name = "textvqa"
    annotations = "TextVQA_0.5.1_val.json"
    official_counts = (5000,)
    keyed_by_prompt = True  # ids are those of images
    ocr_line, ocr_first = "Reference OCR token:", "OCR tokens: "
    question_in_prompt = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Mean soft accuracy in percent; all answers are normalised."""
        people = {}
        for record in read_records(annotations, "data", "image_id", "question", "answers", name=self.annotations):
            where = f"{annotations}, question {record.get('question_id', record['question'])!r}"
            people[str(record["image_id"]), record["question"].lower()] = read_people(record, where)
        values, has_ocr = [], set()
        for one in answered:
            key = (str(one.item.question_id), self.question_of(one.item.prompt, one.item.where))
            said = find_annotation(people, key, one.item, annotations)
            values.append(soft_accuracy(normalise(one.text), [normalise(text) for text in said]))
            has_ocr.add(f"{self.ocr_line} " in one.item.prompt or one.item.prompt.startswith(self.ocr_first))
        variant = "m4c-mixed-prompts" if len(has_ocr) > 1 else "m4c-ocr-prompt" if has_ocr == {True} else "m4c-no-ocr"
        return Scores(self.protocol(variant, count=len(answered)), "accuracy", means({"accuracy": values}))

    def question_of(self, prompt: str, where: str = "prompt") -> str:
        """The question inside a prompt, in lower case."""
        lines = prompt.split("\n")
        if prompt.startswith(self.ocr_first) and (match := self.question_in_prompt.search(prompt)):
            return match[1].lower()
        if f"{self.ocr_line} " in prompt and len(lines) == 3:
            return lines[prompt.startswith(self.ocr_line)].lower()
        if len(lines) == 2:
            return lines[0].lower()
        raise ValueError(
            f"{where} must have question, OCR tokens and instruction on one line each, got {prompt[:60]!r}"
        )


class POPE(Benchmark):
    """Is an object in the image, yes or no (Li et al. 2023); three ways to choose the absent ones.

    Labels are matched by their order within the category, so the counts must agree, and where the label file names
    images these must agree too. The headline is the mean F1 of the three categories.
    """

    name = "pope"
    annotations = "the folder of coco_pope_{adversarial,popular,random}.json"
    old_random = 2910
    """Rows of the category random in the files that LLaVA used; the newer file has 3000."""
    official_counts = (9000, 6000 + old_random)
    categories = ("adversarial", "popular", "random")
    outcomes: ClassVar[dict[str, int]] = dict(true_positive=3, false_positive=2, true_negative=0, false_negative=1)
    """2 * says_yes + is_yes; yes is positive."""

    def read_items(self, questions: Path, images: Path | None) -> list[BenchmarkItem]:
        """Questions with their number within their category, and how many it has."""
        by_category: dict[str, list[BenchmarkItem]] = {name: [] for name in self.categories}
        items = super().read_items(questions, images)
        for item in items:
            if (found := need_field(Line(item.where, dict(item.fields)), "category")) not in self.categories:
                raise ValueError(f"{item.where}: category must be one of {', '.join(self.categories)}, got {found!r}")
            by_category[found].append(item)
        groups = by_category.values()
        numbers = {item.key: {"number": n, "of": len(group)} for group in groups for n, item in enumerate(group)}
        return [replace(item, fields={**item.fields, **numbers[item.key]}) for item in items]

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Mean F1 of the categories, and every metric of each, in percent."""
        groups: dict[str, list[float]] = {}
        size = 3000
        for name in self.categories:
            if group := [one for one in answered if one.item.fields["category"] == name]:
                labels = self.read_labels(annotations / f"coco_pope_{name}.json")
                groups[name] = [2.0 * self.says_yes(one.text) + self.label_of(one.item, labels) for one in group]
                size = self.old_random if (name, len(labels)) == ("random", self.old_random) else size
        scores = {"mean f1": score_with_interval(list(groups.values()), confusion_metric("f1"))}
        for name, outcomes in groups.items():
            for metric in CONFUSION_METRICS:
                scores[f"{name} {metric}"] = score_with_interval([outcomes], confusion_metric(metric))
        titles = self.outcomes.items()
        counts = {name: {title: group.count(code) for title, code in titles} for name, group in groups.items()}
        return Scores(self.protocol(f"llava-{size}", count=len(answered)), "mean f1", scores, extra={"counts": counts})

    @staticmethod
    def says_yes(text: str) -> bool:
        """LLaVA's parsing: only the first sentence counts, and without one of three words everything is a yes."""
        return not {"No", "not", "no"} & set(text.split(".")[0].replace(",", "").split(" "))

    @staticmethod
    def read_labels(path: Path) -> list[Line]:
        """One record per question, in order; only `label` is needed."""
        lines = read_lines(path)
        for line in lines:
            if need_field(line, "label") not in ("yes", "no"):
                raise ValueError(f"{line.where}: label must be yes or no, got {line.record['label']!r}")
        return lines

    @staticmethod
    def label_of(item: BenchmarkItem, labels: Sequence[Line]) -> bool:
        if item.fields["of"] != len(labels):
            raise ValueError(
                f"labels of category {item.fields['category']!r} must be as many as its {item.fields['of']} questions "
                f"({item.where}), got {len(labels)}; give the label file of these questions"
            )
        label = labels[item.fields["number"]]
        if (image := label.record.get("image", item.fields["image"])) != item.fields["image"]:
            raise ValueError(f"{label.where} must be about {item.fields['image']} as {item.where}, got {image}")
        return label.record["label"] == "yes"


CONFUSION_METRICS: dict[str, Callable[..., Values]] = {  # 0 without a positive; the reference divides by zero there
    "f1": lambda tp, fp, fn, tn: 2 * tp / np.maximum(2 * tp + fp + fn, 1),
    "accuracy": lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
    "precision": lambda tp, fp, fn, tn: tp / np.maximum(tp + fp, 1),
    "recall": lambda tp, fp, fn, tn: tp / np.maximum(tp + fn, 1),
    "yes_ratio": lambda tp, fp, fn, tn: (tp + fp) / (tp + fp + fn + tn),
}


def confusion_metric(name: str) -> Statistic:
    """A metric in percent of outcomes; the mean of several strata."""

    def of_one(outcomes: Values, axis: int) -> Values:
        return CONFUSION_METRICS[name](*((outcomes == code).sum(axis=axis) for code in (3, 2, 1, 0)))

    return lambda *strata, axis: 100 * np.mean([of_one(outcomes, axis) for outcomes in strata], axis=0)


SEPARATORS = dict.fromkeys(map(ord, "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"), " ")
"""Characters at which a line or column may end, each to a space."""
MMEGold = dict[tuple[str, str, str], str]
"""(subtask, name of the image's text file, question) -> Yes or No."""


class MME(Benchmark):
    """Two yes/no questions about each image, in 14 subtasks (Fu et al. 2023).

    A subtask scores its accuracy plus its accuracy+ (both questions of an image right), each times 100; ten subtasks
    add up to perception (most papers quote it alone), four to cognition.
    """

    name = "mme"
    annotations = "the folder MME_Benchmark_release_version"
    official_counts = (2374,)
    keyed_by_prompt = True  # both questions about an image have its id
    perception = tuple("existence count position color posters celebrity scene landmark artwork OCR".split())
    cognition = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
    subtasks = (*perception, *cognition)
    instruction = "Answer the question using a single word or phrase."
    yes_no = "Please answer yes or no."

    def read_items(self, questions: Path, images: Path | None) -> list[BenchmarkItem]:
        items = super().read_items(questions, images)
        for item in items:
            self.place_of(item)
        return items

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Perception, cognition, and every subtask; a total is reported only if all its subtasks are there."""
        rights = self.count_rights(answered, self.read_gold(annotations))
        scores: dict[str, Score] = {}
        for name, subtasks in (("perception", self.perception), ("cognition", self.cognition)):
            if all(subtask in rights for subtask in subtasks):
                scores[name] = score_with_interval([rights[subtask] for subtask in subtasks], mme_score)
        for subtask in sorted(rights, key=self.subtasks.index):
            for title, statistic in (("", mme_score), (" accuracy", accuracy), (" accuracy+", accuracy_plus)):
                scores[subtask + title] = score_with_interval([rights[subtask]], statistic)
        headline = "perception" if "perception" in scores else next(iter(scores))
        return Scores(self.protocol("official", count=len(answered)), headline, scores)

    def count_rights(self, answered: Answers, gold: MMEGold) -> dict[str, list[float]]:
        """How many of the two answers about each image are right, by subtask."""
        images: dict[tuple[str, str], list[AnsweredItem]] = defaultdict(list)
        for one in answered:
            images[self.place_of(one.item)].append(one)
        rights: dict[str, list[float]] = defaultdict(list)
        for place, both in images.items():
            if len(both) != 2:
                where, what = both[0].item.where, "/".join(place)
                raise ValueError(f"{what} must have 2 answers, got {len(both)} ({where}); use an even --limit")
            expected = [gold[*place, self.question_of(one.item, gold)].lower() for one in both]
            said = [self.yes_or_no(one.text) for one in both]
            rights[place[0]].append(float(sum(map(eq, said, expected))))
        return rights

    @staticmethod
    def yes_or_no(text: str) -> str:
        """How the official tool reads an answer: yes or no within the first four characters, spaces included."""
        prefix = text.lower()[:4]
        return "yes" if "yes" in prefix else "no" if "no" in prefix else "other"

    def read_gold(self, folder: Path) -> MMEGold:
        """A folder per subtask, a text file per image, two lines of question, tab, answer."""
        gold: MMEGold = {}
        for subtask in self.subtasks:
            texts = folder / subtask / "questions_answers_YN"  # some subtasks of the release have this folder
            for path in sorted((texts if texts.is_dir() else folder / subtask).glob("*.txt")):
                for number, line in enumerate(text_lines(path), start=1):
                    question, tab, answer = line.strip().partition("\t")
                    if not tab or answer.lower() not in ("yes", "no"):
                        raise ValueError(f"{path}, line {number} must be question, tab, and Yes or No, got {line!r}")
                    gold[subtask, path.name, question] = answer
        if not gold:
            raise ValueError(f"{folder} must contain <subtask>/*.txt, got none; give MME_Benchmark_release_version")
        return gold

    def place_of(self, item: BenchmarkItem) -> tuple[str, str]:
        """(subtask, name of the image's text file) of a question id such as code_reasoning/0020.png."""
        subtask, slash, name = str(item.question_id).partition("/")
        if not slash or subtask not in self.subtasks:
            raise ValueError(f"{item.where}: question_id must be <subtask>/<image>, got {item.question_id!r}")
        return subtask, name.split("/")[-1].split(".")[0] + ".txt"

    def question_of(self, item: BenchmarkItem, gold: MMEGold) -> str:
        """The question as published: LLaVA replaced its last sentence by its own instruction."""
        place = self.place_of(item)
        bare = item.prompt.replace(self.instruction, "").strip()
        candidates = [bare] if self.yes_no in bare else [f"{bare} {self.yes_no}", f"{bare}  {self.yes_no}"]
        for candidate in candidates:
            if (*place, candidate) in gold:
                return candidate
        raise ValueError(f"{item.where} must ask a published question about {'/'.join(place)}, got {candidates[0]!r}")

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """The official tool's files: <subtask>.txt, lines of image, question, answer, prediction."""
        if annotations is None:
            raise ValueError(f"--annotations must be given for the files of MME; give {self.annotations}")
        gold = self.read_gold(annotations)
        files: dict[Path, str] = defaultdict(str)
        for one in answered:
            subtask, file = self.place_of(one.item)
            question = self.question_of(one.item, gold)
            said = one.text.translate(SEPARATORS)  # the tool would take these for columns and rows
            files[folder / "mme" / f"{subtask}.txt"] += f"{file}\t{question}\t{gold[subtask, file, question]}\t{said}\n"
        for path, text in files.items():
            write_text(path, text)
        return list(files)


def accuracy(rights: Values, axis: int) -> Values:
    """Share of right answers in percent, from the number (0, 1, 2) of right answers about each image."""
    return 100 * rights.mean(axis=axis) / 2


def accuracy_plus(rights: Values, axis: int) -> Values:
    """Share of images with both answers right, in percent."""
    return 100 * (rights == 2).mean(axis=axis)


def mme_score(*subtasks: Values, axis: int) -> Values:
    """Accuracy plus accuracy+, 0 to 200 for each subtask."""
    return np.sum([accuracy(rights, axis) + accuracy_plus(rights, axis) for rights in subtasks], axis=0)
