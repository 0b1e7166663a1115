from benchmarks import noise
from digits.reports.significance import Finding


def test_verdicts_are_counted_for_each_split() -> None:
    def one(validation: float, test: float) -> dict[str, Finding]:
        return {split: Finding(-0.01, -0.02, 0.0, p, None) for split, p in (("validation", validation), ("test", test))}

    lines = noise.table({"b against a": [one(0.5, 0.02), one(0.06, 0.9)]}).splitlines()
    assert lines[2:] == [
        "| b against a | 2 | validation | 2 | 0 | 0 | 0.06 to 0.5 |",
        "| b against a | 2 | test | 1 | 0 | 1 | 0.02 to 0.9 |",
    ]
