"""Stage 4: the trained model on the test set, the only stage that learns anything from it.

Accuracy is correct images over all images, with Wilson's 95 % interval; nothing is chosen here. The prediction for each
image of the validation and the test split is written down, for `python -m digits compare`; the stage ends with what the
figures suggest to try next.
"""

from dataclasses import asdict

from digits import params, paths, pipeline
from digits.errors import run
from digits.files import read_as, write_json
from digits.images import splits
from digits.learning import curve, evaluation, evidence, models, networks, runtime
from digits.learning.curve import TrainMetrics
from digits.records import runs
from digits.reports import advice
from digits.reports.figures import evaluate as figures


def main() -> None:
    p = params.load(networks.check)
    pipeline.inputs("evaluate")
    device = runtime.prepare(p.runtime)
    network, _ = models.load(paths.MODEL)
    validation, test = (
        evaluation.predict(network.to(device), splits.load(path, in_order=True), p.runtime.batch_size, device)
        for path in (paths.VALIDATION, paths.TEST)
    )
    scores = evaluation.scores(test, p.evaluate.bins)
    write_json(paths.TEST_METRICS, asdict(scores))
    validation.write(paths.VALIDATION_TABLE)
    test.write(paths.CONFUSION_TABLE)

    figures.confusion_matrix(test, paths.CONFUSION)
    figures.misclassified(test, p.evaluate.gallery, paths.MISCLASSIFIED)
    figures.reliability(evaluation.reliability(test, p.evaluate.bins), paths.RELIABILITY)

    print(
        f"test accuracy {scores.accuracy:.2%} (95 % interval {scores.accuracy_low:.2%} to {scores.accuracy_high:.2%}), "
        f"{scores.errors} errors in {scores.count:,}"
    )
    epochs, train = curve.read(paths.CURVE_TABLE), read_as(TrainMetrics, paths.TRAIN_METRICS)
    found = evidence.collect(network, validation, test, epochs, train, p.evaluate.bins, p.runtime.batch_size, device)
    write_json(paths.EVIDENCE, asdict(found))
    print(f"to try next:\n{advice.listed(found)}")
    runs.record(p, "evaluate", device)


if __name__ == "__main__":
    run(main)
