"""Pages whose commands are executed: their blocks, and a folder laid out like the project in which they run as written.

A shell block runs, unless the paragraph before it says `NOT_RUN` and why. Such a block is run too, but with launchers
that only write down what they are told; each call is then held against the real launcher's parser and the recipe.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.train.launching import ROOT, environment
from train.recipe import MLLMRecipe, TokenizerRecipe, find_recipe, read_yaml, resolve

NOT_RUN = "Not run by the tests"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "python")
RECORDER = """#!{python}
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + chr(10))
"""
SLURM = {
    "scontrol": "echo node1; echo node2",
    "srun": 'exec "$@"',
    "sbatch": "SLURM_JOB_NODELIST='node[1-2]' SLURM_NNODES=2 SLURM_NODEID=1 exec bash \"$@\"",
}
"""What Slurm does with a job on the second of two nodes, as far as a script sees it."""


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
    def runs(self) -> bool:
        return NOT_RUN not in self.before


def blocks_of(page: str) -> list[Block]:
    """All blocks of docs/PAGE in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    assert text.count("```") == 2 * len(found), f"a block of {page} is not closed, or not at the margin"
    return [Block(match[1], match[2], text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]) for match in found]


def lay_out(folder: Path, *, recipes: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Make a folder in which the page's commands find the project; returns the environment to run them in.

    Args:
        recipes: by name, keys of shipped recipes that are smaller here, with dots between sections.
    """
    for name in ("scripts", "mllm", "tokenizer", "demo"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "train" / "recipes").mkdir(parents=True)
    for path in (ROOT / "train").iterdir():
        if path.name not in ("recipes", "__pycache__"):
            (folder / "train" / path.name).symlink_to(path)
    for path in (ROOT / "train" / "recipes").iterdir():
        values = read_yaml(path)
        for key, value in (recipes or {}).get(path.stem, {}).items():
            *sections, last = key.split(".")
            section = values
            for name in sections:
                section = section[name]
            section[last] = value
        (folder / "train" / "recipes" / path.name).write_text(yaml.safe_dump(values))
    programs = folder / "programs"
    write_program(programs / "mllm", f'#!/bin/sh\nexec {sys.executable} -m mllm "$@"\n')
    surroundings = environment()
    return {**surroundings, "PATH": f"{programs}:{surroundings['PATH']}", "PYTHONPATH": str(folder), "NPROC": "1"}


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run_block(block: Block, folder: Path, surroundings: Mapping[str, str]) -> str:
    """Run a block as it stands; the first command that fails ends it. Returns what was printed."""
    words = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(words, cwd=folder, env=dict(surroundings), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{block.text}failed:\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout + done.stderr


def check_unrun_block(block: Block, folder: Path) -> None:
    """Every command of the block reaches a launcher with options that it knows and a recipe that resolves."""
    calls, programs = folder / "calls.jsonl", folder / "recorders"
    for name in LAUNCHERS:
        write_program(programs / name, RECORDER.format(python=sys.executable, calls=str(calls)))
    for name, line in SLURM.items():
        write_program(programs / name, f"#!/bin/sh\n{line}\n")
    surroundings = environment()
    run_block(block, ROOT, {**surroundings, "PATH": f"{programs}:{surroundings['PATH']}"})
    called = [json.loads(line) for line in calls.read_text().splitlines()]
    commands = [line for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert len(called) == len(commands), f"a command of this block reaches no launcher:\n{block.text}"
    for words in called:
        check_training_call(words)


def check_training_call(words: list[str]) -> None:
    """What a launcher was told, read by its own parser; then the recipe with its overrides."""
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
    values = read_yaml(find_recipe(options[0]))
    kinds: dict[str, type[MLLMRecipe] | type[TokenizerRecipe]] = {
        "mllm": MLLMRecipe,
        "image_tokenizer": TokenizerRecipe,
    }
    resolve(kinds[values["kind"]], values, options[1:])
