import base64
import contextlib
import json
import zlib
from pathlib import Path

import pytest
from mlflow import MlflowClient

from digits import params
from digits.errors import UserError
from digits.learning import networks
from digits.records import pages
from digits.records.names import KEY

from ..conftest import ROOT, Change, git
from .conftest import training_run


def commit(change: Change) -> None:
    """Commit the repository's params.yaml in a repository of its own."""
    change({})
    git("init", "--quiet", "--initial-branch=main")
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    git("add", "params.yaml")
    git("commit", "--quiet", "--message=params")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nothing"),
        ({"train.learning_rate": 0.1, "seed": 3}, "seed=3, train.learning_rate=0.1"),
        ({"model.cnn.channels": [8, 16]}, "model.cnn.channels=[8, 16]"),
        ({"model.mlp.hidden": [7]}, "nothing"),  # of a network that is not used
        ({"model.name": "mlp"}, "model.name=mlp"),
    ],
)
def test_what_changed_is_what_differs_from_the_commit(change: Change, changes: dict[str, object], said: str) -> None:
    commit(change)
    assert pages.changed(change(changes)) == said


def test_recipe_is_one_change_and_not_all_that_it_brings(change: Change) -> None:
    commit(change)
    text = Path("params.yaml").read_text(encoding="utf-8").replace("recipe: default", "recipe: quick")
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert pages.changed(params.load(networks.check)) == "recipe=quick"


def test_without_a_commit_nothing_is_said_of_changes(change: Change) -> None:
    assert pages.changed(change({})) is None


def test_ten_runs_in_a_row_have_ten_colors(client: MlflowClient) -> None:
    ids = []
    for _ in pages.COLORS:
        with contextlib.suppress(UserError), training_run() as live:
            ids.append(str(live._run_id))
            raise UserError
    assert {client.get_run(run_id).data.tags[pages.COLOR] for run_id in ids} == set(pages.COLORS)


def test_saved_view_shows_what_decides() -> None:
    view = json.loads(pages.experiment()[f"mlflow.sharedViewState.{pages.VIEW}"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert state["orderByKey"] == "metrics.`errors/validation`"
    assert state["orderByAsc"]
    assert state["selectedColumns"][:3] == ["metrics.`errors/validation`", "metrics.`errors/test`", "tags.`changed`"]


def test_link_opens_that_view() -> None:
    address = "http://host:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=results"
    assert pages.link("http://host:5000/", "7") == address


def test_few_tags_of_a_run_are_for_people(client: MlflowClient) -> None:
    with pytest.raises(KeyError), training_run() as live:
        raise KeyError
    tags = client.get_run(str(live._run_id)).data.tags
    assert len([key for key in tags if not key.startswith("mlflow.")]) <= 10
    assert {f"{KEY}process", f"{KEY}training", f"{KEY}code"} < tags.keys()
