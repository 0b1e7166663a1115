"""Stage 4: the trained model on the test set, the only stage that learns anything from it.

Accuracy is correct images over all images, with Wilson's 95 % interval; nothing is chosen here.
"""

from digits import data, evaluation, figures, lineage, models, params, paths, runtime, tracking
from digits.command import run
from digits.files import write_json, write_text


def main() -> None:
    p = params.load()
    lineage.inputs("evaluate")
    device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
    network, description = models.load(paths.MODEL)
    classes, test = description.classes, data.load(paths.TEST, in_order=True)

    logits = evaluation.predict(network.to(device), test, p.runtime.batch_size, device)
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    report = evaluation.report(logits, test.labels, p.evaluate.bins)
    write_json(paths.TEST_METRICS, report)

    pairs = zip(test.labels.tolist(), predicted.tolist(), strict=True)
    lines = [f"{classes[actual]},{classes[guess]}" for actual, guess in pairs]
    write_text(paths.CONFUSION_TABLE, "\n".join(["actual,predicted", *lines]) + "\n")
    figures.confusion(evaluation.confusion(test.labels, predicted, len(classes)), classes, paths.CONFUSION)
    figures.misclassified(test, confidence, predicted, p.evaluate.gallery, paths.MISCLASSIFIED)
    bins = evaluation.reliability(confidence, predicted == test.labels, p.evaluate.bins)
    figures.reliability(*bins, report["calibration_error"], paths.RELIABILITY)

    print(
        f"test accuracy {report['accuracy']:.2%} (95 % interval {report['accuracy_low']:.2%} to "
        f"{report['accuracy_high']:.2%}), {report['errors']} errors in {report['count']:,}"
    )
    tracking.record(p, "evaluate", device)


if __name__ == "__main__":
    run(main)
