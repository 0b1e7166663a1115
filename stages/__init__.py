"""The five stages of the pipeline, in the order in which dvc.yaml runs them: each loads, calls the library, writes."""

import gc
import os

# Read by GNU OpenMP when torch is loaded: how long a thread spins before it sleeps while it waits for the others. By
# default it spins on the very core that another thread needs, as soon as anything else runs. One epoch on 2 cores:
# 8.7 s alone and 49 s beside a second training by default, 9.4 and 19 s with this, 11.7 and 17 s without spinning.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# torch and mlflow make a million objects that stay. Looking for garbage every 700 of them was a sixth of each stage's
# start.
gc.set_threshold(100_000, 20, 100)
