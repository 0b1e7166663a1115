"""Stage 4: the trained model on the test set, the only stage that learns anything from it.

Accuracy is correct images over all images, with Wilson's 95 % interval. All that is chosen here is the temperature by
which the exported model divides its logits, and that on the validation split, as are the robustness and what the
figures suggest to try next. The prediction for each image of the validation and the test split is written down, for
`python -m digits compare`.
"""

import shutil
import textwrap
from dataclasses import asdict

import torch

from digits import params, paths, pipeline
from digits.datasets import DATASETS
from digits.errors import run
from digits.files import read_as, write_json, write_table
from digits.images import splits
from digits.learning import curve, evaluation, evidence, models, networks, runtime
from digits.learning.curve import TrainMetrics
from digits.learning.robustness import measure
from digits.records import recorder
from digits.reports import advice
from digits.reports.figures import evaluate as figures


def main() -> None:
    reading = pipeline.Reading("evaluate")
    p = params.load(networks.check)
    reading.prove()
    device = runtime.prepare(p.runtime)
    network, description = models.load(paths.MODEL)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    batch_size, bins = p.runtime.batch_size, p.evaluate.bins
    validation, test = (
        evaluation.predict(network, splits.load(path, in_order=True), batch_size, device)
        for path in (paths.VALIDATION, paths.TEST)
    )
    temperature = evaluation.temperature(validation)
    known = DATASETS.get(p.data.name)
    scores = evaluation.scores(test, bins, temperature, known.rejected if known else ())
    robustness = measure(network, validation.split, temperature, batch_size, device)
    write_json(paths.TEST_METRICS, scores.as_json())
    validation.write(paths.VALIDATION_TABLE)
    test.write(paths.CONFUSION_TABLE)
    write_table(paths.ROBUSTNESS_TABLE, ("severity", *robustness.corrupted), robustness.rows())

    figures.confusion_matrix(test, paths.CONFUSION)
    figures.recall(test, paths.RECALL)
    figures.misclassified(evaluation.calibrated(test, temperature), p.evaluate.gallery, paths.MISCLASSIFIED)
    smoothing = description.training["train"]["label_smoothing"]
    figures.reliability(test, temperature, smoothing, bins, paths.RELIABILITY)
    figures.robustness(robustness, paths.ROBUSTNESS)
    figures.embedding(validation, evaluation.features(network, validation.split, batch_size, device), paths.EMBEDDING)

    print(
        f"test accuracy {scores.accuracy:.2%} (95 % interval {scores.accuracy_low:.2%} to {scores.accuracy_high:.2%}), "
        f"{scores.errors} errors in {scores.count:,}"
    )
    epochs, train = curve.read(paths.CURVE_TABLE), read_as(TrainMetrics, paths.TRAIN_METRICS)
    found = evidence.collect(validation, test, epochs, train, robustness)
    write_json(paths.EVIDENCE, asdict(found))
    print("to try next:")
    for line in advice.listed(found).splitlines():
        print(textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent="  "))
    reading.check()
    recorder.record(p, "evaluate", device)
    reading.check()  # again: the record may take seconds


if __name__ == "__main__":
    run(main)
