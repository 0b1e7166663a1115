"""Stage 4: the trained model on the test set, the only stage that learns anything from it.

Accuracy is correct images over all images, with Wilson's 95 % interval; nothing is chosen here. The prediction for each
image of the validation and the test split is written down, for `digits.compare`; what the figures suggest to try next
ends the stage.
"""

from torch import Tensor

from digits import advice, data, evaluation, figures, lineage, models, params, paths, runtime, tracking
from digits.command import run
from digits.data import Split
from digits.files import read_json, read_table, write_json, write_text


def main() -> None:
    p = params.load()
    lineage.inputs("evaluate")
    device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
    network, description = models.load(paths.MODEL)
    classes, batch_size = description.classes, p.runtime.batch_size
    validation, test = (data.load(path, in_order=True) for path in (paths.VALIDATION, paths.TEST))

    held_out, logits = (
        evaluation.predict(network.to(device), split, batch_size, device) for split in (validation, test)
    )
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    report = evaluation.report(logits, test.labels, p.evaluate.bins)
    write_json(paths.TEST_METRICS, report)
    write_text(paths.CONFUSION_TABLE, table(test, logits))
    write_text(paths.VALIDATION_TABLE, table(validation, held_out))

    figures.confusion(evaluation.confusion(test.labels, predicted, len(classes)), classes, paths.CONFUSION)
    figures.misclassified(test, confidence, predicted, p.evaluate.gallery, paths.MISCLASSIFIED)
    bins = evaluation.reliability(confidence, predicted == test.labels, p.evaluate.bins)
    figures.reliability(*bins, report["calibration_error"], paths.RELIABILITY)

    print(
        f"test accuracy {report['accuracy']:.2%} (95 % interval {report['accuracy_low']:.2%} to "
        f"{report['accuracy_high']:.2%}), {report['errors']} errors in {report['count']:,}"
    )
    curve = [{key: float(value) for key, value in row.items()} for row in read_table(paths.CURVE_TABLE)]
    train = read_json(paths.TRAIN_METRICS)
    evidence = advice.collect(
        network, validation, held_out, logits, test.labels, curve, train, p.evaluate.bins, batch_size, device
    )
    write_json(paths.EVIDENCE, evidence)
    print(f"to try next:\n{advice.listed(evidence)}")
    tracking.record(p, "evaluate", device)


def table(split: Split, logits: Tensor) -> str:
    """Give the class and the predicted class of each image as CSV, in the order of the split."""
    pairs = zip(split.labels.tolist(), logits.argmax(dim=1).tolist(), strict=True)
    lines = [f"{split.classes[actual]},{split.classes[guess]}" for actual, guess in pairs]
    return "\n".join(["actual,predicted", *lines]) + "\n"


if __name__ == "__main__":
    run(main)
