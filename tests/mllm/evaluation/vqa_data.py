"""Small data sets in the official layout of each benchmark, made of images of the synthetic world.

File names, field names and prompts are those of the published sets and of LLaVA's question files.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from mllm.evaluation.vqa import MME
from mllm.world.dialogue import QUESTION_WEIGHTS, answer, propose_question, say_question
from mllm.world.render import render
from mllm.world.scene import Scene, random_scene_for
from tests.mllm.evaluation.builders import write_json, write_jsonl

SHORT = "\nAnswer the question using a single word or phrase."


@dataclass
class Data:
    folder: Path
    rng: Random
    suffix: str  # of prompts
    images: Path
    questions: Path = Path()
    annotations: Path = Path()
    asked: list[dict] = field(default_factory=list)

    def ask(self, question_id: int | str, image: str, kind: str | None = None, **fields: str) -> tuple[str, str]:
        """Draw an image and ask about it; gives the question in words, and the right answer."""
        words, right = ask_about(draw_scene(self.images / image, self.rng), self.rng, kind)
        self.add(question_id, image, words + fields.pop("suffix", self.suffix), **fields)
        return words, right

    def add(self, question_id: int | str, image: str, text: str, **fields: str) -> None:
        self.asked.append({"question_id": question_id, "image": image, "text": text, "category": "default"} | fields)


def make_data(name: str, folder: Path, *, is_instructed: bool = True) -> Data:
    """The data set of one benchmark.

    Args:
        is_instructed: prompts end with LLaVA's instruction; the bundled model does not know its words.
    """
    file, images, make = MAKERS[name]
    data = Data(folder, Random(name), SHORT if is_instructed else "", folder / images)
    data.annotations = make(data)
    data.questions = write_jsonl(folder / file, data.asked)
    return data


def draw_scene(path: Path, rng: Random) -> Scene:
    """An image of the test split in a file."""
    scene = random_scene_for("test", rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    render(scene, 128).save(path)
    return scene


def ask_about(scene: Scene, rng: Random, kind: str | None = None) -> tuple[str, str]:
    """A question in words, and its right answer."""
    question = propose_question(scene, rng, kind_weights={kind: 1.0} if kind else QUESTION_WEIGHTS)
    return say_question(question, rng), answer(question, scene) or ""


def make_vqav2(data: Data) -> Path:
    annotations = []
    for n in range(7):
        _, right = data.ask(1000 * n + 2, f"COCO_val2014_{n:012d}.jpg")
        kind = "yes/no" if right in ("yes", "no") else "number" if right.isdigit() else "other"
        said = [{"answer": text, "answer_id": number} for number, text in enumerate([right] * 7 + ["red"] * 3, start=1)]
        annotations.append({"answers": said, "image_id": n, "answer_type": kind, "question_id": 1000 * n + 2})
    return write_json(data.folder / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": annotations})


def make_gqa(data: Data) -> Path:
    gold = {}
    for n in range(7):
        words, right = data.ask(f"2010{n}", f"n{n}.jpg")
        types = {"structural": "verify" if right in ("yes", "no") else "query"}
        gold[f"2010{n}"] = {"imageId": f"n{n}", "question": words, "answer": right, "isBalanced": True, "types": types}
    return write_json(data.folder / "data" / "testdev_balanced_questions.json", gold)


def make_textvqa(data: Data) -> Path:
    records = []
    for n in range(4):
        for kind in ("color", "count"):  # two questions share the id of their image
            name, suffix = f"{n:04x}ab", f"\nReference OCR token: red, STOP, 7{SHORT}"
            words, right = data.ask(name, f"{name}.jpg", kind, suffix=suffix)
            records.append({"question": words, "image_id": name, "answers": [right] * 7 + ["2"] * 3})
    return write_json(data.folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": records})


def make_pope(data: Data) -> Path:
    for category, count in (("adversarial", 4), ("popular", 3), ("random", 5)):
        labels = []
        for n in range(count):
            name = f"COCO_val2014_{len(data.asked):012d}.jpg"
            words, right = data.ask(len(data.asked), name, "existence", category=category)
            labels.append({"question_id": n + 1, "image": name, "text": words, "label": right})
        write_jsonl(data.folder / "coco" / f"coco_pope_{category}.json", labels)
    return data.folder / "coco"


def make_mme(data: Data) -> Path:
    for number, subtask in enumerate(MME.subtasks):
        texts = images = data.images / subtask
        if number % 2:  # both layouts occur in the release
            texts, images = texts / "questions_answers_YN", images / "images"
        texts.mkdir(parents=True)
        colors = {item.color for item in draw_scene(images / "0001.png", data.rng).objects}
        space = " " * (1 + number % 2)
        lines = []
        for color in (min(colors), "red" if min(colors) != "red" else "blue"):
            words, image = f"Is there a {color} shape?", str((images / "0001.png").relative_to(data.images))
            lines.append(f"{words}{space}Please answer yes or no.\t{'Yes' if color in colors else 'No'}\n")
            data.add(f"{subtask}/0001.png", image, words + data.suffix, category=subtask)
        (texts / "0001.txt").write_text("".join(lines), encoding="utf-8")
    return data.images


def make_mmvet(data: Data) -> Path:
    truth = {}
    for n in range(5):
        words, right = data.ask(n, f"v1_{n}.png", suffix="")
        capability = [["rec"], ["ocr", "spat"], ["rec", "know", "gen"]][n % 3]
        truth[f"v1_{n}"] = {"imagename": f"v1_{n}.png", "question": words, "answer": right, "capability": capability}
    return write_json(data.folder / "mm-vet.json", truth)


MAKERS: dict[str, tuple[str, str, Callable[[Data], Path]]] = {
    "vqav2": ("llava_vqav2_mscoco_val2014.jsonl", "val2014", make_vqav2),
    "gqa": ("llava_gqa_testdev_balanced.jsonl", "data/images", make_gqa),
    "textvqa": ("llava_textvqa_val_v051_ocr.jsonl", "train_images", make_textvqa),
    "pope": ("llava_pope_test.jsonl", "val2014", make_pope),
    "mme": ("llava_mme.jsonl", "MME_Benchmark_release_version", make_mme),
    "mmvet": ("llava-mm-vet.jsonl", "images", make_mmvet),
}
"""Name -> question file, folder of images, and what draws, asks and gives the annotations."""
