"""CLIP-FlanT5 as scorer of pictures, the one of published VQAScores, through t2v-metrics in an environment of its own.

t2v-metrics pins old versions of torch and transformers, so it runs as another process (t2v_worker.py) whose
interpreter is given by a person. In: file names and texts, as lines to that process. Out: its scores.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("t2v_worker.py")
PYTHON_VARIABLE = "T2V_PYTHON"
INSTALL = "python3.10 -m venv t2v && t2v/bin/pip install -r scripts/requirements-t2v.txt"
BATCH_SIZE = 16  # of the reference script


class T2VScorer:
    """An `ImageTextScorer`. The other process is started when the first scores are wanted and then kept."""

    batch_size = BATCH_SIZE

    def __init__(self, model: str, *, python: Path | None = None) -> None:
        self.model = model
        self.python = python or Path(os.environ.get(PYTHON_VARIABLE, "t2v/bin/python"))
        self.process: subprocess.Popen[str] | None = None

    @cached_property
    def version(self) -> str:
        """The version of t2v-metrics that is installed there."""
        query = "from importlib.metadata import version; print(version('t2v-metrics'))"
        try:
            asked = subprocess.run([self.python, "-c", query], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FileNotFoundError(
                f"{self.model} needs t2v-metrics in its own environment: found none at {self.python}; install it with "
                f"`{INSTALL}` and give --scorer-python t2v/bin/python (or set {PYTHON_VARIABLE})"
            ) from error
        return asked.stdout.strip()

    @property
    def description(self) -> Mapping[str, Any]:
        return {"name": self.model, "t2v-metrics": self.version}

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        process = self.process or self.start()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        request = {"images": [str(path.resolve()) for path in pictures], "texts": list(texts)}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ValueError(
                f"t2v-metrics stopped: found no answer from {self.python} (exit code {process.wait()}); its messages "
                "are above, mend that environment and score again to go on"
            )
        return [float(score) for score in json.loads(answer)]

    def start(self) -> subprocess.Popen[str]:
        """The other process; its messages go to our error output."""
        assert self.version, "asked first, because it says clearly what is missing"
        words = [str(self.python), str(WORKER), self.model]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self.process

    def close(self) -> None:
        """End the other process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
