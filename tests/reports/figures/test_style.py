import os
import subprocess
import sys
from pathlib import Path

import pytest

from digits.reports.figures import style
from tests.conftest import ROOT


@pytest.mark.slow
def test_figures_need_no_display_and_touch_nothing_at_import(tmp_path: Path) -> None:
    script = (
        "import sys; from digits.reports.figures import compare, evaluate, preprocess, train, tune; import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['axes.axisbelow'] == 'line'"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MPLBACKEND": "tkagg", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_error_rates_are_never_0_which_a_logarithmic_axis_cannot_show() -> None:
    assert style.error_rates([0.9, 0.99995, 1.0]) == pytest.approx([0.1, 0.0001, 0.0001])
