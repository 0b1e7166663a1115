import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from digits.__main__ import dispatch
from digits.errors import UserError
from digits.records import results
from digits.records.results import Result
from digits.tools import seeds

from ..conftest import Change, git
from .conftest import result

NAMES = ["x-seed-0", "x-seed-1"]
WANTED = {"x-seed-0": ["--set-param", "seed=0"], "x-seed-1": ["--set-param", "seed=1"]}


def accurate(name: str, validation: float, seconds: float | None = None) -> Result:
    return result(name, metrics={"validation_accuracy": validation, "test_accuracy": 0.99}, seconds=seconds)


def test_one_seed_has_no_deviation_and_seconds_only_where_they_are_known() -> None:
    alone = seeds.summary("x", [accurate("a", 0.98)])
    assert seeds.markdown([alone]).splitlines()[-1] == (
        "| x | 1 | 98.00 ± – (98.00 to 98.00) | 99.00 ± – (99.00 to 99.00) | – |"
    )
    assert (alone.as_json()["validation_deviation"], alone.as_json()["seconds"]) == (None, None)
    both = seeds.summary("x", [accurate("a", 0.98), accurate("b", 0.97, 4.0)])
    assert both.as_json()["validation_deviation"] == pytest.approx(0.5**0.5)
    assert seeds.markdown([both]).splitlines()[-1].endswith("| 99.00 ± 0.00 (99.00 to 99.00) | 4.0 |")


def test_task_that_the_queue_loses_or_whose_worker_is_killed_is_queued_again_and_at_last_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put: list[dict[str, list[str]]] = []
    looks: list[list[str]] = []  # at the queue: before anything is put, after the first time, after the second, …
    monkeypatch.setattr(seeds, "put", lambda names, *_: put.append(dict(names)))
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(seeds, "dvc", lambda *_: "\n".join([*looks[len(put)], "Worker status: 0 active, 0 idle"]))
    earlier = "zz  x-seed-1  09:00 PM  Success"  # of an earlier call, which says nothing about this one
    first, second = "aa  x-seed-0  10:00 PM  Success", "cc  x-seed-1  10:01 PM  Success"
    for after in ([earlier, first], [earlier, first, "bb  x-seed-1  10:00 PM  Running"]):
        put.clear()
        looks[:] = [earlier], after, [*after, second]
        assert list(seeds.queue(WANTED, 1)) == NAMES
        assert put == [WANTED, {"x-seed-1": WANTED["x-seed-1"]}]
    put.clear()
    looks[:] = [[earlier]] * 4
    with pytest.raises(UserError, match="x-seed-0, x-seed-1: DVC's workers exit before it is done"):
        list(seeds.queue(WANTED, 1))
    assert len(put) == 1 + seeds.RETRIES
    put.clear()
    looks[:] = [[earlier], [first, second.replace("Success", "Failed")]]
    with pytest.raises(UserError, match="x-seed-1: failed; `dvc queue logs x-seed-1` says why"):
        list(seeds.queue(WANTED, 1))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_each_seed_is_a_line_as_soon_as_it_is_done_and_json_stays_alone_on_stdout(
    options: list[str], change: Change, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str]] = []  # stdout and stderr while a seed runs

    def queue(*_: object) -> Iterator[str]:
        for name in NAMES[::-1]:  # they may finish in any order
            seen.append(capsys.readouterr())
            yield name
        seen.append(capsys.readouterr())

    change({})
    found = {name: accurate(name, share) for name, share in zip(NAMES, (0.98, 0.97), strict=True)}
    monkeypatch.setattr(seeds, "queue", queue)
    monkeypatch.setattr(results, "load", found.__getitem__)
    monkeypatch.setattr(results, "with_run", lambda result: result)
    dispatch(["seeds", "x", "--count", "2", *options])
    lines = ["", "x-seed-1: validation 97.00%, test 99.00%\n", "x-seed-0: validation 98.00%, test 99.00%\n"]
    assert seen == [("", line) if options else (line, "") for line in lines]
    said = capsys.readouterr()
    assert said.err == ""
    if options:
        assert json.loads(said.out)["validation_mean"] == pytest.approx(97.5)
    else:
        assert "| x | 2 | 97.50 ± 0.71 (97.00 to 98.00) |" in said.out


def test_own_data_that_copies_in_the_queue_would_lack_are_refused_before_anything_is_queued(change: Change) -> None:
    change({})
    git("init", "--quiet")
    Path("mine").mkdir()
    Path("mine/a.csv").touch()
    words = ["seeds", "x", "-S", "data.name=folder", "-S", "data.folder=mine"]
    said = r"^params\.yaml: data\.folder: mine: not in git or DVC, .*; give an absolute path$"
    with pytest.raises(UserError, match=said):
        dispatch(words)
    assert seeds.reaches_a_copy(Path("mine").resolve())
    git("add", "mine")
    assert seeds.reaches_a_copy(Path("mine"))
