"""What to try next, from what was measured: a few rules, each with its figures.

`evidence` is what evaluate writes to metrics/evidence.json. All of it but `suspects` is measured on the validation
split, so that following a piece of advice does not fit the test set.
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from digits import data, evaluation
from digits.data import Split

SHIFT, ROTATION = 2.0, 15.0  # pixels and degrees by which images are moved to see how much accuracy that costs
SUSPECT = 0.05  # a mistake made with more confidence than this share of the right answers have is worth a look
# A network that is right less often makes such mistakes by itself: about 15 of the 10,000 labels of MNIST's test split
# are wrong (C. G. Northcutt et al., 2021, NeurIPS).
GOOD = 0.99
Evidence = dict[str, Any]


def collect(
    network: nn.Module,
    validation: Split,
    validation_logits: Tensor,
    test_logits: Tensor,
    test_labels: Tensor,
    curve: Sequence[dict[str, float]],
    train: dict[str, float],
    bins: int,
    batch_size: int,
    device: torch.device,
) -> Evidence:
    """Give the evidence: `curve` has the rows of plots/training.csv, `train` is the content of metrics/train.json."""
    report = evaluation.report(validation_logits, validation.labels, bins)
    predicted = validation_logits.argmax(dim=1)
    mistakes = evaluation.confusion(validation.labels, predicted, len(validation.classes)).fill_diagonal_(0)
    pairs = (mistakes + mistakes.T).triu()
    worst = int(pairs.argmax())
    recall = {int(label): share for label, share in report["recall"].items()}
    weakest = min(recall, key=recall.__getitem__)
    confidence = validation_logits.double().softmax(dim=1).amax(dim=1)
    right = confidence[predicted == validation.labels]
    sure = float(right.quantile(SUSPECT)) if len(right) else 1.0
    belief, guess = test_logits.double().softmax(dim=1).max(dim=1)
    order = belief.argsort(descending=True, stable=True)
    suspects = order[(belief >= sure)[order] & (guess != test_labels)[order]].tolist()
    losses = [row["validation_loss"] for row in curve]
    return {
        "classes": len(validation.classes),
        "count": len(validation),
        "errors": report["errors"],
        "accuracy": report["accuracy"],
        "train_accuracy": train["train_accuracy"],
        "epochs": len(curve),
        "best_epoch": losses.index(min(losses)) + 1,
        "last_gain": losses[-2] - losses[-1] if len(losses) > 1 else 0.0,
        "lowest_loss": min(losses),
        "last_loss": losses[-1],
        "calibration_error": report["calibration_error"],
        "confidence": float(confidence.mean()),
        "pair": [validation.classes[worst // len(pairs)], validation.classes[worst % len(pairs)]],
        "pair_errors": int(pairs.max()),
        "weakest": validation.classes[weakest],
        "weakest_count": int((validation.labels == weakest).sum()),
        "weakest_recall": recall[weakest],
        "shifted_accuracy": _moved(network, validation, batch_size, device, shift=SHIFT),
        "rotated_accuracy": _moved(network, validation, batch_size, device, rotation=ROTATION),
        "suspects": suspects,
    }


def _moved(network: nn.Module, split: Split, batch_size: int, device: torch.device, **amount: float) -> float:
    """Give the accuracy on images that are all moved by `amount`, the mean of both directions."""
    names = ("rotation", "scale", "shear", "shift", "shift")  # what each of the draws is for
    found = []
    for direction in (0.0, 1.0):
        draws = torch.tensor([[direction if name in amount else 0.5] for name in names])
        amounts = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "shear": 0.0} | amount
        parts = [
            data.augment(data.to_float(images), draws.expand(-1, len(images)), **amounts)
            for images in split.images.split(data.BLOCK)
        ]
        moved = Split((torch.cat(parts) * 255).round().to(torch.uint8), split.labels, split.classes)
        found.append(evaluation.score(evaluation.predict(network, moved, batch_size, device), split.labels)[1])
    return sum(found) / 2


def _fit(e: Evidence) -> str | None:
    gap = e["train_accuracy"] - e["accuracy"]
    if gap > evaluation.margin(e["train_accuracy"], e["accuracy"], e["count"]):
        return (
            f"overfitting: {e['train_accuracy']:.2%} of training images, {e['accuracy']:.2%} of validation images; "
            "more augmentation or dropout, or model.members"
        )
    if e["errors"] and e["train_accuracy"] < 0.995:
        return (
            f"underfitting: {e['train_accuracy']:.2%} of the images it learned from, {e['accuracy']:.2%} of others; "
            "more epochs, a larger network, or less augmentation"
        )
    return None


def _length(e: Evidence) -> str | None:
    if e["best_epoch"] == e["epochs"] and e["last_gain"] > 0.01 * e["last_loss"]:
        return (
            f"the validation loss still falls at the end, by {e['last_gain']:.4f} to {e['last_loss']:.4f} in the last "
            "epoch: more train.epochs"
        )
    if e["last_loss"] > 1.05 * e["lowest_loss"]:
        return (
            f"the validation loss was {e['lowest_loss']:.4f} after epoch {e['best_epoch']} of {e['epochs']}, and is "
            f"{e['last_loss']:.4f} now: fewer train.epochs, or train.keep best"
        )
    return None


def _pair(e: Evidence) -> str | None:
    if e["pair_errors"] < max(3, 0.1 * e["errors"]):
        return None
    return (
        f"{e['pair'][0]} and {e['pair'][1]} are taken for each other in {e['pair_errors']} of {e['errors']} errors: "
        "what tells them apart may be lost by cropping or augmentation"
    )


def _calibration(e: Evidence) -> str | None:
    if e["calibration_error"] < 0.02:
        return None
    if e["confidence"] < e["accuracy"]:
        return (
            f"too little confidence: {e['confidence']:.2%} on average where {e['accuracy']:.2%} are right: less "
            "train.label_smoothing"
        )
    return (
        f"too much confidence: {e['confidence']:.2%} on average where {e['accuracy']:.2%} are right: more "
        "train.label_smoothing or augmentation"
    )


def _class(e: Evidence) -> str | None:
    count = e["weakest_count"]
    z = NormalDist().inv_cdf(1 - 0.025 / e["classes"])  # the worst of so many is bad by chance alone (Bonferroni)
    _, high = evaluation.wilson(round(e["weakest_recall"] * count), count, z)
    if high >= e["accuracy"]:
        return None
    return (
        f"class {e['weakest']} is the weakest by more than chance: {e['weakest_recall']:.2%} of its {count} images, "
        f"{e['accuracy']:.2%} of all: more images of it would help most"
    )


def _movement(e: Evidence, found: float, moved: str, knob: str) -> str | None:
    if e["accuracy"] - found <= evaluation.margin(e["accuracy"], found, e["count"]):
        return None
    return f"{found:.2%} of images {moved}, {e['accuracy']:.2%} as they are: more {knob}"


def _shift(e: Evidence) -> str | None:
    return _movement(e, e["shifted_accuracy"], f"shifted by {SHIFT:g} pixels both ways", "augmentation.shift")


def _rotation(e: Evidence) -> str | None:
    return _movement(e, e["rotated_accuracy"], f"rotated by {ROTATION:g} degrees", "augmentation.rotation")


def _labels(e: Evidence) -> str | None:
    if not e["suspects"] or e["accuracy"] < GOOD:
        return None
    listed = ", ".join(map(str, e["suspects"][:10])) + (", …" if len(e["suspects"]) > 10 else "")
    return (
        f"labels that may be wrong: {len(e['suspects'])} in the test split (places {listed}), whose images are taken "
        f"for another class with more confidence than {SUSPECT:.0%} of the right answers have: look at them"
    )


RULES: tuple[Callable[[Evidence], str | None], ...] = (
    _fit, _length, _pair, _class, _shift, _rotation, _calibration, _labels,
)  # fmt: skip


def suggest(evidence: Evidence) -> list[str]:
    """Give a line for each rule that the evidence speaks for, the most promising first."""
    return [line for rule in RULES if (line := rule(evidence))]


def listed(evidence: Evidence) -> str:
    """Give the lines of `suggest` as a list in Markdown."""
    return "\n".join(f"- {line}" for line in suggest(evidence)) or "- nothing that the figures point to"
