"""Small data sets in the official layout of each benchmark, made of images of the synthetic world.

File names, field names and prompts are those of the published sets and of LLaVA's question files.
"""

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
    questions: list[dict] = []
    suffix = f"\n{SHORT}" if is_instructed else ""

    def ask(question_id: int | str, image: str, text: str, **fields: str) -> None:
        questions.append({"question_id": question_id, "image": image, "text": text, "category": "default"} | fields)

    file, images, annotations = MAKERS[name](folder, Random(f"{name}/{seed}"), suffix, ask)
    return Data(write_jsonl(folder / file, questions), images, annotations, len(questions))


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
    """Ten answers that mostly agree."""
    return [
        right if rng.random() < 0.7 else rng.choice(["red", "2", "circle", "yes", "the blue one"]) for _ in range(10)
    ]


def make_vqav2(folder: Path, rng: Random, suffix: str, ask: Callable[..., None]) -> tuple[str, Path, Path]:
    annotations = []
    for n in range(7):
        name = f"COCO_val2014_{n:012d}.jpg"
        words, right = ask_about(draw_scene(folder / "val2014" / name, rng), rng)
        ask(1000 * n + 2, name, words + suffix)
        people = ten_people(right, rng) if n % 3 else [right] * 10
        kind = "yes/no" if right in ("yes", "no") else "number" if right.isdigit() else "other"
        said = [
            {"answer": text, "answer_confidence": "yes", "answer_id": number + 1} for number, text in enumerate(people)
        ]
        annotations.append({"answers": said, "image_id": n, "answer_type": kind, "question_id": 1000 * n + 2})
    path = write_json(folder / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": annotations})
    return "llava_vqav2_mscoco_val2014.jsonl", folder / "val2014", path


def make_gqa(folder: Path, rng: Random, suffix: str, ask: Callable[..., None]) -> tuple[str, Path, Path]:
    gold, images = {}, folder / "data" / "images"
    for n in range(7):
        words, right = ask_about(draw_scene(images / f"n{n}.jpg", rng), rng)
        ask(f"2010{n}", f"n{n}.jpg", words + suffix)
        types = {"structural": rng.choice(["verify", "logical"]) if right in ("yes", "no") else "query"}
        gold[f"2010{n}"] = {"imageId": f"n{n}", "question": words, "answer": right, "isBalanced": True, "types": types}
    path = write_json(folder / "data" / "testdev_balanced_questions.json", gold)
    return "llava_gqa_testdev_balanced.jsonl", images, path


def make_textvqa(folder: Path, rng: Random, suffix: str, ask: Callable[..., None]) -> tuple[str, Path, Path]:
    data = []
    for n in range(4):
        name = f"{n:04x}ab"
        scene = draw_scene(folder / "train_images" / f"{name}.jpg", rng)
        for kind in ("color", "count"):  # two questions share the id of their image
            words, right = ask_about(scene, rng, kind)
            ask(name, f"{name}.jpg", f"{words}\nReference OCR token: red, STOP, 7\n{SHORT}")
            people = ten_people(right, rng)
            data.append({"question": words, "image_id": name, "question_id": 34600 + len(data), "answers": people})
    path = write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    return "llava_textvqa_val_v051_ocr.jsonl", folder / "train_images", path


def make_pope(folder: Path, rng: Random, suffix: str, ask: Callable[..., None]) -> tuple[str, Path, Path]:
    total = 0
    for category, count in (("adversarial", 4), ("popular", 3), ("random", 5)):
        labels = []
        for n in range(count):
            name = f"COCO_val2014_{total:012d}.jpg"
            words, right = "", ""
            while right not in ("yes", "no"):
                words, right = ask_about(draw_scene(folder / "val2014" / name, rng), rng, "existence")
            ask(total, name, words + suffix, category=category)
            labels.append({"question_id": n + 1, "image": name, "text": words, "label": right})
            total += 1
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", labels)
    return "llava_pope_test.jsonl", folder / "val2014", folder / "coco"


def make_mme(folder: Path, rng: Random, suffix: str, ask: Callable[..., None]) -> tuple[str, Path, Path]:
    release = folder / "MME_Benchmark_release_version"
    for number, subtask in enumerate(MME.subtasks):
        texts, images = release / subtask, release / subtask
        if number % 2:  # both layouts occur in the release
            texts, images = texts / "questions_answers_YN", images / "images"
        texts.mkdir(parents=True)
        scene = draw_scene(images / "0001.png", rng)
        color = scene.objects[0].color
        other = next(c for c in ("red", "blue") if c != color)
        is_there = any(item.color == other for item in scene.objects)
        space = "  " if number % 3 == 2 else " "  # some files of the release have two spaces
        lines = []
        for name, right in ((color, "Yes"), (other, "Yes" if is_there else "No")):
            words = f"Is there a {name} shape?"
            lines.append(f"{words}{space}Please answer yes or no.\t{right}\n")
            image = str((images / "0001.png").relative_to(release))
            ask(f"{subtask}/0001.png", image, words + suffix, category=subtask)
        (texts / "0001.txt").write_text("".join(lines), encoding="utf-8")
    return "llava_mme.jsonl", release, release


def make_mmvet(folder: Path, rng: Random, suffix: str, ask: Callable[..., None]) -> tuple[str, Path, Path]:
    truth = {}
    for n in range(5):
        name = f"v1_{n}.png"
        words, right = ask_about(draw_scene(folder / "images" / name, rng), rng)
        ask(n, name, words)
        capability = [["rec"], ["ocr", "spat"], ["rec", "know", "gen"]][n % 3]
        truth[f"v1_{n}"] = {"imagename": name, "question": words, "answer": right, "capability": capability}
    return "llava-mm-vet.jsonl", folder / "images", write_json(folder / "mm-vet.json", truth)


MAKERS = {
    "vqav2": make_vqav2,
    "gqa": make_gqa,
    "textvqa": make_textvqa,
    "pope": make_pope,
    "mme": make_mme,
    "mmvet": make_mmvet,
}
"""Name -> function that asks questions, and gives the question file's name, the folder of images, the annotations."""
