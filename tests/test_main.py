import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from digits import __main__ as line
from digits.__main__ import COMMANDS, dispatch
from digits.errors import UserError

from .conftest import ROOT, drawing

KNOWN = [
    "summary",
    "data",
    "compare",
    "seeds",
    "tune",
    "plots",
    "predict",
    "serve",
    "ui",
    "of",
    "reproduce",
    "diff",
    "verify",
    "repair",
    "sync",
]
HELP_LIMIT = 0.3  # seconds of CPU


class Understood(Exception):  # noqa: N818  # not an error
    """The arguments are understood; the command does not run."""


class Parser(line.Parser):
    """Remembers the last parser, and stops where the command would begin to work."""

    last: line.Parser

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        Parser.last = self

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        super().parse_args(args, namespace)
        raise Understood


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the program the one that pip installs, however pytest was started."""
    monkeypatch.setattr(sys, "argv", ["digits"])


@pytest.fixture
def _stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "Parser", Parser)


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options)


def imported(*words: str) -> set[str]:
    """Return the modules in a process that has run a command."""
    script = "import sys; from digits.__main__ import dispatch; dispatch(sys.argv[1:]); print(*sys.modules)"
    done = run("-c", script, *words)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_what_it_does(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(words)
    listed = [text.split(maxsplit=1) for text in capsys.readouterr().out.splitlines() if text.startswith("  ")]
    assert [name for name, _ in listed] == KNOWN
    assert [summary for _, summary in listed] == [summary for _, summary, _ in COMMANDS.values()]


def test_help_is_quick_and_imports_nothing_large() -> None:
    seconds = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "digits", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < HELP_LIMIT
    assert not imported("--help") & {"torch", "mlflow", "numpy", "pydantic"}


@pytest.mark.usefixtures("_stopping")
@pytest.mark.parametrize("name", KNOWN)
def test_help_of_a_command_explains_every_argument_and_ends_with_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        dispatch([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: digits {name} ")
    assert max(map(len, text.splitlines())) <= 80
    assert Parser.last.description
    assert Parser.last.description.splitlines()[0] in text
    for action in Parser.last._actions:
        assert action.help, action.dest
    example = f"digits {name} {COMMANDS[name][2]}".rstrip()
    assert text.endswith(f"\nexample:\n  {example}\n")


@pytest.mark.usefixtures("_stopping")
@pytest.mark.parametrize("name", KNOWN)
def test_example_of_a_command_is_understood(name: str) -> None:
    with pytest.raises(Understood):
        dispatch([name, *shlex.split(COMMANDS[name][2])])


def test_every_command_that_a_message_or_page_names_exists() -> None:
    files = [*ROOT.glob("[CMR]*"), *ROOT.glob("*.yaml")]
    for folder in ("benchmarks", "digits", "docs", "stages"):
        files += [*(ROOT / folder).rglob("*.md"), *(ROOT / folder).rglob("*.py")]
    for file in files:
        for named in re.findall(r"python -m digits([. ][a-z]+)", file.read_text(encoding="utf-8")):
            assert named in {f" {name}" for name in KNOWN}, f"{file}: python -m digits{named}"


@pytest.mark.usefixtures("_stopping")
@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/experiments.md"])
def test_examples_in_the_documentation_are_understood(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    examples = re.findall(r"python -m digits ([a-z][^`\n]*)", text)
    assert examples
    for words in examples:
        with pytest.raises((Understood, SystemExit)):  # the latter by --help
            dispatch(shlex.split(words, comments=True))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prdict"], f"python -m digits: unknown command 'prdict'; known are {', '.join(KNOWN)}"),
        (
            ["predict"],
            "python -m digits predict: the following arguments are required: FILE; see python -m digits predict --help",
        ),
        (
            ["verify", "--all"],
            "python -m digits verify: unrecognized arguments: --all; see python -m digits verify --help",
        ),
    ],
)
def test_wrong_call_is_one_line_and_code_1(words: list[str], expected: str) -> None:
    done = run("-m", "digits", *words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{expected}\n")


@pytest.mark.parametrize("name", KNOWN)
def test_unknown_option_of_a_command_is_one_line_before_any_work(name: str) -> None:
    words = shlex.split(COMMANDS[name][2])
    with pytest.raises(UserError) as raised:
        dispatch([name, *words, "--no-such-option"])
    assert str(raised.value) == f"digits {name}: unrecognized arguments: --no-such-option; see digits {name} --help"


def test_images_are_classified_without_importing_torch_mlflow_or_matplotlib(onnx_model: Path, tmp_path: Path) -> None:
    drawing(0, 255).save(tmp_path / "one.png")
    modules = imported("predict", str(tmp_path / "one.png"), "--model", str(onnx_model))
    assert not modules & {"torch", "torchvision", "mlflow", "matplotlib"}
    assert "onnxruntime" in modules
