import json

from digits import params
from digits.files import flatten, read_json
from digits.learning import networks
from digits.records import names

from ..conftest import ROOT, Change


def figures(stage: str) -> dict[str, float]:
    """Return the figures of this commit, under MLflow's names."""
    file = {"train": "train", "evaluate": "test", "export": "export"}[stage]
    return names.metrics(stage, flatten(read_json(ROOT / f"metrics/{file}.json")))


def test_error_on_validation_comes_first_and_accuracies_become_errors_in_percent() -> None:
    accuracy = json.loads((ROOT / "metrics/train.json").read_bytes())["validation_accuracy"]
    found = figures("train")
    assert next(iter(found)) == "error/validation"
    assert found["error/validation"] == round(100 * (1 - accuracy), 6)


def test_every_figure_has_a_name_of_its_own_in_a_section() -> None:
    found = [name for stage in names.METRICS for name in figures(stage)]
    assert len(set(found)) == len(found)
    assert all(name.count("/") == 1 for name in found)
    assert {name.split("/")[0] for name in found} == {
        *("error", "errors", "loss", "schedule", "size", "probability", "recall", "export"),
    }


def test_bounds_of_the_error_are_those_of_the_accuracy_the_other_way_round() -> None:
    found = figures("evaluate")
    assert found["error/test_low"] < found["error/test"] < found["error/test_high"]


def test_key_without_a_name_keeps_it() -> None:
    assert names.metrics("evaluate", {"novel.measure": 0.5, "recall.7": 0.25}) == {
        "novel/measure": 0.5,
        "recall/7": 0.25,
    }


def test_errors_are_counted_as_evaluate_counts_them() -> None:
    assert [names.errors(1 - wrong / 5000, 5000) for wrong in range(60)] == list(range(60))


def test_params_of_other_networks_are_not_those_that_were_used(change: Change) -> None:
    p = change({"model.name": "mlp"})
    kept = names.used(p.flat())
    assert p.flat().keys() - kept.keys() == {
        key for key in p.flat() if key.startswith(("model.cnn.", "model.resnet.", "model.linear"))
    }
    assert {"model.name", "model.members", "model.mlp.hidden", "train.epochs"} < kept.keys()
    assert names.used(params.load(networks.check).flat()) == kept
