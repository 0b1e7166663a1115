"""The model card, after the template beside this file."""

from collections.abc import Mapping
from pathlib import Path

from digits.datasets import SIDE
from digits.files import flatten
from digits.images.splits import Statistics
from digits.learning import curve, evaluation, exporting, models

TEMPLATE = Path(__file__).with_name("model_card.md")


def model_card(
    data_name: str,
    description: models.Description,
    dataset: Statistics,
    train: curve.TrainMetrics,
    test: evaluation.Scores,
    exported: Mapping[str, exporting.Exported],
    advice: str,
) -> str:
    """Return the model card as Markdown, after Mitchell et al., "Model Cards for Model Reporting" (2019).

    `exported` is by suffix, `advice` a list in Markdown.
    """
    weakest = min(test.recall, key=test.recall.__getitem__)
    knobs = flatten({"model": {"name": description.name, **description.knobs}, **description.training})
    files = [
        f"| `model.{name}` | {one.bytes:,} | {one.accuracy:.2%} | {one.max_abs_difference:.1e} |"
        for name, one in exported.items()
    ]
    facts = {
        "description": description,
        "data_name": data_name,
        "side": SIDE,
        "input": exporting.INPUT,
        "output": exporting.OUTPUT,
    }
    facts |= {"dataset": dataset, "train": train, "test": test, "advice": advice, "count": len(description.classes)}
    return TEMPLATE.read_text(encoding="utf-8").format(
        **facts,
        classes=", ".join(description.classes),
        weakest=description.classes[int(weakest)],
        recall=test.recall[weakest],
        files="\n".join(files),
        knobs="\n".join(f"| `{key}` | {value} |" for key, value in knobs.items()),
    )
