"""The README is executed: its commands exist, its quick ones run, its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from mllm.cli.main import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind in ("", "sh") for line in block.splitlines()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES if line.startswith("mllm ")]
QUICK = ("draw", "ask", "edit", "tokenize")


def test_readme_shows_every_verb() -> None:
    assert {words[1] for words in COMMANDS} == set(VERBS)


def test_make_targets_of_the_readme_exist() -> None:
    targets = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)


def test_quick_commands_run(
    random_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order of the README, because one reads what another wrote; on the small model, to be quick."""
    monkeypatch.chdir(tmp_path)
    for words in COMMANDS:
        if words[1] in QUICK:
            assert main([*words[1:], "--model", str(random_model_folder)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[1] not in QUICK], ids=" ".join)
def test_options_of_the_other_commands_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before_options = list(takewhile(lambda word: not word.startswith("-"), words[1:]))
    try:
        main([*before_options, "--help"])
    except SystemExit:
        pass
    explained = capsys.readouterr().out
    if words[1] != "train":  # whose options are the keys of the recipe
        assert all(word in explained for word in words if word.startswith("--"))


def test_python_of_the_readme_runs(random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm import checkpoint

    monkeypatch.setattr(checkpoint, "BUNDLED", random_model_folder)
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})


def test_links_and_folders_of_the_readme_exist() -> None:
    paths = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"^\| `([\w/]+)` \|", README, flags=re.MULTILINE)
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, missing
