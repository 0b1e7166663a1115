"""The five stages of the pipeline, in the order in which dvc.yaml runs them: each loads, calls the library, writes."""

import gc
import os
import sys

from digits import errors, pipeline

errors.while_importing()
pipeline.begin()  # before any of the code is imported that a result is to be attributed to

os.environ.pop("MPLBACKEND", None)  # figures are files; a notebook hands on a backend that is not installed here

from digits.records import recorder  # noqa: E402  # not before `begin`

recorder.start(sys.orig_argv)  # beside the import of torch, which takes as long

# torch and mlflow create a million objects that stay. Looking for garbage every 700 of them was a sixth of each stage's
# start.
gc.set_threshold(100_000, 20, 100)
