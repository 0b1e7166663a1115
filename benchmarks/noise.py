"""How often `python -m digits compare` calls two networks different that differ by their seed alone.

    python -m benchmarks.noise [--count 7] [--jobs 2]

Run it after `dvc repro`. It trains seeds of the recipe quick and of the MLP, as in the study (`benchmarks.study`; what
that has trained here is not trained again). Every pair of seeds of quick is compared, and for each seed the MLP with
quick. Writes benchmarks/noise.md.

Two seeds make two networks, of which one may really be a little better: on enough images every pair differs. The
question here is what happens on the validation split, which decides.
"""

import argparse
import itertools
from collections import Counter
from pathlib import Path

from benchmarks.study import ROWS, command, results, wrapped
from digits.errors import UserError, run
from digits.files import write_text
from digits.records.results import SPLITS, Result
from digits.reports.significance import Finding
from digits.tools import compare

PAGE = Path("benchmarks/noise.md")
QUICK, MLP = (next(row for row in ROWS if row.name == name) for name in ("quick", "mlp"))


def findings(first: Result, second: Result) -> dict[str, Finding]:
    """Compare two results, and return the finding on each split."""
    comparison = compare.compare([first], [second])
    return {split: getattr(comparison, split).finding for split in SPLITS}


def table(groups: dict[str, list[dict[str, Finding]]]) -> str:
    """Return a Markdown table of findings, a line for each group of comparisons and each split."""
    lines = [
        "| B against A | comparisons | split | no evidence | better | worse | p, smallest to largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in groups.items():
        for split in SPLITS:
            verdicts = Counter(one[split].verdict for one in found)
            chances = sorted(one[split].p for one in found)
            counts = " | ".join(str(verdicts[word]) for word in ("no evidence", "better", "worse"))
            lines.append(f"| {name} | {len(found)} | {split} | {counts} | {chances[0]:.2g} to {chances[-1]:.2g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise", description="How often are seeds of one recipe called different?"
    )
    parser.add_argument("--count", type=int, default=7, help="seeds of each; 7 make 21 pairs (default: 7)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    options = parser.parse_args()
    if options.count < 2:
        raise UserError(f"--count: must be 2 or more, not {options.count}")

    quick, mlp = (results(row, options.count, options.jobs) for row in (QUICK, MLP))
    groups = {
        "quick against quick, other seed": list(itertools.starmap(findings, itertools.combinations(quick, 2))),
        "quick against the MLP, same seed": list(map(findings, mlp, quick)),
    }
    made = table(groups)
    commands = "\n".join(wrapped(command(row, options.count)) for row in (QUICK, MLP))
    write_text(
        PAGE,
        "McNemar's exact test on the same images, verdicts at p < 0.05 (`python -m benchmarks.noise`):\n\n"
        f"{made}\n\n<!-- not run: minutes of training -->\n```bash\n{commands}\n```\n\n"
        "Two networks that differ by their seed alone are still two networks: the test split, twice as large, shows\n"
        "some of these differences. To compare recipes and not networks, compare across seeds.\n",
    )
    print(made)


if __name__ == "__main__":
    run(main)
