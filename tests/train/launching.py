"""Changed recipes, started as a person starts them, in processes of their own; what they logged and saved."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from mllm.model import MLLMForConditionalGeneration
from train.recipe import MLLMRecipe, as_yaml

ROOT = Path(__file__).resolve().parents[2]


def changed(recipe: MLLMRecipe, trainer: dict[str, object] | None = None, **changes: object) -> MLLMRecipe:
    """The recipe with other fields, and other ones of its section `trainer`."""
    return dataclasses.replace(recipe, trainer={**recipe.trainer, **(trainer or {})}, **changes)


def write_recipe(recipe: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_yaml(recipe))
    return path


def command(launcher: str | None, recipe: Path, *, processes: int = 2, module: str = "train.run") -> list[str]:
    """The words that start a recipe; no launcher is one plain process."""
    folder, port = Path(sys.executable).parent, str(free_port())
    machines, plain = ["--multi_gpu", "--num_machines", "1"], ["--mixed_precision", "no", "--dynamo_backend", "no"]
    words = {
        None: [sys.executable, "-m"],
        "torchrun": [f"{folder}/torchrun", "--nproc_per_node", f"{processes}", "--master_port", port, "-m"],
        "deepspeed": [f"{folder}/deepspeed", "--num_accelerators", f"{processes}", "--master_port", port, "--module"],
        "accelerate": [f"{folder}/accelerate", "launch", *machines, "--num_processes", f"{processes}", *plain]
        + ["--main_process_port", port, "-m"],
    }
    return [*words[launcher], *module.split(), str(recipe)]


def environment() -> dict[str, str]:
    """Small, quiet and without a network; the launchers find this source tree and this Python first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {**os.environ, **quiet, "PATH": path, "PYTHONPATH": str(ROOT)}


def run_program(*words: object, folder: Path = ROOT, **variables: str) -> str:
    """Run to the end; what was printed."""
    options: dict[str, Any] = {"cwd": folder, "env": {**environment(), **variables}, "timeout": 3000}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words} failed:\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def launch(launcher: str | None, recipe: Path, *more: str, **how: Any) -> None:
    run_program(*command(launcher, recipe, **how), *more)


def kill_at(words: list[str], log: Path, *, lines: int) -> None:
    """Start a run and kill it when its log has so many lines, with everything it started, workers first."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process, end = subprocess.Popen(words, cwd=ROOT, env=environment(), **quiet), time.monotonic() + 300
    while not (log.is_file() and len(log.read_text().splitlines()) >= lines):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"{log} had no {lines} lines in 300 seconds"
        time.sleep(0.002)
    family = psutil.Process(process.pid).children(recursive=True)
    for member in [*family, process]:
        member.kill()
    process.wait()
    psutil.wait_procs(family)


def scaled_forward(factors: dict[int, float]) -> Callable[..., Any]:
    """The model's forward with its loss times these factors, by the number of the call (1, 2, ...)."""
    forward, calls = MLLMForConditionalGeneration.forward, count(1)

    def scaled(self: MLLMForConditionalGeneration, *args: object, **kwargs: object) -> Any:
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * factors.get(next(calls), 1.0)
        return output

    return scaled


@contextmanager
def serving(*words: str, folder: Path = ROOT, **variables: str) -> Iterator[str]:
    """A program that serves the demo until the block ends; gives its address when it answers."""
    port, end = free_port(), time.monotonic() + 180
    address, surroundings = f"http://127.0.0.1:{port}", {**environment(), "GRADIO_SERVER_PORT": str(port), **variables}
    server = subprocess.Popen(words, cwd=folder, env=surroundings, start_new_session=True)
    try:
        while not answers(address):
            assert server.poll() is None and time.monotonic() < end, f"{words} does not serve"
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
        return answer.status == 200
    return False


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    """A number of the log by step."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model or adapter in a folder."""
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
