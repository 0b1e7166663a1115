"""The tests."""

import digits  # noqa: F401  # before torch: sets how its threads wait
