"""The page of `dvc plots`, in a browser without internet."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from digits import pipeline
from digits.images.severities import CORRUPTIONS
from tests.conftest import ROOT, git

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHARTS = (
    "Error_rate",
    "Loss",
    "plots_training_csv",
    "plots_confusion_csv",
    "plots_validation_csv",
    "plots_robustness_csv",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the results of this one, and its page of plots, drawn by `dvc plots show`."""
    folder = tmp_path_factory.mktemp("plots")
    for name in (
        "dvc.yaml",
        "dvc.lock",
        "params.yaml",
        ".dvc/config",
        ".dvc/.gitignore",
        "metrics",
        "plots",
        ".dvc/plots",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    git("-C", str(folder), "init", "--quiet")
    git("-C", str(folder), "add", ".")
    git("-C", str(folder), "commit", "--quiet", "--message", "Results")
    show(folder)
    (folder / ".venv").mkdir()
    (folder / ".venv/vega.js").write_bytes(bundle())
    return folder


def bundle() -> bytes:
    """Return what `make setup` writes to .venv/vega.js, by its own command."""
    (line,) = (line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "vega.js" in line)
    command = line.split("-c '")[1].split("'")[0]
    return subprocess.run([sys.executable, "-c", command], capture_output=True, check=True).stdout


def show(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", "plots", *(arguments or ("show",))]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


@contextmanager
def opened(browser: "Browser", file: Path, **options: Any) -> Iterator[tuple["Page", list[str], list[str]]]:
    """Open a page without a network; yield it, its errors, and the addresses that it asked for."""
    context = browser.new_context(**options)
    page, errors, asked = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    context.set_offline(offline=True)
    page.goto(file.as_uri())
    yield page, errors, asked
    context.close()


def drawn(page: "Page") -> dict[str, int]:
    """Return how many marks each chart has; they are drawn when vegaEmbed is done."""
    for chart in CHARTS:
        page.wait_for_selector(f"#{chart} svg .mark-symbol path, #{chart} svg .mark-rect path", state="attached")
    marks = "svg .mark-symbol path, svg .mark-text.role-mark text"
    return {chart: page.locator(f"#{chart}").locator(marks).count() for chart in CHARTS}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_without_internet(browser: "Browser", project: Path, scheme: str, width: int) -> None:
    page_file = project / "dvc_plots/index.html"
    with opened(browser, page_file, color_scheme=scheme, viewport={"width": width, "height": 900}) as (
        page,
        errors,
        asked,
    ):
        marks = drawn(page)
        assert all(count > 3 for count in marks.values()), marks
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not errors
        assert not [url for url in asked if not url.startswith("file:")]
        pictures = [path for path in pipeline.outputs(*pipeline.stages()) if path.suffix == ".png"]
        sizes = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        assert len(sizes) == len(pictures)
        assert min(sizes) > 100


def test_mistakes_leave_out_the_diagonal(browser: "Browser", project: Path) -> None:
    errors = json.loads((project / "metrics/test.json").read_bytes())["errors"]
    with opened(browser, project / "dvc_plots/index.html") as (page, _, _):
        drawn(page)
        counts = page.locator("#plots_confusion_csv svg .mark-text.role-mark text").all_text_contents()
        assert sum(map(int, counts)) == errors


def test_without_the_bundle_the_page_asks_the_web_and_fails_quietly(browser: "Browser", project: Path) -> None:
    bundle_file = project / ".venv/vega.js"
    hidden = bundle_file.rename(bundle_file.with_suffix(".hidden"))
    try:
        with opened(browser, project / "dvc_plots/index.html") as (page, errors, asked):
            page.wait_for_selector("img")
            assert {url.split("/npm/")[1].split("@")[0] for url in asked if "/npm/" in url} == {
                "vega",
                "vega-lite",
                "vega-embed",
            }
            assert not [error for error in errors if "is not defined" in error]
    finally:
        hidden.rename(bundle_file)


def test_figures_that_are_the_same_in_two_revisions_are_shown_once(browser: "Browser", project: Path) -> None:
    changed = project / "plots/confusion.png"
    content = changed.read_bytes()
    changed.write_bytes((ROOT / "benchmarks/accuracy.png").read_bytes())
    try:
        command = [sys.executable, "-m", "digits", "plots", "HEAD", "workspace"]
        done = subprocess.run(
            command, cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
        )
    finally:
        changed.write_bytes(content)
    page_file = project / "dvc_plots/index.html"
    assert done.stdout == f"{page_file.as_uri()}\n"
    with opened(browser, page_file) as (page, errors, _):
        drawn(page)
        pictures = [path for path in pipeline.outputs(*pipeline.stages()) if path.suffix == ".png"]
        shown = page.eval_on_selector_all("img", "images => images.map(image => image.getAttribute('src'))")
        assert len(shown) == len(pictures) + 1
        labels = page.locator("img").locator("xpath=preceding-sibling::p").all_inner_texts()
        assert labels.count("workspace, HEAD") == len(pictures) - 1
        assert not errors


def test_template_of_robustness_names_every_corruption() -> None:
    template = json.loads((ROOT / ".dvc/plots/robustness.json").read_bytes())
    assert template["transform"][0]["fold"] == list(CORRUPTIONS)
