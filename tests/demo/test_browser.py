"""The demo in a real browser, with the bundled model: what the first command of the README promises."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="the browser driver's client is not installed (extra: dev)")

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.train.launching import ROOT, serving

PATIENCE = 180  # seconds; only a loaded machine needs more than a few
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-quic --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


def find_chromium() -> tuple[str, str] | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


serve_demo = partial(serving, sys.executable, "-m", "mllm", "demo")


class Page:
    """The demo as a person sees it."""

    def __init__(self, address: str) -> None:
        found = find_chromium()
        assert found, "look for Chromium before starting it"
        options = ChromeOptions()
        options.binary_location = found[0]
        for flag in (*FLAGS, "--window-size=1100,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.browser, self.address = Chrome(options=options, service=Service(found[1])), address

    def load(self) -> None:
        self.browser.get(self.address)
        self.wait_for("#request textarea")

    def find(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, selector: str) -> Any:
        return self.wait(lambda: self.find(selector))[0]

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, PATIENCE).until(lambda _: condition())

    def send(self, text: str, *, file: Path | None = None) -> None:
        box = self.wait_for("#request textarea")
        if file:
            self.wait_for("#request input[type=file]").send_keys(str(file))
            self.wait_for("#request .thumbnail-item, #request img")
        box.send_keys(text)
        box.send_keys(Keys.ENTER)

    def wait_until_answered(self, num_answers: int) -> str:
        """The text of the last answer, when there are that many and the box is ready again."""
        self.wait(lambda: len(self.find("#chat .bot.message")) >= num_answers)
        self.wait(lambda: not self.find("#request .stop-button"))
        return self.find("#chat .bot.message")[-1].text.strip()

    def requested_urls(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]


pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium or its driver is not installed"),
]
IMAGE = ROOT / "demo" / "assets" / "circle-and-square.png"
DRAWN = "#chat .bot.message img:not([alt=preview])"


@pytest.fixture(scope="module")
def opened() -> Iterator[Page]:
    with serve_demo() as address:
        page = Page(address)
        try:
            yield page
        finally:
            page.browser.quit()


@pytest.fixture
def page(opened: Page) -> Page:
    opened.load()
    return opened


def test_an_example_is_clicked_and_an_image_with_a_question_answered(page: Page) -> None:
    page.wait_for("#chat button.example").click()
    image = page.wait_for(DRAWN)
    assert page.wait(lambda: image.get_property("naturalWidth")) == 256
    page.wait_until_answered(1)
    page.send("What color is the circle?", file=IMAGE)
    assert page.wait_until_answered(2), "whether it is right is for the evaluation to say"
    elsewhere = [url for url in page.requested_urls() if not url.startswith((page.address, "data:", "blob:"))]
    assert not elsewhere
    assert not [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_an_error_is_shown_in_the_chat_and_the_next_request_works(page: Page) -> None:
    page.wait_for("#settings button").click()
    top_k = page.wait_for("#top-k input, #top-k textarea")
    top_k.send_keys("0")
    page.send("a red circle on a white background")
    assert "Top_k" in page.wait_for("#chat .failure").text
    top_k.send_keys(Keys.BACKSPACE)  # typed, so that the page notices
    page.send("a red circle on a white background")
    page.wait_for(DRAWN)
    page.wait_until_answered(2)
    page.send("")  # nothing to answer, and no error either
    badge = page.wait_for("#chat .error")
    assert not badge.is_displayed() and len(page.find("#chat .message")) == 4


def test_what_was_typed_is_shown_as_typed(page: Page) -> None:
    typed = "# 1. *a* **b** `c` [d](e) <img src=x> &amp; $f$ http://x.org www.x.org a@x.org"
    page.send(typed)
    page.wait_until_answered(1)
    assert page.find("#chat .user.message")[-1].text == typed
    assert not page.find("#chat .user.message :is(h1, em, strong, code, a, img, ol)")


def test_clearing_ends_an_answer(page: Page) -> None:
    page.send("a red circle on a white background")
    page.wait_for("#chat .message")  # the answer begins, or is there already on a fast machine
    page.wait_for("#chat button[aria-label=Clear]").click()
    page.wait(lambda: not page.find("#request .stop-button"))
    assert page.wait_for("#chat button.example") and not page.find("#chat .message")
    page.send("a blue square on a white background")
    page.wait_until_answered(1)
    assert len(page.find("#chat .message")) == 2


def test_each_model_keeps_its_conversation(page: Page) -> None:
    def choose(model: str) -> None:
        page.find("#model input")[0].click()
        page.wait_for(f"#model [role=option][aria-label={model}]").click()

    page.send("a red circle on a white background")
    page.wait_for(DRAWN)
    page.wait_until_answered(1)
    page.wait_for("#settings button").click()
    page.wait(lambda: any(field.is_displayed() for field in page.find("#model input")))
    choose("Emoji")
    page.wait(lambda: not page.find("#chat .message") and "emoji" in page.wait_for("#chat").text)
    choose("Shapes")
    page.wait_for(DRAWN)
    page.wait(lambda: len(page.find("#chat .message")) == 2)
