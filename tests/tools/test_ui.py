import socket

import pytest

from digits.__main__ import dispatch
from digits.errors import UserError

from ..conftest import Change


def test_without_logging_there_is_nothing_to_show(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    change({})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: is off; must name a tracking server, or not be set$"):
        dispatch(["ui"])


def test_port_that_is_taken_is_said_before_anything_is_started(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    change({})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port: {port} cannot be used \(.+\); `make ui PORT=5001` takes"):
            dispatch(["ui", "--port", str(port)])


@pytest.mark.parametrize("port", ["0", "70000", "-1"])
def test_port_that_cannot_be_is_rejected(change: Change, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    change({})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=rf"^--port: must be 1 to 65535, not {port}$"):
        dispatch(["ui", "--port", port])


def test_server_that_does_not_answer_is_one_line(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    change({})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^MLflow at http://127\.0\.0\.1:9 cannot be used: [^\n]+$"):
        dispatch(["ui"])
