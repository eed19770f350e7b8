"""Drives the demo in headless Chromium: start a server, start a browser, type, upload, wait."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 180  # seconds; only a loaded machine needs more than a few
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-quic --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


def find_chromium() -> tuple[str, str] | None:
    """Browser and driver; None where either is absent."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def serve_demo(*words: str) -> Iterator[str]:
    """`mllm demo` as its own process without a network to ask; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mllm", "demo", "--port", str(port), *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for_server(server, address)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def wait_for_server(server: subprocess.Popen[str], address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the demo ended before it served: {server.stdout.read() if server.stdout else ''}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.3)
    raise TimeoutError(f"nothing answered at {address} in {PATIENCE} seconds")


class Page:
    """The demo as a person sees it."""

    def __init__(self, *, width: int = 1100, height: int = 900) -> None:
        found = find_chromium()
        assert found, "look for Chromium before starting it"
        options = ChromeOptions()
        options.binary_location = found[0]
        for flag in (*FLAGS, f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.browser = Chrome(options=options, service=Service(found[1]))

    def open(self, address: str) -> None:
        self.browser.get(address)
        self.wait_for("#request textarea")

    def close(self) -> None:
        self.browser.quit()

    def find(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, selector: str) -> Any:
        return self.wait(lambda: self.find(selector))[0]

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, PATIENCE).until(lambda _: condition())

    def send(self, text: str, *, files: tuple[Path, ...] = ()) -> None:
        """Type a request, with pictures, and send it."""
        for number, file in enumerate(files, start=1):
            self.wait_for("#request input[type=file]").send_keys(str(file))
            self.wait(lambda number=number: len(self.find("#request .thumbnail-item, #request img")) >= number)
        box = self.wait_for("#request textarea")
        box.send_keys(text)
        box.send_keys(Keys.ENTER)

    def wait_until_answered(self, num_answers: int) -> Any:
        """The last answer, when there are that many and the box is ready again."""
        self.wait(lambda: len(self.find("#chat .bot.message")) >= num_answers)
        self.wait(lambda: not self.find("#request .stop-button"))
        return self.find("#chat .bot.message")[-1]

    def requested_urls(self) -> list[str]:
        """Everything that the page loaded."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]
