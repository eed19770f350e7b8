"""README and docs/: links lead somewhere, commands and options exist, and what can be executed is executed.

The shell blocks of three pages run as written, unless the paragraph before one says NOT_RUN and why. Such a block runs
with launchers that only record their arguments; each call is then read by the real launcher's parser, and its recipe is
resolved.
"""

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from mllm import checkpoint
from mllm.cli.main import VERBS, main
from mllm.cli.training import FORMATS
from mllm.config import MLLMConfig
from mllm.sequence import trained_grids
from mllm.vocabulary import load_text_tokenizer
from tests.forked_python import forked_python
from tests.train.conftest import SMALL as SMALL_TOKENIZER
from tests.train.launching import ROOT, environment, free_port, losses, run_program, serving
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok
from train.data.formats import LAYOUTS
from train.data.make_samples import main as make_samples
from train.recipe import RECIPES, MLLMData, MLLMRecipe, TextTokenizerRecipe, TokenizerRecipe, read_yaml, resolve

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
README, DATA, TRAINING, TOKENIZER = "README.md", "docs/data.md", "docs/training.md", "docs/tokenizer_training.md"
NOT_RUN = "Not run by the tests"
FENCE = re.compile(r"^```([\w.]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
QUICK = ("draw", "ask", "edit", "tokenize")
RECIPE_TYPES = {"mllm": MLLMRecipe, "image_tokenizer": TokenizerRecipe, "text_tokenizer": TextTokenizerRecipe}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    before: str  # the paragraph in front of it

    @property
    def is_shell(self) -> bool:
        return self.language in ("", "sh")

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of `mllm` in each line that calls it."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.is_shell else []
        words = [shlex.split(line, comments=True) for line in lines if re.match(r"\s*(.*-m )?mllm ", line)]
        return [line[line.index("mllm") + 1 :] for line in words]


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    text = read_page(page)
    found = list(FENCE.finditer(text))
    assert text.count("```") == 2 * len(found), f"a block of {page} is not closed, or not at the margin"
    return [Block(match[1], match[2], text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]) for match in found]


# ---- all pages ----


def test_links_lead_somewhere_and_named_files_exist() -> None:
    for page in PAGES:
        for path, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", read_page(page)):
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), f"{page}: {path}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor
        for path in re.findall(
            r"\b(?:mllm|train|tokenizer|tests|scripts|demo)/[\w/]+\.(?:py|sh|yaml)\b", read_page(page)
        ):
            assert (ROOT / path).is_file(), f"{page}: {path}"
    folders = re.findall(r"^\| `([\w/]+)` \|", read_page(README), flags=re.MULTILINE)
    assert folders and all((ROOT / folder).is_dir() for folder in folders)


def test_commands_of_all_pages_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option is in the help of its command; each shipped recipe takes the keys it is given."""
    for page in PAGES:
        for words in (words for block in blocks_of(page) for words in block.commands):
            options = [word for word in words if word.startswith("--")]
            names = words[: next((i for i, word in enumerate(words) if word.startswith("-")), len(words))]
            if names[0] != "train":
                with pytest.raises(SystemExit) as stopped:
                    main([*names, "--help"])
                explained = capsys.readouterr().out
                assert stopped.value.code == 0 and all(option in explained for option in options), f"{page}: {words}"
            elif (file := (RECIPES / names[1]).with_suffix(".yaml")).is_file():
                values = read_yaml(file)
                resolve(RECIPE_TYPES[values["kind"]], values, words[2:])
            else:
                assert names[1] == "mixed.yaml", f"{page}: {words}"


def test_what_the_pages_list_is_what_there_is() -> None:
    """Verbs and targets, formats of records (read in tests/train/data/test_raw_files.py), keys of recipes; what is not
    run lacks machines."""
    blocks = blocks_of(README)
    assert {words[0] for block in blocks for words in block.commands} == set(VERBS)
    targets = {name for block in blocks for name in re.findall(r"^make (\w+)", block.text, flags=re.MULTILINE)}
    assert targets == {"demo", "test"} and all(f"\n{name}:" in read_page("Makefile") for name in targets)

    shown = {block.language.partition(".")[0] for block in blocks_of(DATA)} - {"sh", "yaml"}
    assert tuple(LAYOUTS) == FORMATS and shown == set(LAYOUTS)
    assert all(f"**{name}**" in read_page(DATA) for name in LAYOUTS)
    table = read_page(DATA).partition("| key of `data`")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]*) ?\|", table, flags=re.MULTILINE)
    names = ["shards", "root", "prompt_dropout", "describe_share", "buffer_size", "packing_buffers", "seed"]
    assert [name for name, _ in rows] == names
    assert all(getattr(MLLMData(), name) == float(value) for name, value in rows if value)

    (text,) = (block.text for block in blocks_of(TRAINING) if not block.is_shell)
    vocabulary = {"new_line_id": 10, "first_row_size_id": 11, "first_column_size_id": 21}
    config = MLLMConfig(image_size=256, patch_size=32, **yaml.safe_load(text)["model"], **vocabulary)
    assert trained_grids(config) == [(8, 8), (8, 10), (10, 8)]
    not_run = [(page, block.text) for page in PAGES for block in blocks_of(page) if NOT_RUN in block.before]
    assert [page for page, _ in not_run] == [TOKENIZER, TRAINING]
    assert all(re.search(r"scripts/train_(stage2|tokenizer)\.sh", text.splitlines()[0]) for _, text in not_run)


def test_quick_commands_and_python_of_two_pages_run(
    random_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, because one reads what another wrote; on the small model, to be quick. It has one size, so that
    images are extended by the bundled one."""
    bundled = checkpoint.BUNDLED
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "BUNDLED", random_model_folder)
    for block in [*blocks_of(README), *blocks_of("docs/transformers.md")]:
        for words in (words for words in block.commands if words[0] in QUICK):
            model = bundled if "--extend" in words else random_model_folder
            assert main([*words, "--model", str(model)]) == 0, capsys.readouterr().err
        if block.language == "python":
            exec(compile(block.text.replace("mllm/assets/tiny", str(random_model_folder)), README, "exec"), {})


