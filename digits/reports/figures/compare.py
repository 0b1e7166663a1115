"""The images that changed sides, for `python -m digits compare`."""

from collections.abc import Sequence
from pathlib import Path

from digits.images.splits import Split
from digits.reports.figures.style import ROW, gallery, saved


def changed(
    split: Split, before: Sequence[str], after: Sequence[str], groups: dict[str, list[int]], path: Path, limit: int = 24
) -> None:
    """Show images whose prediction changed from `before` to `after`: up to `limit` of each group of indices."""
    heights = {name: max(1, -(-min(len(places), limit) // 8)) for name, places in groups.items()}
    with saved(path, 8.8, sum(heights.values()) * ROW + 0.4 * len(groups)) as figure:
        ratios = [height + 0.3 for height in heights.values()]
        blocks = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for block, (name, places) in zip(blocks, groups.items(), strict=True):
            shown = places[:limit]
            block.suptitle(f"{len(shown)} of {len(places)} {name}: true class, prediction of A → of B")
            names = [split.classes[int(split.labels[place])] for place in shown]
            titles = [f"{name}: {before[place]} → {after[place]}" for name, place in zip(names, shown, strict=True)]
            gallery(block, heights[name], [split.images[place] for place in shown], titles)
