"""The exported network as a version in MLflow's model registry, and which version is the champion.

Each new network becomes a version; the alias `champion` names the one that proved best on validation images.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from digits import paths
from digits.datasets import SIDE
from digits.files import md5, read_as, read_json, read_table
from digits.images import splits
from digits.images.batches import to_float
from digits.learning import evaluation, models
from digits.learning.layers import Calibrated
from digits.reports import significance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_NAME, ALIAS = "mnist-classifier", "champion"


def register(client: "MlflowClient", run_id: str) -> None:
    """Log the trained network as an MLflow model of this run; a new one becomes a version, and may become champion."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    network, description = models.load(paths.MODEL)
    temperature = read_as(evaluation.Scores, paths.TEST_METRICS).calibrated.temperature
    # No names: with one, mlflow.pyfunc would hand the network a dictionary.
    image = TensorSpec(np.dtype(np.float32), (-1, 1, SIDE, SIDE))
    logits = TensorSpec(np.dtype(np.float32), (-1, len(description.classes)))
    signature = ModelSignature(Schema([image]), Schema([logits]))
    example = to_float(splits.load(paths.TEST).images[:2]).numpy()  # two: a batch of one would be frozen into the graph
    needed = [f"torch=={torch.__version__.split('+')[0]}"]  # inferring them takes mlflow seconds
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pytorch.log_model(
            Calibrated(network, temperature).eval(),
            name="model",
            signature=signature,
            input_example=example,
            pip_requirements=needed,
        )
    tags = {"model_md5": md5(paths.MODEL), "validation_md5": md5(paths.VALIDATION)}
    tags["validation_accuracy"] = str(read_json(paths.TRAIN_METRICS)["validation_accuracy"])
    known = client.search_model_versions(f"name = '{MODEL_NAME}' and tags.model_md5 = '{tags['model_md5']}'")
    version = known[0] if known else mlflow.register_model(logged.model_uri, MODEL_NAME, tags=tags)
    if "champion" not in version.tags:
        _decide(client, version)


def _decide(client: "MlflowClient", version: "ModelVersion") -> None:
    """Move the alias to this version if it is better on validation images by more than chance, or there is none.

    By `significance.paired`, from the predictions that evaluate wrote; the test set has no say. Figures and decision
    become tags of the version.
    """
    tags = {}
    if ALIAS not in client.get_registered_model(MODEL_NAME).aliases:
        wins, verdict = True, "the first"
    else:
        champion = client.get_model_version_by_alias(MODEL_NAME, ALIAS)
        tags["compared_with_version"] = str(champion.version)
        if version.tags["validation_md5"] != champion.tags.get("validation_md5"):
            wins, verdict = False, f"version {champion.version} was validated on other images"
        else:
            new, old = _correct(client, version), _correct(client, champion)
            fixed, broken = map(len, significance.changes(old, new))
            finding = significance.paired(fixed, broken, len(new))
            tags |= {"gain": str(finding.difference), "p": str(finding.p)}
            wins = finding.verdict == "better"
            verdict = f"{fixed} of {len(new):,} validation images fixed and {broken} broken"
            verdict += f" against version {champion.version}, p = {finding.p:.2g} by McNemar's test"
    if wins:
        client.set_registered_model_alias(MODEL_NAME, ALIAS, version.version)
    for key, value in tags.items():
        client.set_model_version_tag(MODEL_NAME, version.version, key, value)
    answer = f"{'yes' if wins else 'no'}: {verdict}"
    client.set_model_version_tag(MODEL_NAME, version.version, "champion", answer)  # last: an interrupted one is redone
    print(f"MLflow: {MODEL_NAME} version {version.version}; champion? {answer}")


def _correct(client: "MlflowClient", version: "ModelVersion") -> list[bool]:
    """Return whether this version is right about each validation image, from the table in its run."""
    assert version.run_id  # `register` sets it
    with tempfile.TemporaryDirectory() as folder:
        table = read_table(Path(client.download_artifacts(version.run_id, str(paths.VALIDATION_TABLE), folder)))
    return [row["actual"] == row["predicted"] for row in table]
