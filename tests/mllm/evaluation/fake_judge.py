"""An OpenAI-compatible server on this machine that grades answers by a rule, or misbehaves as told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeJudge:
    """What the server heard, and how it answers: (status, content or whole body)."""

    reply: Callable[[dict[str, Any]], tuple[int, Any]]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> Iterator[FakeJudge]:
    """Serve until the block ends."""
    judge = FakeJudge(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.requests.append(request)
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            status, content = judge.reply(request)
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def exact_grade(request: dict[str, Any]) -> tuple[int, str]:
    """1.0 where the prediction is the truth, else 0.3, as the last line of the prompt tells them."""
    _, truth, prediction, _ = request["messages"][0]["content"].splitlines()[-1].split(" | ")
    return 200, "1.0" if prediction.strip() == truth.strip() else "0.3"
