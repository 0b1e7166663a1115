from dataclasses import asdict
from pathlib import Path

from digits.files import read_table
from digits.learning import curve
from digits.learning.curve import Epoch

EPOCHS = [Epoch(1, 0.1 + 0.2, 1 / 3, 0.98765, 2 / 3, 1e-5), Epoch(2, 1e-9, 0.25, 1.0, 0.5, 0.2)]


def test_curve_is_read_back_as_it_was_written_to_the_last_bit(tmp_path: Path) -> None:
    curve.write(iter(EPOCHS), tmp_path / "curve.csv")
    found = curve.read(tmp_path / "curve.csv")
    assert found == EPOCHS
    assert [type(epoch.epoch) for epoch in found] == [int, int]


def test_curve_is_a_table_with_a_row_for_each_epoch_and_a_column_for_each_figure(tmp_path: Path) -> None:
    curve.write(EPOCHS, tmp_path / "curve.csv")
    rows = read_table(tmp_path / "curve.csv")
    assert [{key: float(value) for key, value in row.items()} for row in rows] == list(map(asdict, EPOCHS))
    assert (tmp_path / "curve.csv").read_text(encoding="utf-8").startswith("epoch,train_loss,validation_loss,train_acc")
