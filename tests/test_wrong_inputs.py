"""500 generated wrong inputs: one sentence, exit status 2 (in Python a ValueError), no file touched.

Some mutations leave an input valid; it must then give a result. The doors are `prepare`, recipes, evaluation files and
the Python facade; options of the command line are in wrong_commands.txt.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.pipeline import Pipeline
from tests.train.data.test_raw_files import PAGE, samples_of, write_sample
from train.recipe import RECIPES, read_yaml

WEIRD: tuple[Any, ...] = (None, 5, -1, 1.5, True, "", " ", "x", [], {}, [None], [[]], {"a": None}, "\ud83d", "a" * 9000)
"""Values that a field may hold by mistake."""
BYTES = (b"", b"\xff\xfe", b"\0" * 600, b"[" * 20_000, b"caf\xe9\n", b'{"a":' * 20_000, b"{}\n", b"[1]\n")
"""Contents that a file may have by mistake."""
UNTRAINABLE = Path(__file__).with_name("untrainable.txt")
"""Changes of a recipe that fit it and still cannot be trained; TEXT, MODEL: fields of the sections there."""


class Door:
    """Tries inputs and keeps what went wrong."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd, self.before = capfd, contents()
        self.num_refused, self.num_accepted, self.failures = 0, 0, list[str]()

    def run(self, words: list[str], what: str = "", *, may_be_right: bool = False) -> None:
        """A command that must be refused."""
        self.capfd.readouterr()
        try:
            code: object = main(words)
        except SystemExit as left:
            code = left.code
        except BaseException as error:  # a traceback
            code = f"{type(error).__name__}: {error}"
        err = self.capfd.readouterr().err
        said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("mllm: ")]
        is_sentence = len(said) == 1 and "Traceback" not in err and "mllm: unexpected" not in err and len(said[0]) < 900
        if code == 2 and is_sentence:
            self.num_refused += 1
        elif code == 0 and may_be_right:
            self.num_accepted += 1
        else:
            self.failures.append(f"{' '.join(words)[:150]!a} {what}: {code} {err[-400:]}")

    def call(self, function: Callable[..., object], *values: Any, **named: Any) -> None:
        """A call that must raise ValueError (or FileNotFoundError) with a sentence."""
        try:
            found: object = function(*values, **named)
        except Exception as error:
            found, is_right = error, isinstance(error, ValueError | FileNotFoundError)
            if is_right and len(str(error)) > 10 and "\n" not in str(error):
                self.num_refused += 1
                return
        self.failures.append(f"{function.__name__}{values!r:.200} {named}: {found!r:.400}")

    def finish(self, least: int) -> None:
        assert not self.failures, f"{len(self.failures)} failures\n" + "\n".join(self.failures[:60])
        assert contents() == self.before, "a file was changed"
        assert self.num_refused >= least


def contents() -> dict[Path, str]:
    files = (path for path in Path().rglob("*") if path.is_file() and path.parts[0] != "out")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Door:
    """In a working folder with files that are right and wrong."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("a.png")
    Image.new("RGB", (50, 40), "blue").save("b.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    Path("notes.txt").write_text('{"no": "image"}')
    Path("out").mkdir()
    return Door(capfd)


@pytest.fixture
def model(random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model folder that is loaded once."""
    name, loaded, load = str(random_model_folder), Pipeline.load(random_model_folder), Pipeline.load
    monkeypatch.setattr(
        Pipeline, "load", lambda path, **how: loaded if not how and str(path) == name else load(path, **how)
    )
    return name


# ---- prepare ----


