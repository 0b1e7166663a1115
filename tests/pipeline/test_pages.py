"""What a person who follows the README does and sees: its commands, and MLflow's pages of the runs that they made."""

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.entities import Run

from ..conftest import ROOT, command_blocks, drawing
from .conftest import DIGITS, Project
from .servers import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    """What the README's commands printed, by block."""
    return []


@pytest.fixture(scope="module")
def compared(finished: Project, outputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which every command of the README was run, so that there are two runs that differ in one knob."""
    project = finished.copy(tmp_path_factory.mktemp("compared") / "project", logged=True)
    (project.root / ".venv").symlink_to(sys.prefix)
    drawing(ink=30, paper=220).save(project.root / "photo.png")
    # What a clone would install is there, though older than the copied requirements.lock.
    make = tmp_path_factory.mktemp("bin") / "make"
    make.write_text(f'#!/bin/sh\nexec {shutil.which("make")} --old-file=.venv/complete "$@"\n')
    make.chmod(0o755)
    blocks = [block for reason, block in command_blocks(ROOT / "README.md") if not reason]
    for block in blocks:
        script = block.replace("source .venv/bin/activate", f"PATH={make.parent}:$PATH")
        outputs.append(project.run("bash", "-euc", script).stdout)
    return project


@pytest.mark.usefixtures("compared")
def test_commands_of_the_readme_do_what_it_says(outputs: list[str]) -> None:
    predicted, changed, traced = outputs
    assert re.search(r"^photo\.png: \w", predicted)
    for expected in ("metrics/train.json", "train.learning_rate", "slower", "dvc_plots/index.html", "There is|B is"):
        assert re.search(expected, changed), expected
    for expected in (
        "model.onnx: MD5 [0-9a-f]{32}, intact",
        "train.learning_rate  0.2 -> 0.1",
        "outputs are as dvc.lock says",
    ):
        assert re.search(expected, traced), expected


def test_experiment_shows_in_dvc_and_in_mlflow(compared: Project) -> None:
    table = list(csv.DictReader(io.StringIO(compared.run("dvc", "exp", "show", "--csv").stdout)))
    (row,) = [row for row in table if row["Experiment"] == "slower"]
    assert float(row["train.learning_rate"]) == 0.1
    assert float(row["validation_accuracy"]) == compared.json("metrics/train.json")["validation_accuracy"]
    run, _ = runs(compared)
    assert run.data.tags["dvc_experiment"] == "slower"
    compared.assert_complete(run)
    origin = compared.run(*DIGITS, "of", "models/model.safetensors").stdout
    assert "\n  experiment slower (" in origin
    assert f"MLflow run {run.info.run_id} (slower), on commit " in origin


def started(project: Project, port: int) -> "subprocess.Popen[str]":
    """Start `digits ui` in a project; what it says, errors included, can be read from its `stdout`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "COVERAGE_"))}
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # Where the tests themselves run in the background, they are told to ignore Ctrl-C, and would pass that on.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [*DIGITS, "ui", "--port", str(port)]
    return subprocess.Popen(command, cwd=project.root, env=inherited, preexec_fn=heeding, **output)


@pytest.fixture(scope="module")
def link(compared: Project) -> Iterator[str]:
    """The link that `digits ui` prints, for as long as it serves."""
    with started(compared, free_port()) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().strip()
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0
            assert server.stdout.read() == "Ctrl-C ends it\n"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def window(browser: "Browser") -> Iterator["BrowserContext"]:
    """A window for all pages, which keeps the scripts that it has loaded."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    yield context
    context.close()


@contextmanager
def opened(window: "BrowserContext", address: str, width: int = 1280) -> Iterator["Page"]:
    page = window.new_page()
    page.set_viewport_size({"width": width, "height": 2400})
    page.goto(address)
    yield page
    page.close()


def runs(project: Project) -> tuple[Run, Run]:
    """Return the experiment's run and the one it started from."""
    slower, before = project.mlflow_runs()
    assert slower.info.run_name == "slower"
    return slower, before


def comparison(project: Project, link: str) -> str:
    """Return the address of the page that compares both runs."""
    ids = ",".join(f"%22{run.info.run_id}%22" for run in reversed(runs(project)))
    return f"{link.split('#')[0]}#/compare-runs?runs=[{ids}]&experiments=[%221%22]"


def test_first_page_lists_every_run_with_its_numbers(window: "BrowserContext", compared: Project, link: str) -> None:
    with opened(window, link, width=1920) as page:
        page.get_by_text("slower", exact=True).wait_for()
        header = page.locator(".ag-header-cell").all_inner_texts()
        shown = ["errors/validation", "errors/test", "changed", "time/training_seconds", "size/parameters"]
        assert {*shown, "recipe", "seed"} <= set(map(str.strip, header))
        text = page.locator("body").inner_text()
        for run in runs(compared):
            for name in ("errors/validation", "errors/test", "size/parameters"):
                assert re.search(rf"^{run.data.metrics[name]:.0f}$", text, re.MULTILINE), (name, text)
        assert "train.learning_rate=0.1" in text
        first = page.locator(".ag-row[row-index='0']").first.inner_text()
        fewest = min(run.data.metrics["errors/validation"] for run in runs(compared))
        best = [str(run.info.run_name) for run in runs(compared) if run.data.metrics["errors/validation"] == fewest]
        assert any(name in first for name in best)


