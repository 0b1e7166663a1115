"""The library behind the pipeline. Each sub-package imports only from those below it:

    tools      commands that people run
    records    what is remembered about a result: MLflow, lineage, any result by any name
    reports    what people look at: figures, advice, significance tests, the model card
    learning   what learns: networks, training, evaluation, export
    serving    the exported model applied to a person's own images, without torch
    images     where images come from: IDX files, splits, batches, augmentation

and, at the bottom, params, pipeline, datasets, paths, files and errors.
"""

import os

# Read by GNU OpenMP when torch is loaded: how long a thread spins before it sleeps while it waits for the others. By
# default it spins on the very core that another thread needs as soon as anything else runs, which makes two trainings
# side by side several times as slow; without any spinning, one alone is slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
