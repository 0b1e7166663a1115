"""The exported network as a version in MLflow's model registry, and which version is the champion.

Each new network becomes a version; the alias `champion` names the one that validation images have shown to be best.
"""

from typing import TYPE_CHECKING

import torch

from digits import data, evaluation, models, paths
from digits.datasets import SIDE
from digits.files import md5, read_json

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
    # No names: with one, mlflow.pyfunc would hand the network a dictionary.
    image = TensorSpec(np.dtype(np.float32), (-1, 1, SIDE, SIDE))
    logits = TensorSpec(np.dtype(np.float32), (-1, len(description.classes)))
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pytorch.log_model(
            network,
            name="model",
            signature=ModelSignature(Schema([image]), Schema([logits])),
            # Two images: a batch of one would be frozen into the saved graph.
            input_example=data.to_float(data.load(paths.TEST).images[:2]).numpy(),
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],  # finding them out takes mlflow 9 s
        )
    tags = {
        "model_md5": md5(paths.MODEL),
        "validation_md5": md5(paths.VALIDATION),
        "validation_accuracy": str(read_json(paths.TRAIN_METRICS)["validation_accuracy"]),
        "validation_count": str(read_json(paths.DATASET_METRICS)["validation"]["count"]),
    }
    known = client.search_model_versions(f"name = '{MODEL_NAME}' and tags.model_md5 = '{tags['model_md5']}'")
    version = known[0] if known else mlflow.register_model(logged.model_uri, MODEL_NAME, tags=tags)
    if "champion" not in version.tags:
        _decide(client, version)


def _decide(client: "MlflowClient", version: "ModelVersion") -> None:
    """Move the alias to this version if validation images show it to be better by more than chance, or there is none.

    The test set has no say in it. Figures and decision become tags of the version.
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
            new, old = (float(one.tags["validation_accuracy"]) for one in (version, champion))
            margin = evaluation.margin(new, old, int(version.tags["validation_count"]))
            tags |= {"gain": str(new - old), "margin": str(margin)}
            wins = new - old > margin
            verdict = (
                f"{new:.2%} of validation images against {old:.2%} of version {champion.version}, where chance may "
                f"give {margin:.2%}"
            )
    if wins:
        client.set_registered_model_alias(MODEL_NAME, ALIAS, version.version)
    for key, value in tags.items():
        client.set_model_version_tag(MODEL_NAME, version.version, key, value)
    answer = f"{'yes' if wins else 'no'}: {verdict}"
    client.set_model_version_tag(MODEL_NAME, version.version, "champion", answer)  # last: what dies half way is redone
    print(f"MLflow: {MODEL_NAME} version {version.version}; champion? {answer}")
