"""Stage 5: the trained model as ONNX and pt2 files with a model card, each loaded again and scored on the test set.

Fails if an exported file predicts another class than the trained model for any test image, or if a logit is further
off than `export.tolerance`.
"""

from dataclasses import asdict

from digits import params, paths, pipeline
from digits.errors import run
from digits.files import read_as, write_json, write_text
from digits.images import splits
from digits.images.splits import Statistics
from digits.learning import evaluation, exporting, models, networks, runtime
from digits.learning.curve import TrainMetrics
from digits.learning.evaluation import Scores
from digits.learning.evidence import Evidence
from digits.records import runs
from digits.reports import advice, card


def main() -> None:
    p = params.load(networks.check)
    pipeline.inputs("export")
    device = runtime.prepare(p.runtime, "cpu")  # where everyone can run what is exported
    network, description = models.load(paths.MODEL)
    test, batch_size = splits.load(paths.TEST, in_order=True), p.runtime.batch_size

    expected = evaluation.predict(network, test, batch_size, device)
    exporting.write_onnx(network, paths.ONNX, p.export.opset, description)
    exporting.write_pt2(network, paths.PT2, description)
    found = {
        paths.ONNX: exporting.run_onnx(paths.ONNX, test, batch_size, p.runtime.threads),
        paths.PT2: exporting.run_pt2(paths.PT2, test, batch_size),
    }
    exported = {}
    for path, logits in found.items():
        one = exported[path.suffix[1:]] = exporting.verify(path, logits, expected, p.export.tolerance)
        print(
            f"{path}: {one.bytes:,} bytes, accuracy {one.accuracy:.2%}, logits within {one.max_abs_difference:.1e} of "
            "the trained model"
        )
    write_json(paths.EXPORT_METRICS, {name: asdict(one) for name, one in exported.items()})

    text = card.model_card(
        p.data.name,
        description,
        read_as(Statistics, paths.DATASET_METRICS),
        read_as(TrainMetrics, paths.TRAIN_METRICS),
        read_as(Scores, paths.TEST_METRICS),
        exported,
        advice.listed(read_as(Evidence, paths.EVIDENCE)),
    )
    write_text(paths.MODEL_CARD, text)
    runs.record(p, "export", device)


if __name__ == "__main__":
    run(main)
