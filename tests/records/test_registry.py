import shutil
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import mlflow.pytorch
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.entities.model_registry import ModelVersion

from digits import paths
from digits.datasets import MNIST_SHAPE
from digits.files import md5, write_json, write_table
from digits.images import splits
from digits.images.batches import to_float
from digits.learning import evaluation, exporting, models, networks
from digits.learning.curve import TrainMetrics
from digits.learning.description import Description
from digits.learning.layers import Calibrated
from digits.records import registry
from digits.records.names import KEY
from digits.reports import significance

from ..conftest import CLASSES, bars
from .conftest import experiment

COUNT = 40  # validation images


@pytest.fixture
def model(client: MlflowClient, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a registered model of this test's own, without versions; write the figures of a result."""
    name = str(request.node.name)
    monkeypatch.setattr(registry, "MODEL_NAME", name)
    client.create_registered_model(name)
    size = {"count": COUNT}
    statistics = {"train": size, "validation": size, "test": size, "pixel_mean": 0.1, "pixel_std": 0.3}
    write_json(paths.DATASET_METRICS, statistics)
    write_json(paths.TRAIN_METRICS, asdict(TrainMetrics(0.1, 0.2, 0.9, 0.75, 1, 1, 7850)))
    logits = torch.nn.functional.one_hot(bars(COUNT).labels, len(CLASSES)).float()
    logits[:4] = logits[:4].roll(1, dims=1)
    scores = evaluation.scores(evaluation.Predictions(bars(COUNT), logits), 10, temperature=0.5)
    write_json(paths.TEST_METRICS, scores.as_json())
    return name


def version(client: MlflowClient, wrong: set[int], images: str = "1" * 32) -> ModelVersion:
    """Return a new version whose run has a table of predictions, wrong about these validation images."""
    run_id = client.create_run(experiment(client)).info.run_id
    rows = [{"actual": "a", "predicted": "b" if place in wrong else "a"} for place in range(COUNT)]
    write_table(paths.VALIDATION_TABLE, ["actual", "predicted"], rows)
    client.log_artifact(run_id, str(paths.VALIDATION_TABLE), paths.VALIDATION_TABLE.parent.as_posix())
    validation = Dataset("bars validation", images, "local", "{}")
    client.log_inputs(run_id, [DatasetInput(validation, [InputTag("mlflow.data.context", "validation")])])
    return client.create_model_version(registry.MODEL_NAME, str(Path("model").resolve()), run_id)


def decide(client: MlflowClient, new: ModelVersion) -> tuple[str, str]:
    """Let a version become champion or not; return the champion then, and what the version says of itself."""
    registry._decide(client, new)
    champion = client.get_model_version_by_alias(new.name, "champion")
    said = client.get_model_version(new.name, new.version)
    assert said.tags == {"champion": "yes" if champion.version == new.version else "no"}
    figures, verdict = str(said.description).split("\n\n")
    assert figures.startswith("25.00 % validation error (95 % interval 14.19 % to 40.19 %), 10.00 % test error (")
    assert verdict.startswith("champion, " if champion.version == new.version else "not champion, ")
    return str(champion.version), verdict


def test_first_version_is_champion(client: MlflowClient, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert decide(client, version(client, {1, 2, 3})) == ("1", "champion, version 1: the first")
    assert capsys.readouterr().out == f"MLflow: {model} version 1; champion? yes: the first\n"


@pytest.mark.parametrize(
    ("old", "new", "wins"),
    [
        (set(range(6)), set(), True),  # p = 2 / 2^6
        (set(range(5)), set(), False),  # p = 2 / 2^5
        (set(range(20)), {0, 30}, True),
        (set(range(20)), set(range(20)), False),
        (set(range(10)), set(range(10, 20)), False),
        (set(), set(range(20)), False),
    ],
)
@pytest.mark.usefixtures("model")
def test_champion_moves_for_a_version_that_is_better_on_validation_by_more_than_chance(
    client: MlflowClient, old: set[int], new: set[int], *, wins: bool
) -> None:
    assert decide(client, version(client, old))[0] == "1"
    champion, said = decide(client, version(client, new))
    assert champion == ("2" if wins else "1")
    fixed, broken = len(old - new), len(new - old)
    finding = significance.paired(fixed, broken, COUNT)
    changes = f"{fixed} of {COUNT} validation images fixed and {broken} broken against version 1"
    assert said.endswith(f"champion, version 2: {finding.words()}; {changes}")
    assert f"p = {finding.p:.2g}" in said
    assert (finding.p < 0.05 and finding.difference > 0) == wins


@pytest.mark.usefixtures("model")
def test_version_that_was_validated_on_other_images_does_not_become_champion(client: MlflowClient) -> None:
    decide(client, version(client, set(range(20))))
    champion, said = decide(client, version(client, set(), images="2" * 32))
    assert champion == "1"
    assert said == "not champion, version 2: version 1 was validated on other images"


@pytest.mark.usefixtures("model")
def test_champion_of_an_old_version_of_this_project_is_compared_with(client: MlflowClient) -> None:
    old = version(client, set(range(20)), images="")
    client.set_model_version_tag(old.name, old.version, "validation_md5", "1" * 32)
    client.set_model_version_tag(old.name, old.version, "champion", "yes: the first")
    client.set_registered_model_alias(old.name, "champion", old.version)
    assert decide(client, version(client, set()))[0] == "2"


@pytest.mark.usefixtures("model")
def test_champion_whose_predictions_are_lost_stays_champion(client: MlflowClient) -> None:
    old = version(client, set(range(20)))
    decide(client, old)
    shutil.rmtree(Path(url2pathname(urlsplit(client.get_run(str(old.run_id)).info.artifact_uri).path)))
    champion, said = decide(client, version(client, set()))
    assert champion == "1"
    assert said.startswith("not champion, version 2: version 1 has lost its predictions: ")


@pytest.mark.usefixtures("model")
def test_without_its_champion_a_registry_compares_with_the_one_before(client: MlflowClient) -> None:
    for wrong in (set(range(30)), set(range(20)), set(range(25)), set(range(2))):
        decide(client, version(client, wrong))
    assert int(client.get_model_version_by_alias(registry.MODEL_NAME, "champion").version) == 4
    client.delete_model_version(registry.MODEL_NAME, "4")
    champion, said = decide(client, version(client, set(range(24))))
    assert (champion, said.rpartition(" ")[2]) == ("2", "2")  # neither the new one nor 3, which had not won
    client.delete_registered_model_alias(registry.MODEL_NAME, "champion")
    assert decide(client, version(client, {1}))[0] == "6"


@pytest.mark.usefixtures("model")
def test_new_champion_of_a_registry_that_was_emptied_says_so(client: MlflowClient) -> None:
    decide(client, version(client, set()))
    client.delete_model_version(registry.MODEL_NAME, "1")
    said = "champion, version 2: the only one, others were deleted"
    assert decide(client, version(client, {1})) == ("2", said)


@pytest.mark.usefixtures("model")
def test_champion_whose_run_was_deleted_is_still_compared_with(client: MlflowClient) -> None:
    old = version(client, {1})
    decide(client, old)
    client.delete_run(str(old.run_id))
    champion, said = decide(client, version(client, set(range(20))))
    assert champion == "1"
    assert said.endswith("0 of 40 validation images fixed and 18 broken against version 1") or "19 broken" in said


@pytest.mark.usefixtures("model")
def test_predictions_here_are_compared_with_those_of_the_champion(client: MlflowClient) -> None:
    paths.MODEL.parent.mkdir(parents=True, exist_ok=True)
    paths.MODEL.write_bytes(b"weights")
    splits.save(bars(6), paths.VALIDATION)
    assert registry.verdict(client) == ""
    champion = version(client, set(range(6)), images=md5(paths.VALIDATION))
    decide(client, champion)
    said = "no evidence of a difference at this sample size: +0.00 % points (95 % interval +0.00 to +0.00), p = 1"
    nothing = f"0 of {COUNT} validation images fixed and 0 broken against version 1"
    assert registry.verdict(client) == f"{said}; {nothing}"
    client.set_model_version_tag(champion.name, champion.version, f"{KEY}model", md5(paths.MODEL))
    assert registry.verdict(client) == "the champion, version 1"


@pytest.mark.slow
def test_network_becomes_a_version_once_with_what_it_predicts(client: MlflowClient, model: str) -> None:
    torch.manual_seed(0)
    network, test = networks.build("linear", len(CLASSES), {}).eval(), bars(6)
    description = Description("linear", list(CLASSES), {}, {}, {}, "")
    models.save(network, description, paths.MODEL)
    program = exporting.capture(Calibrated(network, 0.5).eval(), MNIST_SHAPE)
    exporting.write_onnx(program, paths.ONNX, 18, description)
    exporting.write_pt2(program, paths.PT2, description)
    for path in (paths.TEST, paths.VALIDATION):
        splits.save(test, path)
    predictions = evaluation.predict(network, test, 6, torch.device("cpu"))
    write_json(paths.TEST_METRICS, evaluation.scores(predictions, 10, temperature=0.5).as_json())
    predictions.write(paths.VALIDATION_TABLE)

    run_id = client.create_run(experiment(client)).info.run_id
    registry.register(client, run_id)
    (first,) = client.search_model_versions(f"name = '{model}'")
    assert first.run_id == run_id
    assert first.tags == {f"{KEY}model": md5(paths.MODEL), "champion": "yes"}
    assert (
        client.get_logged_model(str(first.source).removeprefix("models:/")).name == client.get_run(run_id).info.run_name
    )
    loaded = mlflow.pyfunc.load_model(f"models:/{model}@champion")
    images = to_float(test.images)
    np.testing.assert_allclose(loaded.predict(images.numpy()), 2 * predictions.logits.numpy(), atol=1e-5)
    trained = mlflow.pytorch.load_model(f"models:/{model}@champion")
    torch.testing.assert_close(trained(images), 2 * predictions.logits)

    client.delete_registered_model_alias(model, "champion")  # as if the decision had been interrupted
    client.delete_model_version_tag(model, "1", "champion")
    assert registry.register(client, client.create_run(experiment(client)).info.run_id).startswith("champion, ")
    (again,) = client.search_model_versions(f"name = '{model}'")
    assert again.tags == first.tags
    assert client.get_model_version_by_alias(model, "champion").version == again.version

    right = registry._correct(client, again)
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does
    assert registry._images(client, again) == md5(paths.VALIDATION)
    assert registry._correct(client, again) == right == (predictions.logits.argmax(dim=1) == test.labels).tolist()
