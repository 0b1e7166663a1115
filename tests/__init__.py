"""The tests."""

import gc
import os
import sys

import digits  # noqa: F401  # before torch: sets how its threads wait

gc.set_threshold(100_000, 20, 100)  # as stages/__init__.py does

# The tests start hundreds of processes. Each would compile all of the code again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
