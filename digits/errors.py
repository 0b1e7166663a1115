"""How a command ends: one line for a user's mistake, a traceback only for a bug."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    The message has one line per fault: what is wrong, where (file and key), and what is allowed.
    """


def reason(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's message, at most `limit` characters of it, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Call `main` and leave the process: code 0, 1 for a `UserError`, 130, 141 or 143 after a signal."""
    signal.signal(signal.SIGTERM, _terminate)  # an exception lets `with` blocks close the MLflow run
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
