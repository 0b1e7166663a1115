"""How MLflow calls what the files say.

Its pages group charts by what stands before a slash, preset them to the metric that was logged first, and round to
three digits, to which 99.45 % and 99.52 % are the same. Hence errors, in percent and as counts, and sections whose
alphabetical order, that of the page that compares runs, has errors first.

What is read back comes from the files of a run, so that runs logged under other names remain readable.
"""

from collections.abc import Mapping
from typing import Any

KEY = "mlflow.digits."  # prefix of the tags by which runs are looked up; pages show no tag that begins with mlflow
SECONDS = "time/training_seconds"  # the only metric that no file has

ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")  # how the keys of accuracies end
# By stage, the metric of each key of its JSON file; `{}` is what stands before the last dot. In the order of logging.
METRICS = {
    "train": {
        "validation_accuracy": "error/validation",
        "train_accuracy": "error/train",
        "validation_loss": "loss/validation",
        "train_loss": "loss/train",
        "learning_rate": "schedule/learning_rate",
        "epochs": "schedule/epochs",
        "kept_epoch": "schedule/kept_epoch",
        "parameters": "size/parameters",
    },
    "evaluate": {
        "accuracy": "error/test",
        "accuracy_low": "error/test_high",
        "accuracy_high": "error/test_low",
        "errors": "errors/test",
        "count": "size/test_images",
        "loss": "loss/test",
        "calibration_error": "probability/calibration_error",
        "macro_f1": "recall/macro_f1",
        "calibrated.temperature": "probability/temperature",
        "calibrated.loss": "loss/test_calibrated",
        "calibrated.calibration_error": "probability/calibration_error_calibrated",
        "reviewed.accuracy": "error/test_reviewed",
        "reviewed.errors": "errors/test_reviewed",
        "reviewed.count": "size/test_images_reviewed",
    },
    "export": {
        "bytes": "size/{}_bytes",
        "accuracy": "export/{}_error",
        "max_abs_difference": "export/{}_difference",
    },
}


def metrics(stage: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Return the flattened content of a stage's JSON file, or an epoch of train's, under MLflow's names.

    Accuracies become errors in percent. A key without a name of its own keeps it, in a section: `recall.0` becomes
    `recall/0`.
    """
    known, found = METRICS[stage], {}
    for key in [key for key in known if key in figures] + [key for key in figures if key not in known]:
        before, _, last = key.rpartition(".")
        name = known.get(key) or known.get(last, key.replace(".", "/")).format(before)
        found[name] = round(100 * (1 - figures[key]), 6) if last.endswith(ACCURACY) else figures[key]
    return found


def errors(accuracy: float, count: int) -> int:
    """Return the number of wrong answers among `count`."""
    return round((1 - accuracy) * count)


def network(key: str) -> str | None:
    """Return the network whose knob a flattened param is, as `cnn` for `model.cnn.crop`, or None."""
    section, *names = key.split(".")
    return names[0] if section == "model" and len(names) > 1 else None


def used(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return flattened params without those of networks that were not used."""
    return {key: value for key, value in params.items() if network(key) in (None, params.get("model.name"))}
