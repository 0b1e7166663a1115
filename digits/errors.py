"""How a command ends: one line for a user's mistake, a traceback only for a bug."""

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import NoReturn
from unicodedata import category

OBEYED = ("Cc", "Cs")  # Unicode's control characters, and the halves of pairs, which cannot be written


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    The message has one line per fault: what is wrong, where (file and key), and what is allowed.
    """


def reason(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's message, at most `limit` characters of it, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return public(harmless(lines[0]))[:limit] if lines else type(error).__name__


def shown(value: object, limit: int = 80) -> str:
    """Return a value as Python would write it, of which a long one is shortened."""
    return shortened(public(repr(value)), limit)


def listed(names: Iterable[str], limit: int = 200) -> str:
    """Return names that a file contains, which may be any characters, on one line; of long ones the beginning."""
    return shortened(
        "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in ", ".join(names)), limit
    )


def shortened(text: str, limit: int) -> str:
    """Return text, of which more than `limit` characters end in an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def public(text: str) -> str:
    """Return text with its addresses less what may be secret in them: user, password and query."""
    whole = re.sub(r"(\w://)(?:[^\s/?#]*@)?([^\s?#'\"]*)(?:\?[^\s'\"#]*)?", r"\1\2", text)
    return re.sub(r"(?<=/)\?[\w.-]+=[^\s'\"#]*", "", whole)  # of a path, as some errors have it


def harmless(text: str) -> str:
    """Return text without characters that a terminal would obey, such as those that clear it."""
    return "".join(one if one in "\n\t" or category(one) not in OBEYED else "\N{REPLACEMENT CHARACTER}" for one in text)


def while_importing() -> None:
    """End the process with one line on Ctrl-C, from now on until `run`: an import has nothing to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def run(main: Callable[[], None]) -> None:
    """Call `main` and end the process: code 0, 1 for a `UserError`, 130, 141 or 143 after a signal.

    What the system refuses (a full disk, a file that may not be read) is a user's to put right, too.
    """
    signal.signal(signal.SIGTERM, _terminate)  # an exception lets `with` blocks close the MLflow run
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _exit(1, str(error))
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        _exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT, "interrupted")
    except OSError as error:
        if error.errno is None:
            raise
        _exit(1, f"{error.filename or 'this machine'}: {error.strerror}")
    except Exception as error:
        # Libraries that catch everything wrap an interruption into an exception of their own.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _exit(128 + signal.SIGINT, "interrupted")
    end()


def end() -> NoReturn:
    """End the process with code 0, without taking apart what is in memory.

    Python takes 0.5 s for what torch and mlflow leave there each, 1 s after an export.
    """
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)


def _exit(code: int, line: str = "") -> NoReturn:
    """Print a line and leave, whatever has become of standard output."""
    if line:
        print(public(harmless(line)), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # closed, or its disk is full: Python would complain once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _leave(number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
