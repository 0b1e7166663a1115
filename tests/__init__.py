"""The tests."""

import gc

import digits  # noqa: F401  # before torch: sets how its threads wait

gc.set_threshold(100_000, 20, 100)  # as stages/__init__.py does
