"""The exported network as a version in MLflow's model registry, and which version is the champion.

Each new network becomes a version; the alias `champion` names the one that proved best on validation images.
"""

import json
import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digits import paths
from digits.errors import reason
from digits.files import md5, parse_table
from digits.records import pages, served
from digits.records.names import KEY
from digits.reports import significance

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_NAME, ALIAS = "mnist-classifier", "champion"
ABOUT = f"A version for each network; `@{ALIAS}` is the best on validation images, by more than chance."


@dataclass(frozen=True)
class Verdict:
    """Whether a network is to be champion, and why, in words."""

    wins: bool
    words: str


def register(client: "MlflowClient", run_id: str) -> str:
    """Log the trained network as an MLflow model of this run; a new one becomes a version, and may become champion.

    Return in words which version it is, and whether it is champion.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(MODEL_NAME)
    except MlflowException:
        client.create_registered_model(MODEL_NAME, description=ABOUT)
    model_id = _log_model(client, run_id)
    checksum = md5(paths.MODEL)
    version = _version_of(client, checksum)
    if not version:
        # Not mlflow.register_model, which prints two lines.
        tags = {f"{KEY}model": checksum}  # a page shows them one under the other
        version = client.create_model_version(MODEL_NAME, f"models:/{model_id}", run_id, tags, model_id=model_id)
    if ALIAS not in version.tags:
        _decide(client, version)
    said = client.get_model_version(MODEL_NAME, version.version).description or ""
    return said.rpartition("\n\n")[2] or f"version {version.version}"  # without a description: an old one


def _log_model(client: "MlflowClient", run_id: str) -> str:
    """Log the network as a model of this run, named after it; return the model's id."""
    import mlflow

    name = client.get_run(run_id).info.run_name or "model"
    with mlflow.start_run(run_id=run_id):
        images = {f"{KEY}validation": md5(paths.VALIDATION)}  # on which it is judged, should its run be deleted
        logged = served.log(name=re.sub(r"[^\w-]", "-", name), tags=images, **content())
    return str(logged.model_id)


def content() -> dict[str, Any]:
    """Return what MLflow is to log of the network in this folder: `served.save_model` takes it."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from safetensors import safe_open

    with safe_open(paths.TEST, framework="numpy") as file:
        images, classes = file.get_slice("images"), json.loads(file.metadata()["classes"])
        # No names: with one, mlflow.pyfunc would hand the network a dictionary.
        image = TensorSpec(np.dtype(np.float32), (-1, *images.get_shape()[1:]))
        logits = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
        return {
            "signature": ModelSignature(Schema([image]), Schema([logits])),
            "input_example": images[:2].astype(np.float32) / 255,
            # Inferring them takes mlflow seconds.
            "pip_requirements": [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime")],
        }


def _version_of(client: "MlflowClient", checksum: str) -> "ModelVersion | None":
    """Return the version that has the network with this MD5; old versions have it in a tag of another name."""
    for tag in (f"{KEY}model", "model_md5"):
        if found := client.search_model_versions(f"name = '{MODEL_NAME}' and tags.`{tag}` = '{checksum}'"):
            return found[0]
    return None


def verdict(client: "MlflowClient") -> str:
    """Return in words how the predictions in this folder compare with the champion's; nothing without a champion."""
    champion = _champion(client)
    if not champion:
        return ""
    if champion.tags.get(f"{KEY}model") == md5(paths.MODEL):
        return f"the champion, version {champion.version}"
    return _judge(client, champion, md5(paths.VALIDATION), _right(paths.VALIDATION_TABLE.read_bytes())).words


def _champion(client: "MlflowClient") -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(MODEL_NAME, ALIAS)
    except MlflowException:
        return None


def _decide(client: "MlflowClient", version: "ModelVersion") -> None:
    """Move the alias to this version if it is better on validation images by more than chance, or there is none.

    By `significance.paired`, from the predictions that evaluate wrote; the test set has no say. The answer becomes part
    of the version's description.
    """
    champion = _champion(client) or _successor(client, version)
    found = Verdict(wins=True, words="the first" if int(version.version) == 1 else "the only one, others were deleted")
    if champion:
        found = _judge(client, champion, _images(client, version), _correct(client, version))
        if not found.wins and not _champion(client):
            client.set_registered_model_alias(MODEL_NAME, ALIAS, champion.version)
    if found.wins:
        client.set_registered_model_alias(MODEL_NAME, ALIAS, version.version)
    answer = f"{'champion' if found.wins else 'not champion'}, version {version.version}: {found.words}"
    client.update_model_version(MODEL_NAME, version.version, f"{pages.figures(evaluated=True)}\n\n{answer}")
    # Last: an interrupted one is redone.
    client.set_model_version_tag(MODEL_NAME, version.version, ALIAS, "yes" if found.wins else "no")
    print(f"MLflow: {MODEL_NAME} version {version.version}; champion? {'yes' if found.wins else 'no'}: {found.words}")


def _successor(client: "MlflowClient", newest: "ModelVersion") -> "ModelVersion | None":
    """Return the version that is champion where the one that was has been deleted: the last that won, or the last."""
    others = [one for one in client.search_model_versions(f"name = '{MODEL_NAME}'") if one.version != newest.version]
    return max(others, key=lambda one: (one.tags.get(ALIAS, "").startswith("yes"), int(one.version)), default=None)


def _judge(client: "MlflowClient", champion: "ModelVersion", images: str, right: list[bool]) -> Verdict:
    """Compare with the champion, given the MD5 of the validation split and which of its images are right."""
    from mlflow.exceptions import MlflowException

    against = f"version {champion.version}"
    try:
        if images != _images(client, champion):
            return Verdict(wins=False, words=f"{against} was validated on other images")
        before = _correct(client, champion)
    except (MlflowException, OSError, KeyError) as error:
        return Verdict(wins=False, words=f"{against} has lost its predictions: {reason(error)}")
    fixed, broken = map(len, significance.changes(before, right))
    finding = significance.paired(fixed, broken, len(right))
    changes = f"{fixed} of {len(right):,} validation images fixed and {broken} broken against {against}"
    return Verdict(finding.verdict == "better", f"{finding.words()}; {changes}")


def _images(client: "MlflowClient", version: "ModelVersion") -> str:
    """Return the MD5 of the validation split of a version: from its run, its model, or its tags if it is an old one."""
    from mlflow.exceptions import MlflowException

    if found := version.tags.get("validation_md5"):
        return str(found)
    try:
        read = client.get_run(str(version.run_id)).inputs
    except MlflowException:  # the run has been deleted for good
        return str(client.get_logged_model(str(version.source).removeprefix("models:/")).tags[f"{KEY}validation"])
    return next((one.dataset.digest for one in read.dataset_inputs if pages.is_validation(one)), "") if read else ""


def _correct(client: "MlflowClient", version: "ModelVersion") -> list[bool]:
    """Return whether this version is right about each validation image, from the table in its run or its own."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    assert version.run_id  # `register` sets it
    with tempfile.TemporaryDirectory() as folder:
        try:
            table = client.download_artifacts(version.run_id, str(paths.VALIDATION_TABLE), folder)
        except (MlflowException, OSError):  # the run has been deleted for good
            address = f"models:/{MODEL_NAME}/{version.version}/{paths.VALIDATION_TABLE.name}"
            table = download_artifacts(artifact_uri=address, dst_path=folder)
        return _right(Path(table).read_bytes())


def _right(table: bytes) -> list[bool]:
    return [row["actual"] == row["predicted"] for row in parse_table(table)]
