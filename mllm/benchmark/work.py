"""Pieces of work that `mllm benchmark` times, written so that earlier versions of the toolkit can do them, too.

The same functions run in this process, for this version, and in a process of their own whose imports come from the
worktree of another commit (`Before`). Each function prepares its work and returns what is timed; work that returns a
number has measured itself.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import count, cycle, permutations
from pathlib import Path
from typing import Any

Run = Callable[[], Any]
COLORS = ("red", "blue", "green", "orange")
PROMPTS = [f"a {first} circle to the left of a {second} square" for first, second in permutations(COLORS, 2)]


def seconds_of(run: Run, *, on_gpu: bool) -> float:
    """Processor seconds of this process, or seconds between events around the whole call on a GPU."""
    if on_gpu:
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        found = run()
        end.record()
        torch.cuda.synchronize()
        taken = begin.elapsed_time(end) / 1000
    else:
        start = time.process_time()
        found = run()
        taken = time.process_time() - start
    return found if isinstance(found, float) else taken


def load_pipeline(model: str | None, device: str, **options: Any) -> Any:
    from mllm.pipeline import Pipeline

    return Pipeline.load(model, device=device, **options)


def draw(*, model: str | None, device: str, batch: int, options: dict[str, Any] | None = None, **overrides: Any) -> Run:
    """`options` are of loading."""
    pipeline, numbers = load_pipeline(model, device, **options or {}), count()

    def run() -> Any:
        seed = next(numbers)  # every round another prompt: what was drawn before may be guessed
        return pipeline.draw(PROMPTS[seed % len(PROMPTS)], n=batch, seed=seed, **overrides)

    return run


def edit(*, model: str | None, device: str, images: list[str], **overrides: Any) -> Run:
    pipeline, shown = load_pipeline(model, device), cycle(map(read, images))
    return lambda: pipeline.edit(next(shown), "Make the circle black.", seed=1, **overrides)


def edit_codes(*, model: str | None, device: str, images: list[str], **overrides: Any) -> Run:
    """The codes of edited images alone: from the first pass that chose some to the last position of the image. Earlier
    versions have no engine; each of their positions is a pass as long as the others."""
    pipeline, shown = load_pipeline(model, device), cycle(map(read, images))
    clock = time.process_time if device == "cpu" else time.perf_counter  # a pass ends when its codes are on the host
    begin: float | None = None
    if (engine := getattr(pipeline, "engine", None)) is not None:
        make_turn = engine.step

        def step() -> Any:
            nonlocal begin
            begin = clock()
            return make_turn()

        engine.step = step

    def run() -> float:
        passes: list[tuple[float | None, float]] = []  # begin, and when one of its positions was told
        is_complete = False

        def note(event: Any) -> None:
            nonlocal is_complete
            if type(event).__name__ == "ImageProgress" and not is_complete:  # an image may be drawn again
                passes.append((begin, clock()))
                is_complete = event.done == event.total

        pipeline.edit(next(shown), "Make the circle black.", seed=1, on_event=note, **overrides)
        (first, first_told), (_, end) = passes[0], passes[-1]
        return end - first if first is not None else (end - first_told) * len(passes) / (len(passes) - 1)

    return run


def ask(*, model: str | None, device: str, images: list[str], questions: int) -> Run:
    """One question, or several about the same image one after another; every round about another image."""
    pipeline, shown = load_pipeline(model, device), cycle(map(read, images))
    asked = [f"Is the circle {color}?" for color in COLORS[:questions]]

    def run() -> list[str]:
        image = next(shown)
        return [pipeline.ask(image, question) for question in asked]

    return run


def read(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


def load(*, model: str | None, device: str) -> Run:
    return lambda: load_pipeline(model, device)


def start(*, words: list[str]) -> Run:
    """Python with these words as a process of its own, from its start to its end."""

    def run() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=os.getcwd())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def train_step(*, model: str, device: str, batches: str) -> Run:
    import torch

    from mllm.model import MLLMForConditionalGeneration

    found = MLLMForConditionalGeneration.from_pretrained(model, dtype=torch.float32).train()
    found.to(device)  # type: ignore[arg-type]
    if device == "cpu":
        import_module("train.hardware").speed_up(found.backbone, compiles=False)  # `train` is above `mllm`
    loaded = torch.load(batches, map_location=device)

    def run() -> None:
        for batch in loaded:
            found.zero_grad(set_to_none=True)
            found(**batch).loss.backward()

    return run


def draw_random(
    *, size: str, weights: str, batch: int, device: str, dtype: str, guidance: float, greedy: bool = False
) -> Run:
    """`weights` is a file: another commit may initialise differently."""
    import torch

    from mllm.benchmark.cases import SIZES, Work, build_random_model
    from mllm.sampling import SamplingConfig

    model = build_random_model(SIZES[size], device=torch.device(device), dtype=getattr(torch, dtype))
    model.load_state_dict(torch.load(weights, map_location=device))
    settings = SamplingConfig(guidance=guidance, greedy=greedy)
    work = Work.build(SIZES[size], batch, settings)
    return lambda: work.ours(model, settings)


def tokenizer(*, way: str, size: str, batch: int, device: str) -> Run:
    """`way` is encode or decode."""
    import torch

    from mllm.benchmark.cases import build_random_tokenizer

    unitok = build_random_tokenizer(size, device=torch.device(device)).for_inference()
    side = unitok.config.image_size
    generator = torch.Generator().manual_seed(1)
    pixels_B3HW = (torch.rand(batch, 3, side, side, generator=generator) * 2 - 1).to(device)
    if way == "encode":
        return lambda: unitok.encode(pixels_B3HW)
    codes_BKN = unitok.encode(pixels_B3HW)
    return lambda: unitok.decode(codes_BKN)


WORK: dict[str, Callable[..., Run]] = {
    function.__name__: function
    for function in (draw, edit, edit_codes, ask, load, start, train_step, draw_random, tokenizer)
}


class Before:
    """The code of another commit: its worktree, and a process there that does work on request."""

    def __init__(self, commit: str, *, threads: int) -> None:
        self.root = Path(__file__).resolve().parents[2]
        self.scratch = tempfile.TemporaryDirectory()
        self.tree = Path(self.scratch.name) / "tree"
        self._git("worktree", "add", "--detach", str(self.tree), commit)
        environment = {**os.environ, "PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            cwd=self.tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _git(self, *words: str) -> None:
        done = subprocess.run(["git", "-C", str(self.root), *words], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"--before must be a commit of {self.root}, got git's {done.stderr.strip()!r}; name one")

    def prepare(self, name: str, **arguments: Any) -> Run:
        """Work of that name, done and measured there; it stays prepared until the process ends."""
        return partial(self.request, {"run": self.request({"prepare": name, "arguments": arguments})})

    def result(self, name: str, **arguments: Any) -> Any:
        """What that work gives, as lists."""
        return self.request({"result": name, "arguments": arguments})

    def request(self, message: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise RuntimeError(f"the other commit must do the same work, got {answer['error']}; compare with another")
        return answer["value"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._git("worktree", "remove", "--force", str(self.tree))
        self.scratch.cleanup()


def serve() -> None:
    """Answer requests, one JSON line each, until the input ends; prints of libraries go to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    prepared: list[tuple[Run, bool]] = []
    for line in sys.stdin:
        message, answer = json.loads(line), dict[str, Any]()
        try:
            if "run" in message:
                run, on_gpu = prepared[message["run"]]
                value = seconds_of(run, on_gpu=on_gpu)
            else:
                arguments, name = message["arguments"], message.get("prepare") or message["result"]
                work = WORK[name](**arguments)
                if "prepare" in message:
                    prepared.append((work, str(arguments.get("device", "cpu")).startswith("cuda")))
                value = len(prepared) - 1 if "prepare" in message else work().tolist()
            answer["value"] = value
        except Exception as error:  # whatever it is, the other process says it
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
