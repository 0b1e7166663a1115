"""The service as its users have it: a process, and HTTP."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from starlette.requests import Request

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.serving import service
from digits.serving.reading import INCLUDED, Model

from .conftest import png, written
from .servers import ask, finish, form, serving

JSON, RAW = "application/json", "application/octet-stream"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("--model", str(INCLUDED)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def page() -> bytes:
    return png(written("23\n5"))


def test_a_picture_as_the_body_is_answered_as_on_the_command_line(
    address: str, page: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture").write_bytes(page)
    dispatch(["predict", "--model", str(INCLUDED), "--format", "json", str(tmp_path / "picture")])
    expected = json.loads(capsys.readouterr().out)
    for kind in ("image/png", RAW, "application/x-www-form-urlencoded"):  # curl says the last of --data-binary
        code, found = ask(f"{address}/predict", page, kind)
        assert code == 200
        assert found == [expected[0] | {"file": "picture"}]


def test_a_form_has_an_answer_for_each_of_its_files_in_their_order(address: str, page: bytes) -> None:
    blank = png(np.full((60, 60), 255.0))
    code, found = ask(f"{address}/predict", *form(("one.png", page), ("notes.txt", b"no picture"), ("two.png", blank)))
    assert code == 200
    assert [one["file"] for one in found] == ["one.png", "notes.txt", "two.png"]
    assert found[0]["text"] == "23\n5"
    assert found[1]["error"] == "not a picture that Pillow can read (cannot identify image file)"
    assert found[2]["error"] == "nothing to read"


def test_single_reads_one_character(address: str) -> None:
    broken = np.array(written("5", 90))
    broken[60:64] = 220
    code, found = ask(f"{address}/predict?single=true", png(broken))
    assert (code, found[0]["text"]) == (200, "5")
    assert ask(f"{address}/predict", png(np.zeros((50, 50)))) == (
        200,
        [{"file": "picture", "error": "nothing to read"}],
    )


def test_logits_are_the_models_from_json_and_from_bytes(address: str, model: Model) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (3, 1, 28, 28)).astype("<f4")
    code, found = ask(f"{address}/logits", json.dumps({"inputs": images.tolist()}).encode(), JSON)
    assert code == 200
    assert found["classes"] == model.classes
    assert np.abs(np.array(found["logits"]) - model.logits(images)).max() < 1e-5
    assert ask(f"{address}/logits", images.tobytes(), RAW) == (200, found)


@pytest.mark.parametrize(
    ("path", "body", "kind", "code", "words"),
    [
        ("predict", b"", "image/png", 400, "the body is empty"),
        ("predict", b"no picture", "image/png", 400, "picture: not a picture that Pillow can read"),
        ("predict", b"{}", JSON, 415, "application/json: must be an image, "),
        ("predict?single=maybe", b"x", "image/png", 422, "single: "),
        ("predict", b"--limit--", "multipart/form-data", 400, "not a form that can be read"),
        ("predict", b"no form", "multipart/form-data; boundary=limit", 400, "not a form that can be read"),
        ("predict", *form(), 400, "the form has no file"),
        ("predict", *form(*[("a.png", b"x")] * 101), 400, "not a form that can be read (Too many files"),
        ("predict", bytes(service.LARGEST + 1), "image/png", 413, "more than 20,000,000 bytes"),
        ("logits", b"no json", JSON, 400, 'must be JSON like {"inputs": …}, numbers of shape [n, 1, 28, 28]'),
        ("logits", b'{"inputs": [[1, 2], [3]]}', JSON, 400, "must be JSON like"),
        ("logits", b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}", JSON, 400, "must be JSON like"),
        ("logits", b'{"inputs": [[0.5]]}', JSON, 400, "shape [1, 1]; must be [n, 1, 28, 28], n from 1 to 1000"),
        ("logits", bytes(4 * 784 - 1), RAW, 400, "3135 bytes; must be float32 of shape [n, 1, 28, 28]"),
        ("logits", bytes(4 * 784 * 1001), RAW, 400, "shape [1001, 1, 28, 28]; must be"),
        ("logits", np.full(784, 255, "<f4").tobytes(), RAW, 400, "pixels must be 0 … 1"),
        ("logits", np.full(784, np.nan, "<f4").tobytes(), RAW, 400, "pixels must be 0 … 1"),
        ("elsewhere", b"x", RAW, 405, "Method Not Allowed"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_line(
    address: str, path: str, body: bytes, kind: str, code: int, words: str
) -> None:
    found, said = ask(f"{address}/{path}", body, kind)
    assert found == code
    assert said.keys() == {"error"}
    assert said["error"].startswith(words)
    assert "\n" not in said["error"]


def test_other_methods_and_addresses_are_refused(address: str) -> None:
    assert ask(f"{address}/predict") == (405, {"error": "must be POST"})
    assert ask(f"{address}/nothing") == (404, {"error": "Not Found"})
    assert ask(f"{address}/%2e%2e/reading.py")[0] == 404


def test_health_and_description_say_what_is_served(address: str, model: Model) -> None:
    code, found = ask(f"{address}/health")
    assert (code, found["status"], found["model"], found["classes"]) == (200, "ok", model.md5, model.classes)
    code, found = ask(f"{address}/openapi.json")
    assert {path: set(methods) for path, methods in found["paths"].items()} == {
        "/predict": {"post"},
        "/logits": {"post"},
        "/health": {"get"},
    }


def test_a_request_that_does_not_arrive_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(HTTPException) as error:
        finish(service._body(Request({"type": "http", "headers": []}, receive)))
    assert error.value.status_code == 408


def test_a_body_without_a_length_ends_at_the_limit() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(8_000_000), "more_body": True}

    with pytest.raises(HTTPException) as error:
        finish(service._body(Request({"type": "http", "headers": []}, receive)))
    assert error.value.status_code == 413


def test_ctrl_c_ends_it_quietly() -> None:
    with serving() as (address, server):
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=20)[0]
        assert said == f"{address}  draws and reads; {address}/docs says how to send pictures; Ctrl-C ends it\n"
        assert server.returncode in (0, 130)


@pytest.mark.slow
def test_several_workers_serve_together_and_end_together(page: bytes) -> None:
    with serving("--workers", "2", "--model", str(INCLUDED)) as (address, server):
        for _ in range(8):
            assert ask(f"{address}/predict", page)[1][0]["text"] == "23\n5"
        server.send_signal(signal.SIGINT)
        assert "Traceback" not in server.communicate(timeout=30)[0]


def test_address_that_is_taken_and_arguments_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^127\.0\.0\.1:{port}: cannot be used \(.+\); --port takes another$"):
            dispatch(["serve", "--port", str(port)])
    with pytest.raises(UserError, match=r"^--port: must be 1 to 65535, not 0$"):
        dispatch(["serve", "--port", "0"])
    with pytest.raises(UserError, match=r"^--workers: must be 1 to 64, not 0$"):
        dispatch(["serve", "--workers", "0"])
    with pytest.raises(UserError, match=r"^no\.such\.host\.invalid:8000: cannot be used"):
        dispatch(["serve", "--host", "no.such.host.invalid"])
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"model\.onnx: not a model of this project"):
        dispatch(["serve", "--model", str(tmp_path / "model.onnx")])
