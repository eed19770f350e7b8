"""A judge behind any OpenAI-compatible endpoint: a question goes out, the answer and the judge's own name come back.

Waits and asks again where the server is busy or gone for a moment; gives up with one sentence. The key comes from the
environment (OPENAI_API_KEY) and is never written anywhere.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import NamedTuple

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-4-0613"
"""MM-Vet's judge. Retired since; whichever answers is recorded."""
KEY = "OPENAI_API_KEY"
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})


class Reply(NamedTuple):
    """What a judge said."""

    content: str
    model: str  # who it says it is


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Where the judge is and who it is."""

    model: str = DEFAULT_MODEL
    url: str = DEFAULT_URL
    runs: int = 1
    """How often every answer is judged; MM-Vet's paper has 5."""
    timeout: float = 60.0
    """Seconds to wait for one answer."""
    attempts: int = 6
    pause: float = 1.0
    """Seconds before the second attempt; doubled for each further one."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the judge's address is no URL: found {self.url!r}; write http://host:port/v1")
        if self.runs < 1:
            raise ValueError(f"the judge must judge at least once: found {self.runs} runs; use 1 or more")

    @property
    def address(self) -> str:
        """Host and port, without anything secret that a URL may hold."""
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def ask(self, question: str, *, temperature: float, max_tokens: int) -> Reply:
        """The judge's answer to one message."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get(KEY, 'none')}"},
        )
        answer = self._send(request)
        try:
            return Reply(answer["choices"][0]["message"]["content"] or "", answer.get("model") or self.model)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"the judge at {self.url} does not speak OpenAI's protocol: found {json.dumps(answer)[:200]}; "
                "give the address of a chat completions server"
            ) from error

    def _send(self, request: urllib.request.Request) -> dict:
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in RETRIED:
                    break
            except ValueError as error:
                problem = f"an answer that is no JSON ({error})"
                break
            except (OSError, http.client.HTTPException) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise ValueError(
            f"the judge at {self.url} does not answer: found {problem}; check the address, the model's name and "
            f"{KEY}, then score again (grades so far are kept)"
        )