def mutated(value: Any, rng: random.Random) -> Any:
    """A value with one part removed or replaced, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.25:
            return {name: inside for name, inside in value.items() if name != key}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], mutated(value[index], rng), *value[index + 1 :]]
    return rng.choice(WEIRD)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file that was cut, overwritten in places, or is another one."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(BYTES)
    if kind == 1:
        return content[: rng.randrange(len(content))]
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(8) + content[place + 8 :]


def wrong_sources(rng: random.Random) -> Iterator[Path]:
    """Samples of docs/data.md whose records or bytes are wrong."""
    images = {name: Path(name).read_bytes() for name in ("a.png", "b.png")}
    for number, (_, ending, text) in enumerate(samples_of(PAGE) * 6):
        path = Path(f"{number}.{ending}")
        if ending == "jsonl" and rng.random() < 0.75:
            record = mutated(json.loads(rng.choice(text.splitlines())), rng)
            path.write_text(json.dumps(record) + "\n")
        else:
            write_sample(path, text, images)
            path.write_bytes(damaged(path.read_bytes(), rng))
        yield path


@pytest.mark.slow
def test_prepare(door: Door, model: str) -> None:
    sources, to = list(wrong_sources(random.Random(0))), ["--out", "out/p", "--image-tokenizer", model]
    door.before = contents()
    for number, path in enumerate(sources):
        words = ["prepare", str(path), *to, "--size", "48x48", *(["--skip-broken"] if number % 2 else [])]
        door.run(words, f"{path.read_bytes()[:200]!r}", may_be_right=True)
        shutil.rmtree("out/p", ignore_errors=True)
    for words in ("--map x=y", "--map caption", "--map caption=nothing", "--format csv", "--size 5x5"):
        door.run(["prepare", str(sources[0]), *to, *words.split()])
    door.finish(60)
    assert door.num_accepted < 1.5 * door.num_refused


# ---- recipes ----


@pytest.mark.slow
def test_recipes(door: Door, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of the toolkit with a wrong value, wrong files and wrong overrides."""
    monkeypatch.setattr("train.trainer.train_mllm", lambda recipe: None)
    monkeypatch.setattr("train.tokenizer_trainer.TokenizerTrainer", lambda recipe: type("T", (), {"train": print}))
    path, rng = Path("out/recipe.yaml"), random.Random(0)
    for name, files in (("tiny", {"image_tokenizer": model, "text_tokenizer": model}), ("tiny_tokenizer", {})):
        values = {**read_yaml(RECIPES / f"{name}.yaml"), **files}
        for _ in range(100):
            path.write_text(json.dumps(mutated(values, rng)))
            door.run(["train", str(path), "--output", "out/run"], path.read_text(), may_be_right=True)
        for content in (*BYTES, b"kind: mllm\nkind: mllm\n", b"kind: x\noutput: y\n", b"- a", b"a: [", b"? [a]\n: b"):
            path.write_bytes(content)
            door.run(["train", str(path)], repr(content[:40]))
        path.write_text(json.dumps(values))
        for words in ("--steps", "steps 3", "--nothing 3", "--output=", "--data.x=[", "--trainer=5"):
            door.run(["train", str(path), *words.split()])
    door.finish(120)


@pytest.mark.slow
def test_recipes_that_fit_and_still_cannot_be_trained(door: Door, model: str) -> None:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {"text_config": text, "embedder_width": 16, "embedder_heads": 2, "head_layers": 1}
    files = {"output": "out/run", "image_tokenizer": f"{model}/image_tokenizer", "text_tokenizer": model}
    loop = {"trainer": {"max_steps": 1, "bf16": False, "dataloader_num_workers": 0}, "length": 320, "rows": 1}
    good = {"kind": "mllm", **files, **loop, "model": small, "data": {"episodes": 4}}
    path, changes = Path("out/recipe.yaml"), UNTRAINABLE.read_text(encoding="utf-8")
    benchmark = {"name": "pope", "questions": "none.jsonl", "annotations": "none", "images": "."}
    for word, fields_there in (("TEXT", text), ("MODEL", small), ("BENCHMARK", benchmark)):
        changes = changes.replace(word, json.dumps(fields_there)[1:-1])
    for change in changes.strip().splitlines():
        path.write_text(json.dumps({**good, **json.loads(change)}))
        door.run(["train", str(path)], change)
        shutil.rmtree("out/run", ignore_errors=True)
    door.finish(30)


# ---- evaluation files ----


