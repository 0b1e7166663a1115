import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from digits.errors import public, reason, shown

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


def test_what_the_system_refuses_is_one_line() -> None:
    done = run_script("def main():\n    open('/nowhere/at all', 'w')\nrun(main)")
    assert (done.returncode, done.stderr) == (1, "/nowhere/at all: No such file or directory\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("body", ["print('a line', flush=True)", "print('a line')"])
def test_output_to_a_full_disk_is_one_line(body: str) -> None:
    script = f"{HEAD}def main():\n    {body}\nrun(main)"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "this machine: No space left on device\n")


def test_interruption_that_a_library_wraps_is_one() -> None:
    wrapped = "    try:\n        raise KeyboardInterrupt\n    except BaseException:\n        raise ValueError\n"
    done = run_script(f"def main():\n{wrapped}run(main)")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_ctrl_c_while_a_stage_imports_is_one_line(seconds: float) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
import stages
print("ready", flush=True)
import stages.export, time
time.sleep(9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no https://me:hunter2@host:80/a/b?token=hunter2#x today", "no https://host:80/a/b#x today"),
        ("postgresql://me:hun@ter2@db/x", "postgresql://db/x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("'http://h/?a=b'", "'http://h/'"),
        ("retries exceeded with url: /?token=hunter2/api (gone)", "retries exceeded with url: / (gone)"),
        ("a? b: c@d", "a? b: c@d"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_addresses_are_shown_without_what_may_be_secret(text: str, expected: str) -> None:
    assert public(text) == expected


def test_lines_do_not_command_the_terminal() -> None:
    done = run_script("def main():\n    raise UserError('a\\x1b[2J\\x07b\\rc\\nd [red]é 数')\nrun(main)")
    assert done.stderr == "a�[2J�b�c\nd [red]é 数\n"


def test_long_values_are_shortened() -> None:
    assert shown("x" * 500) == "'" + "x" * 78 + "…"
    assert shown([1, 2]) == "[1, 2]"
