"""The demo in a real browser, with the bundled model: what the first command of the README promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="the browser driver's client is not installed (extra: dev)")

from selenium.webdriver.common.keys import Keys

from tests.demo.browser import Page, find_chromium, serve_demo

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium or its driver is not installed"),
]
PICTURE = Path(__file__).resolve().parent.parent.parent / "demo" / "assets" / "circle-and-square.png"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve_demo() as address:
        yield address


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    page = Page()
    try:
        page.open(address)
        yield page
    finally:
        page.close()


def test_a_sentence_is_typed_and_a_picture_appears(page: Page) -> None:
    page.send("a large red circle to the left of a small blue square on a white background")
    picture = page.wait_for("#chat .bot.message img")
    assert page.wait(lambda: picture.get_property("naturalWidth")) == 256
    page.wait_until_answered(1)


def test_a_picture_is_uploaded_with_a_question_and_a_text_answer_appears(page: Page) -> None:
    page.send("What color is the circle?", files=(PICTURE,))
    assert page.wait_until_answered(1).text.strip()  # whether it is right is for the evaluation to say
    assert not page.find("#chat .bot.message img")


def test_an_example_is_clicked_and_the_conversation_goes_on(page: Page) -> None:
    page.wait_for("#chat button.example").click()
    page.wait_for("#chat .bot.message img")
    page.wait_until_answered(1)
    page.send("How many objects are there?")
    assert page.wait_until_answered(2).text.strip()


def test_an_error_is_shown_in_the_chat_and_the_next_request_works(page: Page) -> None:
    page.wait_for("#settings button").click()
    top_k = page.wait_for("#top-k input, #top-k textarea")
    top_k.send_keys("0")
    page.send("a red circle on a white background")
    assert "Top_k" in page.wait_for("#chat .failure").text
    top_k.send_keys(Keys.BACKSPACE)  # typed, so that the page notices
    page.send("a red circle on a white background")
    page.wait_for("#chat .bot.message img")


def test_the_page_loads_nothing_from_elsewhere(page: Page, address: str) -> None:
    page.wait_for("#chat button.example")
    elsewhere = [url for url in page.requested_urls() if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere
    assert not [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_what_was_typed_is_shown_as_typed(page: Page) -> None:
    typed = "# 1. *a* **b** `c` [d](e) <img src=x> &amp; $f$ http://x.org www.x.org a@x.org"
    page.send(typed)
    page.wait_until_answered(1)
    assert page.find("#chat .user.message")[-1].text == typed
    assert not page.find("#chat .user.message :is(h1, em, strong, code, a, img, ol)")
