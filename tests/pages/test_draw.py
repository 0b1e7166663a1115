"""The drawing page in a browser, of the service and of a static host."""

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from digits.serving.reading import INCLUDED, Model

from ..serving.conftest import png, written
from .conftest import PAGE, Visit, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
# Strokes in a square of 100, as people draw them.
STROKES = {
    "0": [[(50, 5), (25, 25), (20, 60), (35, 92), (60, 92), (78, 60), (72, 22), (50, 5)]],
    "1": [[(52, 5), (50, 50), (48, 95)]],
    "2": [[(22, 25), (40, 5), (68, 10), (72, 35), (50, 65), (20, 93), (80, 93)]],
    "3": [[(25, 12), (55, 5), (72, 22), (60, 42), (42, 47), (65, 52), (76, 72), (58, 93), (22, 88)]],
    "4": [[(38, 5), (20, 55), (80, 55)], [(65, 25), (60, 97)]],
    "5": [[(72, 6), (32, 6), (28, 42), (55, 40), (75, 60), (66, 88), (40, 95), (20, 85)]],
    "6": [[(65, 5), (38, 30), (24, 65), (34, 92), (60, 92), (72, 72), (55, 56), (28, 68)]],
    "7": [[(20, 8), (78, 8), (55, 50), (40, 95)]],
    "8": [
        [(66, 18), (45, 5), (28, 20), (42, 42), (66, 62), (70, 85), (48, 96), (28, 82), (38, 58), (66, 30), (66, 18)]
    ],
    "9": [[(70, 20), (48, 6), (28, 22), (34, 46), (56, 46), (70, 20), (68, 60), (60, 96)]],
}


def ready(visit: Visit) -> None:
    visit.page.get_by_text("Waiting for a digit").wait_for()


def draw(visit: Visit, digit: str, left: float = 230, top: float = 100, size: float = 150) -> None:
    """Draw a digit by mouse, at a place on the paper of 600 x 370."""
    box = visit.page.locator("#paper").bounding_box()
    assert box
    scale = box["width"] / 600
    for stroke in STROKES[digit]:
        places = [
            (box["x"] + scale * (left + x * size / 100), box["y"] + scale * (top + y * size / 100)) for x, y in stroke
        ]
        visit.page.mouse.move(*places[0])
        visit.page.mouse.down()
        for place in places[1:]:
            visit.page.mouse.move(*place, steps=4)
        visit.page.mouse.up()


def answer(visit: Visit, words: str | re.Pattern[str]) -> None:
    """Wait until the page says so."""
    pattern = words if isinstance(words, re.Pattern) else re.compile(rf"^{re.escape(words)}(unsure)?$")
    visit.page.locator("#text").filter(has_text=pattern).wait_for(timeout=20_000)


@pytest.mark.parametrize("host", ["service", "static"])
def test_digits_are_read_as_they_are_drawn(browser: "Browser", host: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(host)
    with visiting(browser, address) as visit:
        ready(visit)
        for digit in STROKES if host == "static" else "247":
            draw(visit, digit)
            answer(visit, digit)
            assert visit.page.locator("#digits li").count() == 1
            assert visit.page.locator("#digits meter").count() == 10
            visit.page.get_by_role("button", name="Clear").click()
            ready(visit)
        assert visit.page.locator("#service").is_visible() == (host == "service")
        visit.assert_quiet(address)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_several_digits_fit_any_screen_and_are_undone_one_by_one(
    browser: "Browser", static: str, width: int, scheme: str
) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}, "has_touch": width == 390}
    with visiting(browser, static, **options) as visit:
        ready(visit)
        for place, digit in enumerate("7293"):
            draw(visit, digit, left=20 + 140 * place, size=120)
        answer(visit, "7293")
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= width
        visit.page.keyboard.press("Control+z")
        answer(visit, "729")
        visit.page.get_by_role("button", name="Undo").click()
        answer(visit, "72")
        visit.page.keyboard.press("Delete")
        ready(visit)
        visit.assert_quiet(static)


def test_digits_of_the_test_set_are_seen_as_they_are(browser: "Browser", static: str) -> None:
    with visiting(browser, static) as visit:
        ready(visit)
        for digit in ("3", "8"):
            button = visit.page.get_by_role("button", name=f"A {digit} from the test set")
            button.click()
            answer(visit, digit)
            button.click()
            answer(visit, digit)
        visit.assert_quiet(static)


def test_a_picture_is_opened_dropped_and_pasted(browser: "Browser", static: str, tmp_path: Path) -> None:
    content = png(written("23\n5"))
    (tmp_path / "page.png").write_bytes(content)
    with visiting(browser, static) as visit:
        ready(visit)
        visit.page.locator("#file").set_input_files(tmp_path / "page.png")
        answer(visit, re.compile(r"^23\n5"))
        for event in ("drop", "paste"):
            visit.page.get_by_role("button", name="Clear").click()
            ready(visit)
            visit.page.evaluate(
                """([event, content]) => {
                    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
                    const data = new DataTransfer();
                    data.items.add(new File([bytes], "page.png", { type: "image/png" }));
                    const how = { bubbles: true, cancelable: true };
                    const made = event === "drop" ? new DragEvent(event, { ...how, dataTransfer: data })
                        : new ClipboardEvent(event, { ...how, clipboardData: data });
                    document.body.dispatchEvent(made);
                }""",
                [event, base64.b64encode(content).decode()],
            )
            answer(visit, re.compile(r"^23\n5"))
        (tmp_path / "page.png").write_text("no picture")
        visit.page.locator("#file").set_input_files(tmp_path / "page.png")
        answer(visit, "That is not a picture this browser can open")
        visit.assert_quiet(static)


def test_a_digit_can_be_drawn_and_cleared_by_keyboard_alone(browser: "Browser", static: str) -> None:
    with visiting(browser, static) as visit:
        ready(visit)
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("() => document.activeElement.id") == "paper"
        for key, times in (("Space", 1), ("ArrowDown", 18), ("Space", 1)):
            for _ in range(times):
                visit.page.keyboard.press(key)
        answer(visit, "1")
        visit.page.keyboard.press("Delete")
        ready(visit)
        visit.assert_quiet(static)


def test_what_cannot_be_seen_is_said(browser: "Browser", static: str) -> None:
    with visiting(browser, static) as visit:
        ready(visit)
        status = visit.page.get_by_role("status")
        assert status.get_attribute("aria-live") == "polite"
        draw(visit, "7")
        answer(visit, "7")
        buttons = visit.page.get_by_role("button")
        assert all(
            buttons.nth(place).inner_text() or buttons.nth(place).get_attribute("aria-label")
            for place in range(buttons.count())
        )
        assert visit.page.get_by_role("img", name="What the network saw").count() == 1


def test_documentation_of_the_service_lists_what_it_does(browser: "Browser", service: str) -> None:
    with visiting(browser, f"{service}/docs") as visit:
        visit.page.get_by_text("POST /predict").wait_for()
        text = visit.page.locator("body").inner_text()
        assert f"curl --data-binary @photo.png {service}/predict" in text
        assert "GET /health" in text
        visit.assert_quiet(service)


def test_model_of_the_page_is_the_included_one() -> None:
    assert json.loads((PAGE / "model.json").read_text(encoding="utf-8")) == Model(INCLUDED).about()