@pytest.mark.slow
def test_evaluation_files(door: Door, model: str) -> None:
    rng = random.Random(1)
    asked = "Is there a dog?\nAnswer the question using a single word or phrase."
    question = {"question_id": 1, "image": "a.png", "text": asked, "category": "random"}
    answer = {"question_id": 1, "prompt": asked, "text": "Yes"}
    people = [{"answer": "yes"}] * 10
    gold: dict[str, Any] = {
        "vqav2": {"annotations": [{"question_id": 1, "answer_type": "yes/no", "answers": people}]},
        "gqa": {"1": {"answer": "yes", "isBalanced": True, "types": {"structural": "verify"}}},
        "textvqa": {"data": [{"image_id": "1", "question": "is there a dog?", "answers": ["yes"] * 10}]},
    }
    files = ["out/a.jsonl", "--questions", "out/q.jsonl", "--annotations", "out/gold.json"]
    for number in range(30):
        for name, truth in gold.items():
            wrong, which = [question, answer, truth], number % 3
            wrong[which] = mutated(wrong[which], rng)
            written = [json.dumps(value).encode() for value in wrong]
            if number >= 21:
                written[which] = damaged(written[which], rng)
            for file, content in zip(("q.jsonl", "a.jsonl", "gold.json"), written, strict=True):
                Path("out", file).write_bytes(content)
            door.run(["evaluate", "score", *files, "--benchmark", name], f"{written[which][:200]!r}", may_be_right=True)
    lines = (b"either/or\n", b"x" * 300 + b"\n", b'{"prompt": 5}\n', b'{"a": {"prompt": 5, "category": 3}}')
    for name in "genai-bench-527 t2i-compbench geneval mjhq-30k class-samples dpg-bench pope mme".split():
        for content in (*BYTES, *lines):
            Path("out/q.txt").write_bytes(content)
            words = ["--questions", "out/q.txt", "--output", "out/e", "--images", ".", "--model", model, "--limit", "1"]
            door.run(["evaluate", name, *words], repr(content[:30]), may_be_right=True)
            shutil.rmtree("out/e", ignore_errors=True)
    for content in (*BYTES, b'{"id": 1}\n', b'{"id": "a", "kind": "draw", "prompt": 5}\n'):
        Path("out/r.jsonl").write_bytes(content)
        door.run(["evaluate", "requests", "out/r.jsonl", "--model", model], repr(content[:30]))
    door.finish(120)


# ---- Python ----

WRONG_TEXTS = (None, 5, "", " ", [], b"x", "\ud83d", {"a": 1})
WRONG_IMAGES: tuple[Any, ...] = (
    *(None, 5, "", "none.png", "broken.png", "notes.txt", b"", b"x", [], [None], {}, Path("."), object()),
    *(np.zeros((0, 0, 3)), np.zeros(3), torch.zeros(2, 3, 4, 4), torch.zeros(5, 4, 6)),
    np.zeros((4, 4, 3), dtype=complex),
)
WRONG_SETTINGS: dict[str, tuple[Any, ...]] = {
    "seed": ("x", -1, 1.5, [], 2**70, True),
    "n": (0, -1, "x", 1.5, None),
    "best_of": (0, "x", None),
    "size": ((256,), "48x48", (0, 0), (48, 49), (1.5, 2), 48, [], (10**9, 10**9)),
    "plan": (5, "bananas", []),
    "temperature": ("x", -1, float("nan"), []),
    "top_k": (0, "x", 1.5),
    "top_p": (0, 2, "x"),
    "guidance": (0.5, "x", float("nan")),
    "resamples": (-1, "x"),
}
WRONG_CONTENTS = ("x", 5, [{"type": "video"}], [{"type": "image"}], [{"type": "image", "path": "none.png"}])
WRONG_MESSAGES: tuple[Any, ...] = (
    *("hi", None, 5, [], [5], [None], {}, [{}], [{"role": "user"}], [{"role": "x", "content": "x"}]),
    *([{"role": "user" if content != "x" else "assistant", "content": content}] for content in WRONG_CONTENTS),
)


@pytest.mark.slow
def test_the_facade(door: Door, model: str) -> None:
    pipeline, image = Pipeline.load(model), Image.new("RGB", (48, 48))

    def chat(messages: Any) -> list[Any]:
        return list(pipeline.chat(messages))

    for text in WRONG_TEXTS:
        door.call(pipeline.draw, text)
        door.call(pipeline.ask, image, text)
        door.call(pipeline.edit, image, text)
    for wrong in WRONG_IMAGES:
        door.call(pipeline.ask, wrong, "what?")
        door.call(pipeline.edit, wrong, "x")
    for name, values in WRONG_SETTINGS.items():
        for value in values:
            door.call(pipeline.draw, "a red circle", **{name: value})
    for messages in WRONG_MESSAGES:
        door.call(chat, messages)
    for pair in (([image], []), ([], ["x"]), ([image], [5]), ([5], ["x"]), (image, "x"), (None, None)):
        door.call(pipeline.score, *pair)
    door.finish(90)
