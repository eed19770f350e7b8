"""The scores of the VQA benchmarks, written a second time and plainly, for comparison. Imports none of our scorers."""

import json
from pathlib import Path

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
WORDS = {"none": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
WORDS |= {"six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clean(text: str) -> str:
    """The normaliser without contractions, which the world does not speak."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in MARKS:
        if mark in text:
            touches = (mark + " ") in text or (" " + mark) in text
            text = text.replace(mark, "\0" if touches else "\1")
    text = text.replace("\0", "").replace("\1", " ")
    kept = ""
    for index, char in enumerate(text):
        if char != "." or text[index + 1 : index + 2].isdigit():
            kept += char
    words = [str(WORDS.get(word, word)) for word in kept.split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def soft(answer: str, people: list[str]) -> float:
    total = 0.0
    for left_out in range(10):
        others = people[:left_out] + people[left_out + 1 :]
        total += min(others.count(answer) / 3, 1)
    return total / 10


def score_vqav2(answers: list[dict], annotations: Path, questions: list[dict]) -> float:
    gold = {record["question_id"]: record for record in json.loads(annotations.read_text())["annotations"]}
    total = 0.0
    for answer in answers:
        people = [said["answer"] for said in gold[answer["question_id"]]["answers"]]
        said = clean(answer["text"])
        total += soft(said, people if len(set(people)) == 1 else [clean(person) for person in people])
    return 100 * total / len(answers)


def score_gqa(answers: list[dict], annotations: Path, questions: list[dict]) -> float:
    gold = json.loads(annotations.read_text())
    rights = []
    for answer in answers:
        text = answer["text"].lower()
        while text.endswith("."):
            text = text[:-1]
        rights.append(text == gold[answer["question_id"]]["answer"])
    return 100 * sum(rights) / len(rights)


def score_textvqa(answers: list[dict], annotations: Path, questions: list[dict]) -> float:
    total = 0.0
    for answer in answers:
        asked = answer["prompt"].split("\n")[0]
        for record in json.loads(annotations.read_text())["data"]:
            if record["image_id"] == answer["question_id"] and record["question"].lower() == asked.lower():
                total += soft(clean(answer["text"]), [clean(person) for person in record["answers"]])
    return 100 * total / len(answers)


def score_pope(answers: list[dict], annotations: Path, questions: list[dict]) -> float:
    """Mean F1 as 2 TP / (2 TP + FP + FN)."""
    total = 0.0
    for category in ("adversarial", "popular", "random"):
        labels = read_jsonl(annotations / f"coco_pope_{category}.json")
        said = [a["text"] for a, q in zip(answers, questions, strict=True) if q["category"] == category]
        tp = fp = fn = 0
        for text, label in zip(said, labels, strict=True):
            words = text.partition(".")[0].replace(",", "").split(" ")
            says_no = "no" in words or "No" in words or "not" in words
            tp += not says_no and label["label"] == "yes"
            fp += not says_no and label["label"] == "no"
            fn += says_no and label["label"] == "yes"
        total += 2 * tp / (2 * tp + fp + fn) if tp else 0.0
    return 100 * total / 3


def score_mme(answers: list[dict], annotations: Path, questions: list[dict]) -> float:
    """Perception: the first ten of the fourteen subtasks, one picture with two questions each."""
    total = 0.0
    for pair in range(10):
        rights = 0
        for answer in answers[2 * pair : 2 * pair + 2]:
            place = annotations / answer["question_id"].split("/")[0]
            [path] = place.rglob("0001.txt")
            asked = answer["prompt"].split("\n")[0]
            [gold] = [line.split("\t")[1] for line in path.read_text().splitlines() if line.startswith(asked)]
            start = answer["text"][:4].lower()
            rights += ("yes" if "yes" in start else "no" if "no" in start else "?") == gold.lower()
        total += 50 * rights + 100 * (rights == 2)
    return total


def score_mmvet(answers: list[dict], annotations: Path, questions: list[dict]) -> float:
    """What the fake judge of the tests says: 1 for the truth, else 0.3."""
    truth = json.loads(annotations.read_text())
    grades = [1.0 if a["text"].strip() == truth[f"v1_{a['question_id']}"]["answer"] else 0.3 for a in answers]
    return 100 * sum(grades) / len(grades)


SCORERS = {
    "vqav2": score_vqav2,
    "gqa": score_gqa,
    "textvqa": score_textvqa,
    "pope": score_pope,
    "mme": score_mme,
    "mmvet": score_mmvet,
}
