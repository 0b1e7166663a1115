import signal
import subprocess
import sys

import pytest

from digits.errors import reason

from .conftest import ROOT

HEAD = "import signal\nfrom digits.errors import UserError, run\n"
WAITING = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
def main():
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        print("cleaned up", flush=True)
run(main)
"""


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + body], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


def test_fault_of_the_user_is_a_line_on_stderr_and_code_1() -> None:
    done = run_script("def main():\n    print('at work')\n    raise UserError('params.yaml: seed: missing')\nrun(main)")
    assert (done.returncode, done.stdout, done.stderr) == (1, "at work\n", "params.yaml: seed: missing\n")


def test_bug_keeps_its_traceback() -> None:
    done = run_script("def main():\n    raise ValueError('a bug')\nrun(main)")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: a bug\n")


def test_success_is_code_0_and_silence() -> None:
    done = run_script("run(lambda: None)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "interrupted\n")])
def test_signal_ends_the_process_with_its_code_after_cleaning_up(number: signal.Signals, code: int, said: str) -> None:
    command = [sys.executable, "-c", HEAD + WAITING]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (code, "cleaned up\n", said)


def test_reader_that_leaves_early_ends_the_process_quietly() -> None:
    body = "def main():\n    while True:\n        print('a line', flush=True)\nrun(main)"
    command = [sys.executable, "-c", HEAD + body]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()  # as `head -1` does
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 141


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such knob"), "no such knob"),
        (ValueError("\n  first line  \nsecond line\n"), "first line  "),
        (ValueError(), "ValueError"),
        (KeyboardInterrupt(" \n "), "KeyboardInterrupt"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
        (RuntimeError("x" * 300), "x" * 200),
    ],
    ids=["a line", "lines", "no message", "blank message", "two arguments", "long line"],
)
def test_reason_is_the_first_line_of_a_message_or_the_name_of_its_type(error: BaseException, expected: str) -> None:
    assert reason(error) == expected


def test_reason_is_cut_at_a_given_limit() -> None:
    assert reason(ValueError("0123456789\nmore"), limit=4) == "0123"
