"""Pages over HTTP, in a browser that may ask nobody else; and pictures to read on them."""

import functools
import http.server
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import handwriting
from digits.serving.reading import INCLUDED
from tests.serving.conftest import samples
from tests.serving.servers import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = INCLUDED.parent
RANDOM = np.random.default_rng
KINDS = ("alone", "page", "as it is", "light", "card", "transparent", "large", *handwriting.KINDS)


def picture(number: int) -> tuple[Image.Image, bool]:
    """Return a picture of some kind, and whether it shows exactly one character."""
    random, kind, digits = RANDOM(number), KINDS[number % len(KINDS)], samples()
    digit = digits[random.integers(100)]
    if kind in handwriting.KINDS:
        return _image(handwriting.meaningless(kind, random)), False
    if kind == "as it is":
        return Image.fromarray(digit if number % 2 else 255 - digit), True
    if kind in ("page", "card"):
        rows = [int(random.integers(1, 5)) for _ in range(int(random.integers(1, 4)))]
        sheet = _image(handwriting.written(digits[random.permutation(100)], rows, random))
        if kind == "card":
            table = Image.new("L", (sheet.width + 120, sheet.height + 90), int(random.integers(10, 60)))
            table.paste(sheet, (70, 40))
            return table, False
        return sheet, False
    alone = _image(handwriting.alone(digit, random))
    if kind == "light":
        return Image.fromarray(255 - np.asarray(alone)), True
    if kind == "transparent":
        ink = Image.fromarray(255 - np.asarray(alone))
        return Image.merge("RGBA", [Image.new("L", ink.size, 255 * (number % 2))] * 3 + [ink]), True
    if kind == "large" and number % 3 == 0:  # more pixels than are looked at
        longest = int(random.integers(901, 1400)) + 500 * (number % 4 == 0)
        size = [max(1, round(longest * length / max(alone.size))) for length in alone.size]
        return alone.resize(size), True
    return alone, True


def _image(pixels: NDArray[np.floating]) -> Image.Image:
    return Image.open(io.BytesIO(handwriting.png(pixels)))


@dataclass
class Visit:
    """A page that is open, what went wrong on it, and the addresses that it asked for."""

    page: "Page"
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def assert_quiet(self, address: str) -> None:
        assert not self.errors
        assert not [one for one in self.asked if not one.startswith((address, "blob:"))]


@contextmanager
def visiting(browser: "Browser", address: str, **options: Any) -> Iterator[Visit]:
    context = browser.new_context(**options)
    visit = Visit(context.new_page())
    visit.page.on("console", lambda said: visit.errors.append(said.text) if said.type != "log" else None)
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.on("request", lambda request: visit.asked.append(request.url))
    visit.page.goto(address)
    yield visit
    context.close()


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """Serve the included model; the address."""
    with serving("--model", str(INCLUDED)) as (address, _):
        yield address


@pytest.fixture(scope="session")
def static() -> Iterator[str]:
    """Serve the page's folder as any static host would; the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(PAGE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
