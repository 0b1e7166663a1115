import re
from pathlib import Path

import pytest

from benchmarks import study
from tests.conftest import ROOT


def test_the_study_makes_its_tables_again_from_its_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page, points = ((ROOT / path).read_text(encoding="utf-8") for path in (study.PAGE, study.POINTS))
    monkeypatch.chdir(tmp_path)
    study.PAGE.parent.mkdir()
    empty = re.sub(r"(<!-- (?!end)[a-z ]+ -->\n).*?(?=<!-- end -->)", r"\1", page, flags=re.DOTALL)
    study.PAGE.write_text(empty, encoding="utf-8")
    study.POINTS.write_text(points, encoding="utf-8")
    assert "| twice as wide |" in page
    assert "| twice as wide |" not in empty
    monkeypatch.setattr("sys.argv", ["study", "--read"])
    study.main()
    assert study.PAGE.read_text(encoding="utf-8") == page
