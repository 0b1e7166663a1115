"""Measurements behind the figures in the documentation, each program with a table of its own: see README.md."""

import digits  # noqa: F401  # before torch: sets how its threads wait
