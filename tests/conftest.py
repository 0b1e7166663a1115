"""Shared by the tests of the library: tiny data with classes that are easy to tell apart, and changed params."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from digits import params
from digits.datasets import MNIST_SHAPE
from digits.images.splits import Split
from digits.learning import networks
from digits.learning.description import Description
from digits.params import Params

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
CLASSES = ("left", "middle", "right")

Change = Callable[[dict[str, Any]], Params]


def bars(count: int, seed: int = 0) -> Split:
    """Return noisy images with one bright bar; the class is its position."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    images = torch.randint(60, (count, 1, 28, 28), dtype=torch.uint8, generator=random)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4:24, 8 * label + 4 : 8 * label + 8] = 250
    return Split(images, labels, CLASSES)


def drawing(ink: int, paper: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Return a picture of a thick upright bar, far from the middle."""
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).rectangle((10, 15, 25, 75), fill=ink)
    return image


def git(*arguments: str) -> str:
    """Return what a git command prints, run in the working directory; it must succeed."""
    names = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(["git", *names, *arguments], capture_output=True, text=True, check=True).stdout


def command_blocks(page: Path) -> list[tuple[str, str]]:
    """Return each block of commands of a page, behind the reason why it is not run, which a comment gives."""
    text = page.read_text(encoding="utf-8")
    everywhere = re.search(r"<!-- no block of this page is run: (.*?) -->", text)
    blocks = re.findall(
        r"(?:<!-- not run: ([^>]*?) -->\n)?^```(?:bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return [(reason or (everywhere[1] if everywhere else ""), block) for reason, block in blocks]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--damaged", default=8, type=int, help="how many damaged files of each format are tried")
    parser.addoption("--kills", default=2, type=int, help="how often tests/pipeline/test_kill.py kills")


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """Compute on one thread, for threads that wait for a busy core cost seconds, and undo `runtime.prepare`."""
    torch.set_num_threads(1)
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(mode=False)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Start a headless chromium, for all tests of a process; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not (program := shutil.which("chromium")):
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu"],  # or the processor emulates one
            ignore_default_args=["--enable-unsafe-swiftshader"],
        )
        yield opened
        opened.close()


@pytest.fixture
def split() -> Split:
    return bars(96)


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small untrained network for the classes a, b and c as the export stage would."""
    from digits.learning import exporting  # only now: onnx takes a second

    torch.manual_seed(0)
    network = networks.build("mlp", 3, {"hidden": [8], "dropout": 0.0}).eval()
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    program = exporting.capture(network, MNIST_SHAPE)
    exporting.write_onnx(program, path, 18, Description("mlp", ["a", "b", "c"], {}, {}, {}, ""))
    return path


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Return a function that writes the repository's params.yaml with some dotted keys changed, and loads it.

    The value ... removes a key. The working directory becomes a temporary one.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def load(changes: dict[str, Any]) -> Params:
        content: dict[str, Any] = params.load(networks.check, path=ROOT / "params.yaml").model_dump()
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            section[name] = value
            if value is ...:
                del section[name]
        Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return params.load(networks.check)

    return load
