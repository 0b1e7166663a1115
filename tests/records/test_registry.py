from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from digits import paths
from digits.files import md5, write_json, write_table
from digits.images import splits
from digits.images.batches import to_float
from digits.learning import evaluation, models, networks
from digits.learning.models import Description
from digits.records import registry

from ..conftest import CLASSES, bars
from .conftest import experiment

COUNT = 40  # validation images


@pytest.fixture
def model(client: MlflowClient, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a registered model of this test's own, without versions."""
    name = str(request.node.name)
    monkeypatch.setattr(registry, "MODEL_NAME", name)
    client.create_registered_model(name)
    return name


def version(client: MlflowClient, wrong: set[int], images: str = "1" * 32) -> ModelVersion:
    """Return a new version whose run has a table of predictions, wrong about these validation images."""
    run_id = client.create_run(experiment(client)).info.run_id
    rows = [{"actual": "a", "predicted": "b" if place in wrong else "a"} for place in range(COUNT)]
    write_table(paths.VALIDATION_TABLE, ["actual", "predicted"], rows)
    client.log_artifact(run_id, str(paths.VALIDATION_TABLE), paths.VALIDATION_TABLE.parent.as_posix())
    tags = {"validation_md5": images}
    return client.create_model_version(registry.MODEL_NAME, str(Path("model").resolve()), run_id, tags)


def decide(client: MlflowClient, new: ModelVersion) -> tuple[str, dict[str, str]]:
    """Let a version become champion or not; return the champion then, and the tags of the version."""
    registry._decide(client, new)
    champion = client.get_model_version_by_alias(new.name, "champion")
    return str(champion.version), client.get_model_version(new.name, new.version).tags


def test_first_version_is_champion(client: MlflowClient, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    champion, tags = decide(client, version(client, {1, 2, 3}))
    assert champion == "1"
    assert tags["champion"] == "yes: the first"
    assert "p" not in tags
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
    champion, tags = decide(client, version(client, new))
    assert champion == ("2" if wins else "1")
    assert tags["champion"].startswith("yes: " if wins else "no: ")
    assert f"{len(old - new)} of {COUNT} validation images fixed and {len(new - old)} broken" in tags["champion"]
    assert tags["compared_with_version"] == "1"
    assert float(tags["gain"]) == pytest.approx((len(old) - len(new)) / COUNT)
    assert (float(tags["p"]) < 0.05 and float(tags["gain"]) > 0) == wins
    assert not [key for key in tags if "test" in key]


@pytest.mark.usefixtures("model")
def test_version_that_was_validated_on_other_images_does_not_become_champion(client: MlflowClient) -> None:
    decide(client, version(client, set(range(20))))
    champion, tags = decide(client, version(client, set(), images="2" * 32))
    assert champion == "1"
    assert tags["champion"] == "no: version 1 was validated on other images"


@pytest.mark.slow
def test_network_becomes_a_version_once_with_what_it_predicts(client: MlflowClient, model: str) -> None:
    torch.manual_seed(0)
    network, test = networks.build("linear", len(CLASSES), {}).eval(), bars(6)
    models.save(network, Description("linear", list(CLASSES), {}, {}, {}, ""), paths.MODEL)
    for path in (paths.TEST, paths.VALIDATION):
        splits.save(test, path)
    write_json(paths.TRAIN_METRICS, {"validation_accuracy": 0.75})
    predictions = evaluation.predict(network, test, 6, torch.device("cpu"))
    write_json(paths.TEST_METRICS, evaluation.scores(predictions, 10, temperature=0.5).as_json())

    run_id = client.create_run(experiment(client)).info.run_id
    registry.register(client, run_id)
    (first,) = client.search_model_versions(f"name = '{model}'")
    assert first.run_id == run_id
    assert first.tags == {
        "model_md5": md5(paths.MODEL),
        "validation_md5": md5(paths.VALIDATION),
        "validation_accuracy": "0.75",
        "champion": "yes: the first",
    }
    loaded = mlflow.pyfunc.load_model(f"models:/{model}@champion")
    images = to_float(test.images)
    np.testing.assert_allclose(loaded.predict(images.numpy()), 2 * predictions.logits.numpy(), atol=1e-5)

    client.delete_registered_model_alias(model, "champion")  # as if the decision had been interrupted
    client.delete_model_version_tag(model, "1", "champion")
    registry.register(client, client.create_run(experiment(client)).info.run_id)
    (again,) = client.search_model_versions(f"name = '{model}'")
    assert again.tags == first.tags
    assert client.get_model_version_by_alias(model, "champion").version == again.version
