"""The learning curve of a training, epoch by epoch, and what it ended with."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from digits.files import read_table, write_table


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch; the columns of plots/training.csv.

    The two losses (nats) and accuracies are measured alike, after the epoch, in evaluation mode and without
    augmentation: on the validation split, and on a fixed sample of the training split of the same size. The gap between
    them is therefore overfitting and nothing else. `learning_rate` is that of the last step.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    train_accuracy: float
    validation_accuracy: float
    learning_rate: float


@dataclass(frozen=True)
class TrainMetrics:
    """The content of metrics/train.json: the figures of the epoch whose weights are kept, and sizes."""

    train_loss: float
    validation_loss: float
    train_accuracy: float
    validation_accuracy: float
    epochs: int
    kept_epoch: int
    parameters: int


def write(epochs: Iterable[Epoch], path: Path) -> None:
    """Write a curve as CSV."""
    write_table(path, [field.name for field in fields(Epoch)], map(asdict, epochs))


def read(path: Path) -> list[Epoch]:
    """Return a curve written by `write`."""
    rows = ({key: float(value) for key, value in row.items()} for row in read_table(path))
    return [Epoch(**row | {"epoch": int(row["epoch"])}) for row in rows]  # type: ignore[arg-type]  # one int among floats
