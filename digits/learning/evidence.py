"""What is measured of a trained network beyond its scores, as evidence for what to try next."""

from collections.abc import Sequence

from digits.learning import curve, evaluation
from digits.learning.scores import SUSPECT, Evidence, Robustness


def collect(
    validation: evaluation.Predictions,
    test: evaluation.Predictions,
    epochs: Sequence[curve.Epoch],
    train: curve.TrainMetrics,
    robustness: Robustness,
) -> Evidence:
    """Return what the advice goes by."""
    split, errors = validation.split, int((~validation.correct).sum())
    matrix = evaluation.confusion(validation)
    recall = evaluation.recall(matrix).tolist()
    mistakes = matrix.fill_diagonal_(0)
    pairs = (mistakes + mistakes.T).triu()
    worst, weakest = int(pairs.argmax()), min(split.labels.unique().tolist(), key=recall.__getitem__)
    right = validation.confidence[validation.correct]
    sure = float(right.quantile(SUSPECT)) if len(right) else 1.0
    order = test.confidence.argsort(descending=True, stable=True)
    losses = [epoch.validation_loss for epoch in epochs]
    return Evidence(
        classes=len(split.labels.unique()),
        count=len(split),
        errors=errors,
        accuracy=validation.accuracy,
        train_accuracy=train.train_accuracy,
        epochs=len(epochs),
        best_epoch=losses.index(min(losses)) + 1,
        last_gain=losses[-2] - losses[-1] if len(losses) > 1 else 0.0,
        lowest_loss=min(losses),
        last_loss=losses[-1],
        pair=[split.classes[worst // len(pairs)], split.classes[worst % len(pairs)]],
        pair_errors=int(pairs.max()),
        weakest=split.classes[weakest],
        weakest_count=int((split.labels == weakest).sum()),
        weakest_recall=recall[weakest],
        suspects=order[((test.confidence >= sure) & ~test.correct)[order]].tolist(),
        robustness=robustness,
    )
