"""How a command of this project ends: one line for a person's mistake, a traceback only for a bug.

Every stage and tool runs its `main` through `run`.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    The message has one line per fault, each with what is wrong, where (file and key) and what is allowed.
    """


def run(main: Callable[[], None]) -> None:
    """Call `main` and leave the process: code 0, 1 for a `UserError`, 130 or 143 when interrupted or terminated."""
    signal.signal(signal.SIGTERM, _terminate)  # an exception lets `with` blocks close the MLflow run
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
