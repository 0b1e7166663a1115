import pytest

from digits.__main__ import dispatch
from digits.errors import UserError

from ..conftest import Change


def test_sync_refuses_when_logging_is_off(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    change({})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: is off; must name a tracking server, or not be set$"):
        dispatch(["sync"])