# ---- pages that are executed ----


@pytest.mark.slow
def test_data_page_runs_as_written(tmp_path: Path) -> None:
    """In an empty folder, with the toolkit's own model."""
    blocks = blocks_of(DATA)
    (recipe,) = (block.text for block in blocks if block.language == "yaml")
    (tmp_path / "mixed.yaml").write_text(recipe)
    with lay_out(tmp_path) as surroundings:
        run_blocks(blocks, tmp_path, surroundings)
    assert json.loads((tmp_path / "runs/data/shared/manifest.json").read_text())["records"] == 10
    assert list((tmp_path / "runs/data/dialogues/samples").glob("*.png"))
    paddings = losses(tmp_path / "runs/mixed", "padding_share").values()
    assert len(paddings) == 2 and max(paddings) < 0.05
    assert (tmp_path / "runs/mixed/final/config.json").is_file()


@pytest.mark.slow
def test_tokenizer_page_runs_as_written(tmp_path: Path) -> None:
    for name in ("n02", "n01"):
        (tmp_path / "data" / "imagenet" / "val" / name).mkdir(parents=True)
    open_clip = 'IMAGENET_CLASSNAMES = ["tench", "goldfish"]\n'  # not installed in CI
    (tmp_path / "open_clip.py").write_text(open_clip)
    with lay_out(tmp_path) as surroundings:
        run_blocks(blocks_of(TOKENIZER), tmp_path, surroundings)
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/try/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert losses(tmp_path / "runs/try_captions", "contrastive").keys() == {1, 2}
    classes = json.loads((tmp_path / "data/imagenet/classes.json").read_text())
    assert classes == {"n01": "tench", "n02": "goldfish"}


RAW = {"captions": "captions", "captions_held_out": "folder", "documents": "obelics", "text": "text"}
RAW |= {**dict.fromkeys(("questions", "questions_held_out", "edits"), "chat"), "dialogues": "obelics"}
"""Folder that the page names, and what `make_samples` calls records like its."""
LOOP = {"max_steps": 2, "warmup_steps": 1, "logging_steps": 1, "save_steps": 2}
SMALL_RUN = {"length": 320, "rows": 1, "batches_per_step": 2} | {f"trainer.{name}": n for name, n in LOOP.items()}
MEASURED = {"validation.batches": 1, "trainer.eval_steps": 2}
SMALLER = {
    "stage1_projector": SMALL_RUN | MEASURED | {"model.embedder_width": 24, "model.embedder_heads": 2},
    "stage2_pretrain": SMALL_RUN | MEASURED,
    "stage3_sft": SMALL_RUN | MEASURED,
    "lora": SMALL_RUN | {"adapter.rank": 4},
}


@pytest.mark.slow
def test_training_page_runs_as_written(tmp_path: Path) -> None:
    """From raw data to a served model; only the recipes' sizes are smaller."""
    torch.manual_seed(0)
    UniTok(dataclasses.replace(UniTokConfig.tiny(), **SMALL_TOKENIZER)).save_pretrained(tmp_path / "unitok")
    assert main(["convert", "export-unitok", f"{tmp_path}/unitok", f"{tmp_path}/unitok_tokenizer.pth"]) == 0
    llama = tmp_path / "checkpoints" / "llama-2-7b"  # as people download it: config, weights, tokenizer.model
    vocabulary = ["--vocab_size", "400", "--dialogues", "400"]
    assert main(["train", "tiny_text", "--output", str(llama / "tokenizer.model"), *vocabulary]) == 0
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 512, "vocab_size": len(load_text_tokenizer(llama / "tokenizer.model"))}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(llama)
    assert make_samples([str(tmp_path / "samples"), "--count", "10", "--size", "32"]) == 0
    (tmp_path / "raw").mkdir()
    for name, sample in RAW.items():
        (tmp_path / "raw" / name).symlink_to(tmp_path / "samples" / sample)
    with lay_out(tmp_path, recipes=SMALLER) as surroundings:
        run_blocks(blocks_of(TRAINING), tmp_path, {**surroundings, "MASTER_PORT": str(free_port())})
    for stage in ("stage1", "stage2", "stage3", "lora"):
        assert losses(tmp_path / "runs" / stage).keys() == {1, 2}
    assert (tmp_path / "runs" / "lora" / "model" / "model.safetensors").is_file()
    assert Image.open(tmp_path / "drawn.png").size == (32, 32)


