"""Stage 5: the trained model as ONNX and pt2 files with a model card, each loaded again and scored on the test set.

Fails if an exported file predicts another class than the trained model for any test image, or if a logit is further
off than `export.tolerance`.
"""

from torch import Tensor

from digits import advice, data, evaluation, exporting, lineage, models, params, paths, runtime, tracking
from digits.command import UserError, run
from digits.files import read_json, write_json, write_text


def main() -> None:
    p = params.load()
    lineage.inputs("export")
    # On the CPU, where everyone can run what is exported.
    device = runtime.prepare("cpu", p.runtime.threads, p.runtime.reproducibility)
    network, description = models.load(paths.MODEL)
    test, batch_size = data.load(paths.TEST, in_order=True), p.runtime.batch_size

    expected = evaluation.predict(network, test, batch_size, device)
    exporting.write_onnx(network, paths.ONNX, p.export.opset, description)
    exporting.write_pt2(network, paths.PT2, description)
    found = {
        paths.ONNX: exporting.run_onnx(paths.ONNX, test, batch_size, p.runtime.threads),
        paths.PT2: exporting.run_pt2(paths.PT2, test, batch_size),
    }
    metrics = {}
    for path, logits in found.items():
        difference = compare(logits, expected, p.export.tolerance, str(path))
        _, accuracy = evaluation.score(logits, test.labels)
        size = path.stat().st_size
        metrics[path.suffix[1:]] = {"bytes": size, "accuracy": accuracy, "max_abs_difference": difference}
        print(f"{path}: {size:,} bytes, accuracy {accuracy:.2%}, logits within {difference:.1e} of the trained model")
    write_json(paths.EXPORT_METRICS, metrics)

    results = {path.stem: read_json(path) for path in (paths.DATASET_METRICS, paths.TRAIN_METRICS, paths.TEST_METRICS)}
    suggestions = advice.listed(read_json(paths.EVIDENCE))
    write_text(
        paths.MODEL_CARD, exporting.model_card(p.data.name, description, results | {"export": metrics}, suggestions)
    )
    tracking.record(p, "export", device)


def compare(found: Tensor, expected: Tensor, tolerance: float, place: str) -> float:
    """Give the largest difference of any logit. Raises UserError if it exceeds `tolerance`, or a class differs."""
    difference = float((found - expected).abs().max())
    changed = int((found.argmax(dim=1) != expected.argmax(dim=1)).sum())
    if changed or not difference <= tolerance:
        raise UserError(
            f"{place}: not the trained model: {changed} of {len(expected)} test images get another class, logits "
            f"differ by {difference:.2g} (allowed by params.yaml: export.tolerance: {tolerance:g})"
        )
    return difference


if __name__ == "__main__":
    run(main)
