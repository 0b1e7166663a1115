"""The five stages of the pipeline, in the order in which dvc.yaml runs them: each loads, calls the library, writes."""

import gc
import os
import sys

from digits import errors, pipeline

errors.while_importing()
pipeline.begin()  # before any of the code is imported that a result is to be attributed to

os.environ.pop("MPLBACKEND", None)  # figures are files; a notebook hands on a backend that is not installed here

# Read by GNU OpenMP when torch is loaded: how long a thread spins before it sleeps while it waits for the others. By
# default it spins on the very core that another thread needs as soon as anything else runs, which makes two trainings
# side by side several times as slow; without any spinning, one alone is slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from digits.records import recorder  # noqa: E402  # not before `begin`

recorder.start(sys.orig_argv)  # beside the import of torch, which takes as long

# torch and mlflow create a million objects that stay. Looking for garbage every 700 of them was a sixth of each stage's
# start.
gc.set_threshold(100_000, 20, 100)
