"""Take docs/demo.png: a short conversation with the bundled model in a real browser.

example: python -m docs.take_demo_screenshot
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.demo.test_browser import Page, serve_demo

SCREENSHOT = Path(__file__).parent / "demo.png"
SEED = "1"


def main() -> int:
    """Draw, ask and edit, then take the screenshot."""
    with serve_demo() as address:
        page = Page(address)
        try:
            page.browser.set_window_size(1000, 1240)
            page.load()
            page.wait_for("#settings button").click()
            page.wait_for("#seed input, #seed textarea").send_keys(SEED)
            page.wait_for("#settings button").click()
            page.send("a large red circle to the left of a small blue square on a white background")
            page.wait_until_answered(1)
            page.send("What color is the circle?")
            page.wait_until_answered(2)
            page.send("Make the circle green.")
            page.wait_until_answered(3)
            page.browser.execute_script("document.activeElement.blur()")
            page.browser.save_screenshot(str(SCREENSHOT))
        finally:
            page.browser.quit()
    print(SCREENSHOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
