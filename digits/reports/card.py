"""The model card, after the template beside this file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from digits.datasets import DATASETS
from digits.files import flatten
from digits.images.severities import described
from digits.images.statistics import Statistics
from digits.learning import curve, exporting
from digits.learning.description import Description
from digits.learning.scores import ORIGINAL, QUANTILES, Evidence, Scores
from digits.reports import advice

HELD_OUT = """
The data had no test images of their own: these were drawn from the same images as the others, by class and seed.
"""
PREPARED = {
    True: "one character, light on dark. Crop to its strokes, scale the longer side to 5/7 of the image with "
    "smoothing, stretch the contrast so that paper is 0 and ink is 1, and put its center of mass in the middle.",
    False: "scale the longer side to that of the image with smoothing, and pad the shorter one with its background.",
}
SEEN = {
    True: "It has seen single, centered, upright characters of one size. On anything else (several digits, letters,\n"
    "  photographs, a blank page)",
    False: "It has seen images of one of its classes each. On anything else",
}
# Of the 1,064 real pictures that `python -m benchmarks.handwriting` can read, most mistakes are of these kinds.
HANDS = """
- The writers of MNIST were American: 1s with a long upstroke and crossed 7s, as much of Europe writes them, are what it
  misreads most on real pictures."""
TEMPLATE = Path(__file__).with_name("model_card.md")


def _absent(classes: list[str], recall: Mapping[str, float]) -> str:
    names = [name for label, name in enumerate(classes) if str(label) not in recall]
    return f"\nNo test image shows {', '.join(names)}: nothing is known of these classes.\n" if names else ""


def model_card(
    data_name: str,
    description: Description,
    dataset: Statistics,
    train: curve.TrainMetrics,
    test: Scores,
    exported: Mapping[str, exporting.Exported],
    evidence: Evidence,
    operations: int,
    torch: str,
) -> str:
    """Return the model card as Markdown, after Mitchell et al., "Model Cards for Model Reporting" (2019).

    It begins with the metadata that Hugging Face reads. `exported` is by suffix; `operations` are the
    multiply-accumulates for one image, `torch` the version.
    """
    known, robustness, runtime = DATASETS.get(data_name), evidence.robustness, description.training["runtime"]
    both: dict[str, Any] = {key: description.knobs[key] for key in ("members", "tta_shift") if key in description.knobs}
    own = {key: value for key, value in description.knobs.items() if key not in both}
    model = {"name": description.name, **both, description.name: own}
    files = [
        f"| `model.{name}` | {one.bytes:,} | {one.accuracy:.2%} | {one.max_abs_difference:.1e} |"
        for name, one in exported.items()
    ]
    recall = [f"| {description.classes[int(label)]} | {share:.2%} |" for label, share in test.recall.items()]
    corruptions = [
        " | ".join([f"| {kind}", *(f"{100 * share:.1f}" for share in shares), f"{described(kind, advice.MIDDLE)} |"])
        for kind, shares in robustness.corrupted.items()
    ]
    reviewed = ""
    if test.reviewed:
        what = f"without the {test.count - test.reviewed.count} images whose labels reviewers rejected"
        reviewed = f"| accuracy {what} | {test.reviewed.accuracy:.2%}, {test.reviewed.errors} errors |\n"
    confidence = {
        kind: found[QUANTILES.index(0.5)] for kind, found in robustness.confidence.items() if kind != ORIGINAL
    }
    images = dataset.train.count * train.epochs
    return TEMPLATE.read_text(encoding="utf-8").format(
        description=description,
        data_name=data_name,
        dataset=dataset,
        train=train,
        test=test,
        robustness=robustness,
        shape=description.shape,
        side=description.shape.side,
        channels=description.shape.channels,
        held_out=HELD_OUT if dataset.test_held_out else "",
        absent=_absent(description.classes, test.recall),
        preparation=PREPARED[description.ink],
        things="single characters" if description.ink else "images",
        seen=SEEN[description.ink],
        hands=HANDS if data_name in ("mnist", "qmnist") else "",
        input=exporting.INPUT,
        output=exporting.OUTPUT,
        torch=torch,
        operations=operations,
        images=images,
        **{key: runtime[key] for key in ("threads", "processes", "precision")},
        datasets=f"datasets:\n- {known.hub}\n" if known and known.hub else "",
        dataset_type=(known.hub if known else "") or data_name,
        data_license=f"{data_name}, {known.license}" if known else "your own",
        count=len(description.classes),
        classes=", ".join(description.classes),
        files="\n".join(files),
        reviewed=reviewed,
        recall="\n".join(recall),
        severity=advice.MIDDLE,
        clean=f"{100 * robustness.accuracy:.1f}",
        corruptions="\n".join(corruptions),
        meaningless=", ".join(f"{kind} {share:.0%}" for kind, share in confidence.items()),
        training_operations=3 * operations * images,
        knobs="\n".join(
            f"| `{key}` | {value} |" for key, value in flatten({"model": model, **description.training}).items()
        ),
        advice=advice.listed(evidence),
    )
