"""Start a training recipe as a person does, in processes of its own, and read what it logged."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from train.recipe import MLLMRecipe, as_yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("torchrun", "deepspeed", "accelerate")


def write_recipe(recipe: MLLMRecipe, path: Path) -> Path:
    """The recipe as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_yaml(recipe))
    return path


def command(launcher: str | None, recipe: Path, *, processes: int = 2) -> list[str]:
    """The words that start a recipe; no launcher is one plain process."""
    folder, port = Path(sys.executable).parent, str(free_port())
    words = ["train.run", str(recipe)]
    match launcher:
        case None:
            return [sys.executable, "-m", *words]
        case "torchrun":
            return [str(folder / "torchrun"), "--nproc_per_node", str(processes), "--master_port", port, "-m", *words]
        case "deepspeed":
            count = ["--num_accelerators", str(processes)]
            return [str(folder / "deepspeed"), *count, "--master_port", port, "--module", *words]
        case "accelerate":
            count = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
            plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
            return [str(folder / "accelerate"), "launch", *count, *plain, "-m", *words]
        case _:
            raise ValueError(launcher)


def environment() -> dict[str, str]:
    """Small, quiet and without a network; the launchers find this source tree and this Python first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }


def launch(launcher: str | None, recipe: Path, *, processes: int = 2) -> str:
    """Run to the end; returns what was printed."""
    words = command(launcher, recipe, processes=processes)
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(words)} failed:\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout + done.stderr


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    """A number of the log by step."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
