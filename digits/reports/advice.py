"""What to try next, from what was measured: a few rules, each with its figures."""

from statistics import NormalDist

from digits.images.severities import described
from digits.learning.scores import SUSPECT, Evidence, margin, wilson

# A less accurate network makes confident mistakes on its own: about 15 of the 10,000 test labels of MNIST are wrong
# (C. G. Northcutt et al., 2021, NeurIPS).
GOOD = 0.99
MIDDLE = 3  # the severity, of 5, at which a corruption is worth advice
KNOBS = ("shift", "rotation", "scale")  # corruptions that a knob of augmentation is for


def _fit(e: Evidence) -> str | None:
    both = f"accuracy {e.train_accuracy:.2%} on training images, {e.accuracy:.2%} on validation images"
    if e.train_accuracy - e.accuracy > margin(e.train_accuracy, e.accuracy, e.count):
        return f"overfitting: {both}: more augmentation or dropout, or model.members"
    if e.errors and e.train_accuracy < 0.995:
        return f"underfitting: {both}: more epochs, a larger network, or less augmentation"
    return None


def _length(e: Evidence) -> str | None:
    if e.best_epoch == e.epochs and e.last_gain > 0.01 * e.last_loss:
        return f"validation loss still falling, by {e.last_gain:.4f} to {e.last_loss:.4f} at the end: more train.epochs"
    if e.last_loss > 1.05 * e.lowest_loss:
        lowest = f"{e.lowest_loss:.4f} after epoch {e.best_epoch}"
        return f"validation loss {e.last_loss:.4f}, but {lowest} of {e.epochs}: fewer train.epochs, or train.keep best"
    return None


def _pair(e: Evidence) -> str | None:
    if e.pair_errors < max(3, 0.1 * e.errors):
        return None
    first, second = e.pair
    found = f"{first} and {second} confused in {e.pair_errors} of {e.errors} errors"
    return f"{found}: cropping or augmentation may remove what tells them apart"


def _class(e: Evidence) -> str | None:
    count = e.weakest_count
    z = NormalDist().inv_cdf(1 - 0.025 / e.classes)  # the worst of so many looks bad by chance alone (Bonferroni)
    _, high = wilson(round(e.weakest_recall * count), count, z)
    if high >= e.accuracy:
        return None
    found = f"recall {e.weakest_recall:.2%} of {count} images, accuracy {e.accuracy:.2%} of all"
    return f"class {e.weakest} weaker than chance allows: {found}: more images of it would help most"


def _shift(e: Evidence) -> str | None:
    return _costs(e, "shift", "more augmentation.shift")


def _rotation(e: Evidence) -> str | None:
    return _costs(e, "rotation", "more augmentation.rotation")


def _scale(e: Evidence) -> str | None:
    return _costs(e, "scale", "more augmentation.scale")


def _weakness(e: Evidence) -> str | None:
    found = {kind: accuracies[MIDDLE - 1] for kind, accuracies in e.robustness.corrupted.items() if kind not in KNOBS}
    return _costs(e, min(found, key=found.__getitem__), "clean such images first, as no knob of augmentation covers it")


def _costs(e: Evidence, kind: str, remedy: str) -> str | None:
    clean, found, count = e.robustness.accuracy, e.robustness.corrupted[kind][MIDDLE - 1], e.robustness.count
    if clean - found <= margin(clean, found, count):
        return None
    both = f"accuracy {found:.2%} on {count:,} images {described(kind, MIDDLE)}, {clean:.2%} as they are"
    return f"sensitive to {kind}: {both}: {remedy}"


def _labels(e: Evidence) -> str | None:
    if not e.suspects or e.accuracy < GOOD:
        return None
    listed = ", ".join(map(str, e.suspects[:10])) + (", …" if len(e.suspects) > 10 else "")
    found = f"{len(e.suspects)} test images (numbers {listed})"
    return (
        f"labels that may be wrong: {found}, misclassified with more confidence than {SUSPECT:.0%} of correct answers"
    )


def suggest(evidence: Evidence) -> list[str]:
    """Return a line for each rule that applies, the most promising first."""
    rules = (_fit, _length, _pair, _class, _shift, _rotation, _scale, _weakness, _labels)
    return [line for rule in rules if (line := rule(evidence))]


def listed(evidence: Evidence) -> str:
    """Return the lines of `suggest` as a list in Markdown."""
    return "\n".join(f"- {line}" for line in suggest(evidence)) or "- nothing stands out"
