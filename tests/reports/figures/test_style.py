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


@pytest.mark.slow
def test_figures_are_the_same_whatever_fonts_matplotlib_remembers(tmp_path: Path) -> None:
    """It shares its list of fonts with other installations, whose fonts are in other places."""
    script = (
        "import sys; from pathlib import Path; import matplotlib.font_manager as fonts\n"
        "from digits.reports.figures import style\n"
        "fonts.fontManager.ttflist = [one for one in fonts.fontManager.ttflist if sys.argv[1] in one.fname]\n"
        "with style.saved(Path(sys.argv[2]), 2, 2) as figure:\n"
        "    figure.subplots().set(yscale='log', ylim=(0.01, 1), title='Ünïcode')"
    )
    for name, kept in (("all", ""), ("none", "nothing has this name")):
        command = [sys.executable, "-c", script, kept, f"{name}.png"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "none.png").read_bytes()
