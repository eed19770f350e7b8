"""Files, answers and a judge for the tests of evaluation."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from mllm.evaluation.protocol import AnsweredItem, Benchmark, BenchmarkItem, ScoreOptions, Scores, match_answers
from mllm.evaluation.text_to_image import GenAIBench527
from mllm.files import read_lines


def write_json(path: Path, value: object) -> Path:
    return write_jsonl(path, [value])


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_item(question_id: int | str = 0, prompt: str = "what?") -> BenchmarkItem:
    return BenchmarkItem(str(question_id), where="questions, line 1", question_id=question_id, prompt=prompt)


def answered(*texts: str, first_id: int = 0) -> list[AnsweredItem]:
    """Answers to questions 0, 1, ..."""
    return [AnsweredItem(make_item(first_id + n), text) for n, text in enumerate(texts)]


def score_files(benchmark: Benchmark, questions: Path, answers: Path, annotations: Path) -> Scores:
    """From files to scores, as the command does it."""
    items = benchmark.read_items(questions, None)
    matched = match_answers(benchmark, items, read_lines(answers), answers=answers)
    return benchmark.score(matched, annotations, ScoreOptions())


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a run leaves for others, by name; its parts are internal."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "parts"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def write_genai_bench(folder: Path, *, size: int = 527, first: int = 1) -> tuple[Path, Path]:
    """The two files of GenAI-Bench; who needs which skill is drawn anew."""
    prompts, rng, numbers = folder / "prompts.txt", Random(5), range(first, size + first)
    folder.mkdir(parents=True, exist_ok=True)
    prompts.write_text("\n".join(f"a red circle number {n}" for n in range(size)), encoding="utf-8")
    basic, advanced = numbers[: 214 * size // 527], numbers[214 * size // 527 :]
    halves = [basic] * 6 + [advanced] * 6
    named = enumerate(zip(GenAIBench527.skills, halves, strict=True))
    skills = {name: rng.sample(half, 34 + 13 * n) for n, (name, half) in named}
    return prompts, write_json(folder / "genai_skills.json", skills | {"basic": [*basic], "advanced": [*advanced]})


# ---- a judge ----

Reply = Callable[[dict[str, Any]], tuple[int, Any]]
"""A request -> status, and content or whole body."""


@dataclass
class FakeJudge:
    """An OpenAI-compatible server on this machine that grades answers by a rule, or misbehaves as told."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serve(reply: Reply) -> Iterator[FakeJudge]:

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.requests.append(request)
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            status, content = reply(request)
            if isinstance(content, str):
                message = {"role": "assistant", "content": content}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                content = {"object": "chat.completion", "model": "fake-judge-2026-11-01", "choices": [choice]}
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        judge = FakeJudge(f"http://127.0.0.1:{server.server_port}/v1")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield judge
        finally:
            server.shutdown()


def exact_grade(request: dict[str, Any]) -> tuple[int, str]:
    """1.0 where the prediction is the truth, else 0.3, as the last line of the prompt tells them."""
    _, truth, prediction, _ = request["messages"][0]["content"].splitlines()[-1].split(" | ")
    return 200, "1.0" if prediction.strip() == truth.strip() else "0.3"