def test_numbers_of_the_list_are_those_of_the_files(compared: Project) -> None:
    slower, _ = runs(compared)
    train, test = compared.json("metrics/train.json"), compared.json("metrics/test.json")
    count = compared.json("metrics/dataset.json")["validation.count"]
    assert slower.data.metrics["errors/validation"] == round((1 - train["validation_accuracy"]) * count)
    assert slower.data.metrics["errors/test"] == test["errors"]
    table = (compared.root / "plots/validation.csv").read_text(encoding="utf-8").splitlines()[1:]
    wrong = sum(actual != predicted for actual, predicted in (line.split(",") for line in table))
    assert wrong == slower.data.metrics["errors/validation"]  # what evaluate and train count is the same


def test_comparison_leads_from_the_knob_to_the_error_and_tells_the_runs_apart(
    window: "BrowserContext", compared: Project, link: str
) -> None:
    with opened(window, comparison(compared, link)) as page:
        page.locator(".parcoords").first.wait_for()
        axes = page.locator(".parcoords .axis-title").all_text_contents()
        assert axes == ["train.learning_rate", "error/validation"]
        for switch in page.get_by_text("Show diff only").all():
            switch.click()
        text = page.locator("body").inner_text()
        assert re.search(r"Parameters\s+Show diff only\s+train\.learning_rate\s+0\.2\s+0\.1\s+Metrics", text), text
        slower, first = (run.data.metrics for run in runs(compared))
        for name in ("error/validation", "loss/validation"):
            if slower[name] != first[name]:  # a count may be the same in both, and is then not shown
                for value in (slower[name], first[name]):
                    assert re.search(rf"^{round(value, 3):g}$", text, re.MULTILINE), (name, text)
        tags = text[text.rindex("Tags") :]
        assert "changed" in tags
        assert not re.search(r"\b[0-9a-f]{32}\b", tags)


@pytest.mark.parametrize("figure", ["confusion.png", "misclassified.png", "training.png"])
def test_comparison_shows_figures_of_both_side_by_side(
    window: "BrowserContext", compared: Project, link: str, figure: str
) -> None:
    with opened(window, comparison(compared, link)) as page:
        page.get_by_text(figure, exact=True).first.dispatch_event("click")
        page.wait_for_function("[...document.images].filter(image => image.naturalWidth > 500).length >= 2")


def test_comparison_shows_the_cards_of_both(window: "BrowserContext", compared: Project, link: str) -> None:
    with opened(window, comparison(compared, link)) as page:
        page.get_by_text("MODEL_CARD.md", exact=True).first.dispatch_event("click")
        page.wait_for_function("document.body.innerText.split('Model card: cnn on mnist').length > 2")


def test_run_says_what_it_came_to_and_what_to_do_next(compared: Project) -> None:
    slower, before = runs(compared)
    first, *rest = slower.data.tags["mlflow.note.content"].split("\n\n")
    assert re.match(
        r"\*\*\d+\.\d\d % validation error \(95 % interval .*\), \d+\.\d\d % test error \(.*\)\*\*; ", first
    )
    assert re.search(r"; (not )?champion, version 2: .*, p = .* against version 1$", first)
    assert rest[0] == "Changed: train.learning_rate=0.1"
    assert rest[1] == f"Reproduce every bit: `python -m digits reproduce {slower.info.run_id}`"
    assert rest[2] == "To try next:"
    assert slower.data.tags["mlflow.runColor"] != before.data.tags["mlflow.runColor"]
    assert before.data.tags["changed"] == "nothing"


def test_five_versions_of_the_model_fit_on_a_screen(window: "BrowserContext", compared: Project, link: str) -> None:
    with opened(window, f"{link.split('#')[0]}#/models/mnist-classifier") as page:
        page.get_by_text("Version 1", exact=True).wait_for()
        rows = [page.get_by_text(f"Version {number}", exact=True).bounding_box() for number in (1, 2)]
        assert rows[0]
        assert rows[1]
        assert 5 * abs(rows[0]["y"] - rows[1]["y"]) + min(row["y"] for row in rows if row) < 900
    for version in compared.client.search_model_versions("name='mnist-classifier'"):
        figures, verdict = str(version.description).split("\n\n")
        assert "% validation error" in figures
        assert f"version {version.version}: " in verdict


def test_second_server_on_the_same_port_is_one_line(compared: Project, link: str) -> None:
    port = link.split(":")[2].split("/")[0]
    failed = compared.run(*DIGITS, "ui", "--port", port, fails=True)
    assert failed.stderr.splitlines() == [
        f"--port: {port} cannot be used (Address already in use); `make ui PORT=5001` takes another"
    ]


def test_runs_on_a_tracking_server_are_linked_to_there(compared: Project, link: str) -> None:
    address = link.split("/#")[0]
    shown = compared.run(*DIGITS, "ui", MLFLOW_TRACKING_URI=address)
    assert shown.stdout == f"{link}\n"


def test_ending_it_ends_every_process_of_the_server(compared: Project) -> None:
    port = free_port()
    with started(compared, port) as server:
        assert server.stdout
        assert server.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
        server.terminate()
        assert server.wait(timeout=60) == 143
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-f", f"port {port}"], check=False, capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)
