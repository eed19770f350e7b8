"""Small data sets in the official layout of each benchmark, made of images of the synthetic world.

File names, field names and prompts are those of the published sets and of LLaVA's question files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mllm.evaluation.vqa import MME
from mllm.world.questions import answer, propose_question, say_question
from mllm.world.render import render
from mllm.world.scene import Scene, random_scene_for
from tests.mllm.evaluation.builders import write_json, write_jsonl

SHORT = "Answer the question using a single word or phrase."
PEOPLE = 10


@dataclass(frozen=True)
class Data:
    """One data set on disk."""

    questions: Path
    images: Path
    annotations: Path
    count: int


def make_data(name: str, folder: Path, *, seed: int = 0, is_instructed: bool = True) -> Data:
    """The data set of one benchmark.

    Args:
        is_instructed: prompts end with LLaVA's instruction; the bundled model does not know its words.
    """
    suffix = f"\n{SHORT}" if is_instructed else ""
    makers: dict[str, Callable[[Path, Random, str], Data]] = {
        "vqav2": make_vqav2,
        "gqa": make_gqa,
        "textvqa": make_textvqa,
        "pope": make_pope,
        "mme": make_mme,
        "mmvet": make_mmvet,
    }
    return makers[name](folder, Random(f"{name}/{seed}"), suffix)


def draw_scene(path: Path, rng: Random) -> Scene:
    """An image of the test split in a file."""
    scene = random_scene_for("test", rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    render(scene, 128).save(path)
    return scene


def ask_about(scene: Scene, rng: Random, kind: str | None = None) -> tuple[str, str]:
    """A question in words, and its right answer."""
    question = propose_question(scene, rng, kind=kind)
    right = answer(question, scene)
    assert right is not None
    return say_question(question, rng), right


def ten_people(right: str, rng: Random) -> list[str]:
    """Ten answers that agree, or mostly do."""
    others = ["red", "2", "circle", "yes", "the blue one"]
    return [right if rng.random() < 0.7 else rng.choice(others) for _ in range(PEOPLE)]


def make_vqav2(folder: Path, rng: Random, suffix: str) -> Data:
    questions, annotations = [], []
    for n in range(7):
        name = f"COCO_val2014_{n:012d}.jpg"
        words, right = ask_about(draw_scene(folder / "val2014" / name, rng), rng)
        question_id = 1000 * n + 2
        questions.append({"question_id": question_id, "image": name, "text": f"{words}{suffix}", "category": "default"})
        people = ten_people(right, rng) if n % 3 else [right] * PEOPLE
        annotations.append(
            {
                "question_type": "what",
                "multiple_choice_answer": right,
                "answers": [
                    {"answer": said, "answer_confidence": "yes", "answer_id": number + 1}
                    for number, said in enumerate(people)
                ],
                "image_id": n,
                "answer_type": "yes/no" if right in ("yes", "no") else "number" if right.isdigit() else "other",
                "question_id": question_id,
            }
        )
    return Data(
        write_jsonl(folder / "llava_vqav2_mscoco_val2014.jsonl", questions),
        folder / "val2014",
        write_json(folder / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": annotations}),
        len(questions),
    )


def make_gqa(folder: Path, rng: Random, suffix: str) -> Data:
    questions, gold = [], {}
    for n in range(7):
        image_id, question_id = f"n{n}", f"2010{n}"
        words, right = ask_about(draw_scene(folder / "data" / "images" / f"{image_id}.jpg", rng), rng)
        questions.append(
            {"question_id": question_id, "image": f"{image_id}.jpg", "text": f"{words}{suffix}", "category": "default"}
        )
        structure = rng.choice(["verify", "logical"]) if right in ("yes", "no") else "query"
        gold[question_id] = {
            "imageId": image_id,
            "question": words,
            "answer": right,
            "fullAnswer": right,
            "isBalanced": True,
            "types": {"structural": structure, "semantic": "attr", "detailed": "x"},
        }
    return Data(
        write_jsonl(folder / "llava_gqa_testdev_balanced.jsonl", questions),
        folder / "data" / "images",
        write_json(folder / "data" / "testdev_balanced_questions.json", gold),
        len(questions),
    )


def make_textvqa(folder: Path, rng: Random, suffix: str) -> Data:
    questions, annotations = [], []
    for n in range(4):
        image_id = f"{n:04x}ab"
        scene = draw_scene(folder / "train_images" / f"{image_id}.jpg", rng)
        for number, kind in enumerate(("color", "count")):  # two questions share the id of their image
            words, right = ask_about(scene, rng, kind)
            prompt = f"{words}\nReference OCR token: red, STOP, 7\n{SHORT}"
            questions.append({"question_id": image_id, "image": f"{image_id}.jpg", "text": prompt})
            annotations.append(
                {
                    "question": words,
                    "image_id": image_id,
                    "question_id": 34600 + 2 * n + number,
                    "answers": ten_people(right, rng),
                    "set_name": "val",
                }
            )
    return Data(
        write_jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", questions),
        folder / "train_images",
        write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": annotations}),
        len(questions),
    )


def make_pope(folder: Path, rng: Random, suffix: str) -> Data:
    questions: list[dict] = []
    for category, count in (("adversarial", 4), ("popular", 3), ("random", 5)):
        labels = []
        for n in range(count):
            name = f"COCO_val2014_{len(questions):012d}.jpg"
            words, right = "", ""
            while right not in ("yes", "no"):
                words, right = ask_about(draw_scene(folder / "val2014" / name, rng), rng, "existence")
            text = f"{words}{suffix}"
            questions.append({"question_id": len(questions), "image": name, "text": text, "category": category})
            labels.append({"question_id": n + 1, "image": name, "text": words, "label": right})
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", labels)
    return Data(
        write_jsonl(folder / "llava_pope_test.jsonl", questions),
        folder / "val2014",
        folder / "coco",
        len(questions),
    )


def make_mme(folder: Path, rng: Random, suffix: str) -> Data:
    questions, release = [], folder / "MME_Benchmark_release_version"
    for number, subtask in enumerate(MME.subtasks):
        place = release / subtask
        texts = place / "questions_answers_YN" if number % 2 else place  # both layouts occur in the release
        images = place / "images" if number % 2 else place
        texts.mkdir(parents=True)
        scene = draw_scene(images / "0001.png", rng)
        color, other = scene.objects[0].color, next(c for c in ("red", "blue") if c != scene.objects[0].color)
        is_there = any(item.color == other for item in scene.objects)
        rows = [(f"Is there a {color} shape?", "Yes"), (f"Is there a {other} shape?", "Yes" if is_there else "No")]
        space = "  " if number % 3 == 2 else " "  # some files of the release have two spaces
        published = "".join(f"{words}{space}Please answer yes or no.\t{right}\n" for words, right in rows)
        (texts / "0001.txt").write_text(published, encoding="utf-8")
        name = f"{subtask}/0001.png"
        image = str((images / "0001.png").relative_to(release))
        questions += [
            {"question_id": name, "image": image, "text": f"{words}{suffix}", "category": subtask} for words, _ in rows
        ]
    return Data(write_jsonl(folder / "llava_mme.jsonl", questions), release, release, len(questions))


def make_mmvet(folder: Path, rng: Random, suffix: str) -> Data:
    questions, truth = [], {}
    for n in range(5):
        words, right = ask_about(draw_scene(folder / "images" / f"v1_{n}.png", rng), rng)
        questions.append({"question_id": n, "image": f"v1_{n}.png", "text": words, "category": "default"})
        capability = [["rec"], ["ocr", "spat"], ["rec", "know", "gen"]][n % 3]
        truth[f"v1_{n}"] = {
            "imagename": f"v1_{n}.png",
            "question": words,
            "answer": right,
            "imagesource": "world",
            "capability": capability,
        }
    return Data(
        write_jsonl(folder / "llava-mm-vet.jsonl", questions),
        folder / "images",
        write_json(folder / "mm-vet.json", truth),
        len(questions),
    )
