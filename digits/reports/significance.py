"""Is a difference real, or noise? Tests of two results on the same images, and of several seeds of each.

One result against another, on the same images: only the images count that one gets right and the other wrong. If
neither is better, each of those is a coin toss: McNemar's exact test. That holds the two networks fixed; another seed
would give others. Several seeds of each recipe: Welch's t-test, to which a seed is one measurement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

LEVEL = 0.05  # significance level: one in twenty comparisons of equals is called different
POWER = 0.8  # for the number of images or seeds needed: the share of cases in which the difference would show


@dataclass(frozen=True)
class Finding:
    """The result of a test: the difference in accuracy, second less first, with its 95 % interval, and the p-value.

    `needed` is how many images, or seeds of each, would show a difference of this size in four of five cases; None
    where there is no difference.
    """

    difference: float
    low: float
    high: float
    p: float
    needed: int | None

    @property
    def points(self) -> str:
        """The difference in percentage points."""
        return f"{100 * self.difference:+.2f} % points"

    @property
    def interval(self) -> str:
        """The interval in percentage points."""
        return f"{100 * self.low:+.2f} to {100 * self.high:+.2f}"

    @property
    def verdict(self) -> str:
        """Whether the second is "better", "worse", or there is "no evidence" of either."""
        if self.p >= LEVEL:
            return "no evidence"
        return "better" if self.difference > 0 else "worse"

    def words(self, unit: str = "") -> str:
        """Return the verdict with its figures; with a `unit`, such as "images", also how many would be `needed`."""
        figures = f"{self.points} (95 % interval {self.interval}), p = {self.p:.2g}"
        if self.verdict != "no evidence":
            return f"{self.verdict}: {figures}"
        needed = (
            f"; a difference of this size takes about {self.needed:,} {unit} to show" if self.needed and unit else ""
        )
        return f"no evidence of a difference at this sample size: {figures}{needed}"


def changes(before: Sequence[bool], after: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Return which images the second result gets newly right, and which newly wrong, given what each gets right."""
    pairs = list(enumerate(zip(before, after, strict=True)))
    return [place for place, (old, new) in pairs if new > old], [place for place, (old, new) in pairs if old > new]


def paired(fixed: int, broken: int, count: int) -> Finding:
    """Compare two results on the same `count` images, of which the second gets `fixed` newly right, `broken` wrong.

    p is that of McNemar's exact test (Q. McNemar, 1947, Psychometrika 12), two-sided. The interval is Clopper and
    Pearson's of the share of `fixed` among both, scaled by their number: it excludes 0 exactly where p is below 0.05.
    `needed` follows R. J. Connor (1987), Biometrics 43.
    """
    changed = fixed + broken
    if not changed:
        return Finding(0.0, 0.0, 0.0, 1.0, None)
    from scipy import special  # not scipy.stats, which takes a second to import

    p = min(1.0, 2 * float(special.bdtr(min(fixed, broken), changed, 0.5)))
    shares = (
        float(special.betaincinv(fixed, broken + 1, LEVEL / 2)) if fixed else 0.0,
        float(special.betaincinv(fixed + 1, broken, 1 - LEVEL / 2)) if broken else 1.0,
    )
    low, high = ((2 * share - 1) * changed / count for share in shares)
    difference, discordant = (fixed - broken) / count, changed / count
    return Finding(difference, low, high, p, _images(difference, discordant))


def _images(difference: float, discordant: float) -> int | None:
    if not difference:
        return None
    chance, found = _quantiles()
    spread = chance * math.sqrt(discordant) + found * math.sqrt(discordant - difference**2)
    return math.ceil((spread / difference) ** 2)


def across_seeds(first: Sequence[float], second: Sequence[float]) -> Finding:
    """Compare the accuracies of several seeds of each, two or more (B. L. Welch, 1947, Biometrika 34).

    `needed` is the number of seeds of each, given the observed spread (W. C. Guenther, 1981, American Statistician 35,
    whose last term corrects the normal approximation for small samples).
    """
    difference = mean(second) - mean(first)
    variance = (stdev(first) ** 2 + stdev(second) ** 2) / 2
    if not variance:  # all seeds of a side gave the same
        return Finding(difference, difference, difference, 0.0 if difference else 1.0, None)
    from scipy.stats import ttest_ind

    test = ttest_ind(second, first, equal_var=False)
    bounds = test.confidence_interval(1 - LEVEL)
    needed = None
    if difference:
        chance, found = _quantiles()
        needed = max(2, math.ceil(2 * variance * ((chance + found) / difference) ** 2 + chance**2 / 4))
    return Finding(difference, float(bounds.low), float(bounds.high), float(test.pvalue), needed)


def _quantiles() -> tuple[float, float]:
    """Return how many standard errors chance may account for, and how many more a difference needs to show."""
    return NormalDist().inv_cdf(1 - LEVEL / 2), NormalDist().inv_cdf(POWER)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values of several tests corrected for their number (S. Holm, 1979, Scand. Journal of Statistics 6)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(values) - place)))
        corrected[index] = largest
    return corrected
