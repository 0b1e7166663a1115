import pytest

from benchmarks import serving

from ..pipeline.servers import free_port
from ..serving.conftest import png, written
from ..serving.servers import finish


def test_each_load_is_compared_with_mlflows_before_it() -> None:
    found = {
        "one, mlflow": serving.Found([0.01, 0.03], 0, [100, 200], 400),
        "one": serving.Found([0.01] * 4, 1, [500, 1200], 100),
        "many, mlflow": serving.Found([0.01], 0, [10, 10], 400),
        "many": serving.Found([0.01], 0, [30, 50], 100),
    }
    lines = serving.table(found).splitlines()[2:]
    assert lines[0] == "| one, mlflow | 150 | 20 ms | 30 ms | 0 of 2 | 400 MB | 1.0 |"
    assert lines[1].endswith("| 1 of 4 | 100 MB | 5.5 |")
    assert lines[3].endswith("| 4.0 |")


@pytest.mark.slow
def test_service_is_asked_by_many_without_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    image = serving.Load("a picture", "digits", "predict", png(written("5")), "image/png", 1)
    monkeypatch.setattr(serving, "PORTS", {"digits": free_port()})
    found = serving.Found()
    with serving.serving(["digits", "serve"], serving.PORTS["digits"], "health", {}) as process:
        finish(serving.ask(image, found, 8, 1))
        assert serving.memory(process) > 50
    assert found.failures == 0
    assert len(found.seconds) >= 8
    assert found.rates[0] > 0
