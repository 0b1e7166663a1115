"""Stage 5: the trained model as ONNX and pt2 files with a model card, each loaded again and scored on the test set.

What is exported is calibrated: its logits are divided by the temperature that evaluate found. Fails if an exported file
predicts another class than the trained model for any test image, or if a logit is further off than `export.tolerance`.
"""

import copy
from dataclasses import asdict

import torch

from digits import params, paths, pipeline
from digits.errors import run
from digits.files import read_as, write_json, write_text
from digits.images import splits
from digits.images.statistics import Statistics
from digits.learning import evaluation, exporting, models, networks, runtime
from digits.learning.curve import TrainMetrics
from digits.learning.layers import Calibrated
from digits.learning.scores import Evidence, Scores
from digits.records import recorder
from digits.reports import card


def main() -> None:
    reading = pipeline.Reading("export")
    p = params.load(networks.check)
    reading.prove()
    device = runtime.prepare(p.runtime, "cpu")  # where everyone can run what is exported
    network, description = models.load(paths.MODEL)
    test, batch_size = splits.load(paths.TEST, in_order=True), p.runtime.batch_size

    fast = copy.deepcopy(network).to(memory_format=torch.channels_last)  # takes half the time
    trained = evaluation.predict(fast, test, batch_size, device)
    scores = read_as(Scores, paths.TEST_METRICS)
    temperature = scores.calibrated.temperature
    calibrated = Calibrated(network, temperature).eval()
    program = exporting.capture(calibrated, description.shape)
    exporting.write_onnx(program, paths.ONNX, p.export.opset, description)
    exporting.write_pt2(program, paths.PT2, description)
    found = {
        paths.ONNX: exporting.run_onnx(paths.ONNX, test, batch_size, p.runtime.threads),
        paths.PT2: exporting.run_pt2(paths.PT2, test, batch_size),
    }
    exported = {}
    for path, logits in found.items():
        one = exported[path.suffix[1:]] = exporting.verify(path, logits, trained, temperature, p.export.tolerance)
        difference = f"logits within {one.max_abs_difference:.1e}"
        print(f"{path.name}: {one.bytes:,} bytes, every prediction as trained, {difference}")
    write_json(paths.EXPORT_METRICS, {name: asdict(one) for name, one in exported.items()})

    text = card.model_card(
        p.data.name,
        description,
        read_as(Statistics, paths.DATASET_METRICS),
        read_as(TrainMetrics, paths.TRAIN_METRICS),
        scores,
        exported,
        read_as(Evidence, paths.EVIDENCE),
        exporting.operations(network, description.shape),
        torch.__version__.split("+")[0],
    )
    write_text(paths.MODEL_CARD, text)
    reading.check()
    recorder.record(p, "export", device)
    reading.check()  # again: the record may take seconds


if __name__ == "__main__":
    run(main)
