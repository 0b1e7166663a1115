"""Pictures of what the model gets right and wrong, for evaluate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torch.nn import functional

from digits.images.severities import SEVERITIES
from digits.learning.evaluation import Predictions, calibrated, confusion, principal_components
from digits.learning.evaluation import recall as recall_of
from digits.learning.evaluation import reliability as sort
from digits.learning.scores import Robustness, wilson
from digits.reports.figures.style import (
    BLUE,
    GREY,
    MANY,
    ORANGE,
    ROW,
    cells,
    gallery,
    label_classes,
    saved,
    whole_numbers,
)

BADGE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}


def confusion_matrix(predictions: Predictions, path: Path) -> None:
    """Show counts of true and predicted classes; color shows the mistakes alone, which the diagonal would drown."""
    matrix, classes = confusion(predictions), predictions.split.classes
    count, errors = int(matrix.sum()), int(matrix.sum() - matrix.diag().sum())
    mistakes = matrix.clone().fill_diagonal_(0)
    if len(classes) > MANY:
        _pairs(mistakes, classes, f"{errors} errors in {count:,}", path)
        return
    size = max(5.5, 0.5 * len(classes) + 1.5)
    with saved(path, size, size) as figure:
        axes = figure.subplots()
        texts = [[str(number or "") for number in row] for row in matrix.tolist()]
        highest = max(1, int(mistakes.max()))
        cells(axes, mistakes, texts, bold=True, cmap="Oranges", vmin=0, vmax=highest)
        label_classes(axes, classes)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(f"Confusion on the test set: {errors} errors in {count:,}")


def _pairs(mistakes: Tensor, classes: Sequence[str], title: str, path: Path, limit: int = 30) -> None:
    """Show the most confused pairs of true and predicted class."""
    counts, places = mistakes.flatten().sort(descending=True, stable=True)
    shown = max(1, min(limit, int((counts > 0).sum())))
    names = [f"{classes[place // len(classes)]} → {classes[place % len(classes)]}" for place in places[:shown].tolist()]
    with saved(path, 7, 0.25 * shown + 1.2) as figure:
        axes = figure.subplots()
        axes.barh(range(shown), counts[:shown].tolist(), color=ORANGE)
        axes.set_yticks(range(shown), names)
        axes.invert_yaxis()
        whole_numbers(axes.xaxis)
        axes.set(title=f"Most confused on the test set: {title}", xlabel="images, true → predicted class")


def misclassified(predictions: Predictions, limit: int, path: Path) -> None:
    """Show up to `limit` misclassified images, the most confident mistakes first."""
    split, confidence = predictions.split, predictions.confidence
    wrong = (~predictions.correct).nonzero().flatten()
    shown = wrong[confidence[wrong].argsort(descending=True, stable=True)][:limit].tolist()
    rows = max(1, -(-len(shown) // 8))
    names = [[split.classes[int(labels[place])] for place in shown] for labels in (split.labels, predictions.predicted)]
    titles = [f"{old} → {new}  {confidence[place]:.0%}" for old, new, place in zip(*names, shown, strict=True)]
    with saved(path, 8.8, rows * ROW + 0.4) as figure:
        counts = f"{len(shown)} of {len(wrong)} misclassified test images"
        figure.suptitle(f"{counts}: true class → prediction, and its probability")
        gallery(figure, rows, [split.images[place] for place in shown], titles)


def recall(predictions: Predictions, path: Path) -> None:
    """Show the recall of each class with Wilson's 95 % interval, and the accuracy over all.

    Of very many classes, those with the lowest recall.
    """
    matrix = confusion(predictions)
    shares, present = recall_of(matrix), matrix.sum(dim=1).nonzero().flatten()
    many = len(present) > MANY
    shown = present[shares[present].argsort(stable=True)[:MANY]] if many else present
    classes = [predictions.split.classes[label] for label in shown.tolist()]
    counts = zip(matrix.diag()[shown].tolist(), matrix.sum(dim=1)[shown].tolist(), strict=True)
    found, intervals = shares[shown].tolist(), [wilson(*pair) for pair in counts]
    spread = [[max(0.0, share - low) for share, (low, _) in zip(found, intervals, strict=True)]]
    spread.append([max(0.0, high - share) for share, (_, high) in zip(found, intervals, strict=True)])
    look: dict[str, Any] = {"fmt": "o", "color": BLUE, "capsize": 4, "label": "95 % interval"}
    line: dict[str, Any] = {"color": ORANGE, "linestyle": "--"}
    line["label"] = f"all {len(predictions.split):,} images: {predictions.accuracy:.2%}"
    size = (7.0, 0.25 * len(classes) + 1.2) if many else (max(7.0, 0.6 * len(classes) + 1), 3.6)
    with saved(path, *size) as figure:
        axes = figure.subplots()
        if many:
            axes.errorbar(found, range(len(classes)), xerr=spread, **look)
            axes.axvline(predictions.accuracy, **line)
            axes.set_yticks(range(len(classes)), classes)
            axes.invert_yaxis()
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            title = f"Recall on the test set: the weakest {len(classes)} of {len(present)} classes"
            axes.set(title=title, xlabel="classified correctly")
        else:
            axes.errorbar(range(len(classes)), found, yerr=spread, **look)
            axes.axhline(predictions.accuracy, **line)
            label_classes(axes, classes)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
            axes.set(title="Recall of each class on the test set", xlabel="true class", ylabel="classified correctly")
            axes.legend(loc="lower left")
        if many:
            figure.legend(loc="outside lower center", ncols=2)


def reliability(predictions: Predictions, temperature: float, smoothing: float, bins: int, path: Path) -> None:
    """Show accuracy by confidence, bin by bin, as trained and with the logits divided by `temperature`.

    The title says how confidence as trained deviates, and why: `smoothing` is `train.label_smoothing`.
    """
    versions = {"as trained": (predictions, GREY), "as exported": (calibrated(predictions, temperature), BLUE)}
    with saved(path, 6, 6.8) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        for place, (name, (version, color)) in enumerate(versions.items()):
            found = sort(version, bins)
            filled = found.counts > 0
            points = found.confidence[filled].tolist(), found.accuracy[filled].tolist()
            divided = f", logits divided by {temperature:g}" if place else ""
            label = f"{name}{divided}: calibration error {found.error:.2%}"
            upper.plot(*points, "o-", color=color, label=label)
            middles = [(number + 0.25 + 0.5 * place) / bins for number in range(bins)]
            lower.bar(middles, found.counts.tolist(), 0.4 / bins, color=color)
        upper.set(title=_deviation(predictions, smoothing), ylabel="accuracy", ylim=(0, 1.02))
        lower.set(xlabel="confidence", ylabel="images", yscale="log", xlim=(0, 1), ylim=(0.5, None))
        figure.legend(loc="outside lower center")


def _deviation(predictions: Predictions, smoothing: float) -> str:
    points = 100 * (float(predictions.confidence.mean()) - predictions.accuracy)
    if abs(points) < 0.5:
        return "Reliability on the test set:\nconfidence agrees with accuracy"
    if points > 0:
        how, why = "over", "training on, with every training image right"
    else:
        how, why = "under", f"label smoothing of {smoothing:g}" if smoothing else "augmentation and dropout"
    return f"Reliability on the test set: as trained, {how}confident\nby {abs(points):.1f} points, because of {why}"


def robustness(found: Robustness, path: Path) -> None:
    """Show the accuracy by kind and severity of corruption, and the confidence on meaningless inputs."""
    kinds = list(found.corrupted)
    with saved(path, 10, 4.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        shares = torch.tensor([[found.accuracy, *found.corrupted[kind]] for kind in kinds])
        texts = [[f"{100 * share:.1f}" for share in row] for row in shares.tolist()]
        cells(left, shares, texts, cmap="RdYlBu", vmin=0.5, vmax=1, aspect="auto")
        left.set_xticks(range(shares.shape[1]), ["none", *map(str, SEVERITIES)])
        left.set_yticks(range(len(kinds)), kinds)
        left.set(title=f"Accuracy in % on {found.count:,} corrupted validation images", xlabel="severity")
        names = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [
            dict(zip(names, quantiles, strict=True)) | {"label": kind} for kind, quantiles in found.confidence.items()
        ]
        fill = {"facecolor": "#bee3f8"}
        right.bxp(
            boxes[::-1],
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops=fill,
            medianprops={"color": "black"},
        )
        right.set(title="Confidence on inputs that show no digit", xlim=(0, 1.02))
        right.set_xlabel("confidence of the exported model\n(median, quartiles, 5 and 95 %)")
        right.grid(visible=False, axis="y")


def embedding(predictions: Predictions, features: Tensor, path: Path) -> None:
    """Show a map of the images by the network's last features, projected to their principal components."""
    width = min(4, features.shape[1])
    places = functional.pad(principal_components(features, width), (0, 4 - width))
    labels, classes, wrong = predictions.split.labels, predictions.split.classes, ~predictions.correct
    colors = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    with saved(path, 10, 5) as figure:
        for axes, first in zip(figure.subplots(1, 2), (0, 2), strict=True):
            x, y = places[:, first], places[:, first + 1]
            for label, name in enumerate(classes):
                mine = labels == label
                if not mine.any():
                    continue
                axes.scatter(x[mine].tolist(), y[mine].tolist(), s=3, color=colors(label % colors.N), linewidths=0)
                middle = float(x[mine].median()), float(y[mine].median())
                if len(classes) <= MANY:
                    axes.text(*middle, name, ha="center", va="center", fontweight="bold", bbox=BADGE)
            axes.scatter(x[wrong].tolist(), y[wrong].tolist(), s=26, marker="x", color="black", linewidths=1)
            axes.set(xlabel=f"component {first + 1}", ylabel=f"component {first + 2}", xticks=[], yticks=[])
            axes.grid(visible=False)
        count = f"{len(labels):,} validation images, {int(wrong.sum())} misclassified (×)"
        figure.suptitle(f"What the last layer sees, projected to its principal components: {count}")
