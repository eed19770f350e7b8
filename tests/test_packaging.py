"""What is promised about installing: metadata, pins, package data, the two commands and the licence."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", line)
    assert match, line
    return match[0].lower().replace("_", "-")


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {requirement_name(line): line for line in lines if line and not line.startswith("#")}


def direct_dependencies() -> set[str]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {requirement_name(line) for line in lines} - {project["name"]}


def test_every_direct_dependency_is_pinned_and_nothing_else() -> None:
    assert set(pins()) == direct_dependencies()
    assert all("==" in line for line in pins().values())
    assert pins()["torch"] == "torch==2.13.0"  # a plain torch brings several GB that nobody needs here


def test_the_tested_versions_lie_in_the_ranges() -> None:
    from packaging.requirements import Requirement

    for line in PROJECT["project"]["dependencies"]:
        requirement = Requirement(line)
        pinned = Requirement(pins()[requirement_name(line)])
        assert requirement.specifier.contains(next(iter(pinned.specifier)).version), line


def test_the_console_command_leads_to_main() -> None:
    from mllm.cli.main import main

    assert PROJECT["project"]["scripts"] == {"mllm": "mllm.cli.main:main"}
    assert callable(main)


def test_every_package_and_its_data_is_installed() -> None:
    """That every folder is a package is a matter of tests/test_architecture.py."""
    setuptools = PROJECT["tool"]["setuptools"]
    names = {"mllm", "tokenizer", "train", "demo"}
    assert set(setuptools["packages"]["find"]["include"]) == names | {f"{name}.*" for name in names}
    for package in names:
        patterns = setuptools["package-data"].get(package, [])
        data = {path for pattern in patterns for path in (ROOT / package).glob(pattern) if path.is_file()}
        files = (path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
        assert set(files) <= data, f"not installed with {package}: {sorted(set(files) - data)[:3]}"


def test_licence_and_changelog_are_there() -> None:
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "make test" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin/python -m" in done.stdout