# ---- executing blocks ----


@contextmanager
def lay_out(folder: Path, *, recipes: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[dict[str, str]]:
    """Make a folder in which the page's commands find the project; gives the environment to run them in.

    Args:
        recipes: by name, keys of shipped recipes that are smaller here, with dots between sections.
    """
    for name in ("scripts", "mllm", "tokenizer", "demo"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "train" / "recipes").mkdir(parents=True)
    for path in (ROOT / "train").iterdir():
        if path.name not in ("recipes", "__pycache__"):
            (folder / "train" / path.name).symlink_to(path)
    for path in RECIPES.glob("*.json"):
        (folder / "train" / "recipes" / path.name).symlink_to(path)
    for path in RECIPES.glob("*.yaml"):
        values = read_yaml(path)
        for key, value in (recipes or {}).get(path.stem, {}).items():
            *sections, last = key.split(".")
            section = values
            for name in sections:
                section = section[name]
            section[last] = value
        (folder / "train" / "recipes" / path.name).write_text(yaml.safe_dump(values))
    surroundings = {**environment(), "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "NPROC": "1"}
    with forked_python(folder / "programs", surroundings) as python:
        yield with_programs(folder / "programs", {"mllm": f'exec {python} -m mllm "$@"'}, surroundings)


def with_programs(folder: Path, programs: Mapping[str, str], surroundings: Mapping[str, str]) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {**surroundings, "PATH": f"{folder}:{surroundings['PATH']}"}


def run_blocks(blocks: list[Block], folder: Path, surroundings: dict[str, str]) -> None:
    for block in blocks:
        if NOT_RUN in block.before:
            check_unrun_block(block, folder)
        elif block.text.startswith("mllm demo"):
            with serving("bash", "-c", block.text, folder=folder, **surroundings):
                pass
        elif block.is_shell:
            run_shell(block, folder, surroundings)


def run_shell(block: Block, folder: Path, surroundings: Mapping[str, str]) -> None:
    """Run a block as it stands; the first command that fails ends it."""
    run_program("bash", "-euo", "pipefail", "-c", block.text, folder=folder, **surroundings)


LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "python")
RECORDER = """#!{python}
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + chr(10))"""
SLURM = {
    "scontrol": "echo node1; echo node2",
    "srun": 'exec "$@"',
    "sbatch": "SLURM_JOB_NODELIST='node[1-2]' SLURM_NNODES=2 SLURM_NODEID=1 exec bash \"$@\"",
}
"""What Slurm does with a job on the second of two nodes, as far as a script sees it."""


def check_unrun_block(block: Block, folder: Path) -> None:
    """Every command of the block reaches a launcher with options that it knows and a recipe that resolves."""
    calls = folder / "calls.jsonl"
    programs = dict.fromkeys(LAUNCHERS, RECORDER.format(python=sys.executable, calls=str(calls))) | SLURM
    run_shell(block, ROOT, with_programs(folder / "recorders", programs, environment()))
    called = [json.loads(line) for line in calls.read_text().splitlines()]
    commands = [line for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert len(called) == len(commands), f"a command of this block reaches no launcher:\n{block.text}"
    for words in called:
        check_training_call(words)


def check_training_call(words: list[str]) -> None:
    """The arguments of a launcher, read by its own parser; then the recipe with its overrides."""
    from accelerate.commands.launch import launch_command_parser
    from deepspeed.launcher.runner import fetch_hostfile
    from deepspeed.launcher.runner import parse_args as parse_deepspeed
    from torch.distributed.run import parse_args as parse_torchrun

    match words:
        case ["torchrun", *rest] | ["python", "-m", "torch.distributed.run", *rest]:
            known = parse_torchrun(rest)
            program, options = known.training_script, known.training_script_args
        case ["deepspeed", *rest]:
            known = parse_deepspeed(rest)
            assert known.hostfile.startswith("/job") or fetch_hostfile(str(ROOT / known.hostfile))
            program, options = known.user_script, known.user_args
        case ["accelerate", "launch", *rest]:
            known = launch_command_parser().parse_args(rest)
            program, options = known.training_script, known.training_script_args
        case _:
            raise AssertionError(f"no launcher of training: {words}")
    assert program == "train.run" and known.module
    values = read_yaml((RECIPES / options[0]).with_suffix(".yaml"))
    resolve(RECIPE_TYPES[values["kind"]], values, options[1:])
