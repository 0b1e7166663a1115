"""Pictures of what the model gets right and wrong, for evaluate."""

from pathlib import Path

from digits.learning.evaluation import Predictions, Reliability, confusion
from digits.reports.figures.style import BLUE, GREY, gallery, saved


def confusion_matrix(predictions: Predictions, path: Path) -> None:
    """Show counts of true and predicted classes; color shows the mistakes alone, which the diagonal would drown."""
    matrix, classes = confusion(predictions), predictions.split.classes
    count, errors = int(matrix.sum()), int(matrix.sum() - matrix.diag().sum())
    mistakes = matrix.clone().fill_diagonal_(0)
    size = max(5.5, 0.5 * len(classes) + 1.5)
    with saved(path, size, size) as figure:
        axes = figure.subplots()
        axes.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=max(1, int(mistakes.max())))
        for actual, row in enumerate(matrix.tolist()):
            for predicted, number in enumerate(row):
                if number:
                    weight = "bold" if actual == predicted else "normal"
                    axes.text(predicted, actual, str(number), ha="center", va="center", fontsize=9, fontweight=weight)
        rotation = 45 if max(map(len, classes)) > 4 else 0
        axes.set_xticks(range(len(classes)), classes, rotation=rotation, ha="right" if rotation else "center")
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(f"Confusion on the test set: {errors} errors in {count:,}")
        axes.grid(visible=False)


def misclassified(predictions: Predictions, limit: int, path: Path) -> None:
    """Show up to `limit` misclassified images, the most confident mistakes first."""
    split, confidence = predictions.split, predictions.confidence
    wrong = (~predictions.correct).nonzero().flatten()
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:limit].tolist()
    rows = max(1, -(-len(shown) // 8))
    names = [[split.classes[int(labels[place])] for place in shown] for labels in (split.labels, predictions.predicted)]
    titles = [f"{old} → {new}  {confidence[place]:.0%}" for old, new, place in zip(*names, shown, strict=True)]
    with saved(path, 8.8, rows * 1.35 + 0.6) as figure:
        counts = f"{len(shown)} of {len(wrong)} misclassified test images"
        figure.suptitle(f"{counts}: true class, prediction and confidence")
        gallery(figure, rows, [split.images[place] for place in shown], titles)


def reliability(found: Reliability, path: Path) -> None:
    """Show accuracy by confidence, bin by bin, and how many predictions each bin has."""
    bins, filled = len(found.counts), found.counts > 0
    middles = [(place + 0.5) / bins for place in range(bins)]
    with saved(path, 5.5, 6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfectly calibrated")
        upper.bar(middles, found.accuracy.tolist(), 0.9 / bins, color="#bee3f8")
        points = found.confidence[filled].tolist(), found.accuracy[filled].tolist()
        upper.plot(*points, "o-", color=BLUE, label="this model")
        upper.set(title=f"Reliability: expected calibration error {found.error:.2%}", ylabel="accuracy", ylim=(0, 1.02))
        upper.legend()
        lower.bar(middles, found.counts.tolist(), 0.9 / bins, color=GREY)
        lower.set(xlabel="confidence", ylabel="images", yscale="log", xlim=(0, 1), ylim=(0.5, None))
