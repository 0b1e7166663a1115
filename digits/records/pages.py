"""What a person sees on MLflow's pages: the list of runs, what a run says of itself, its data and its color."""

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from digits import params, paths
from digits.files import flatten, md5, read_as, read_json
from digits.images.statistics import Statistics
from digits.learning import curve
from digits.learning.scores import Scores, wilson
from digits.params.reading import choose, parse
from digits.records import lineage, names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

NOTE, COLOR = "mlflow.note.content", "mlflow.runColor"
# Ten colors that can be told apart on white and on black.
COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#c53030", "#6b46c1", "#b7791f", "#0e7490", "#b83280", "#718096", "#65a30d")

VIEW = "results"  # the key of the saved view
COLUMNS = (
    "metrics.`errors/validation`",
    "metrics.`errors/test`",
    "tags.`changed`",
    f"metrics.`{names.SECONDS}`",
    "metrics.`size/parameters`",
    "params.`recipe`",
    "params.`seed`",
)
ABOUT = """Results of the pipeline, one run each; `error/…` is in percent of images, `errors/…` a count.

Choose by the validation split: the test split only confirms. Tick two runs and press *Compare*, or ask
`python -m digits compare RUN_ID RUN_ID` whether their difference is real or noise."""

CONTEXTS = {  # each split: its file, and what it is used for
    "train": (paths.TRAIN, "training"),
    "validation": (paths.VALIDATION, "validation"),
    "test": (paths.TEST, "test"),
}


def experiment() -> dict[str, str]:
    """Return the tags of the experiment: its description, its kind, and the saved view of its runs."""
    state: dict[str, Any] = {
        "searchFilter": "",
        "orderByKey": COLUMNS[0],
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": COLUMNS,
        "columnOrder": COLUMNS,
        "columnWidths": dict(zip(COLUMNS, (130, 100, 260, 160, 130, 80, 60), strict=True)),  # pixels
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": packed}
    return {
        NOTE: ABOUT,
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def link(address: str, experiment: str) -> str:
    """Return the address of the list of runs, in the saved view, on the server at `address`."""
    place = f"#/experiments/{experiment}/runs"
    return f"{address.rstrip('/')}/{place}?workflowType=machine_learning&viewStateShareKey={VIEW}"


def color(client: "MlflowClient", experiment: str) -> str:
    """Return a color that none of the nine newest runs has."""
    newest = client.search_runs([experiment], max_results=len(COLORS) - 1, order_by=["attributes.start_time DESC"])
    taken = {run.data.tags.get(COLOR) for run in newest}
    return next(one for one in COLORS if one not in taken)


def changed(p: params.Params) -> str | None:
    """Return the settings that differ from the commit's params.yaml; None without one.

    A recipe is one setting: what the commit's file has for it is no difference.
    """
    content = lineage.git("show", "HEAD:./params.yaml")
    if content is None:
        return None
    committed = parse(content.decode())
    before, now = flatten(choose(committed | {"recipe": p.recipe})), names.used(p.flat())
    differing = {key: value for key, value in now.items() if key not in before or before[key] != value}
    if committed.get("recipe") != p.recipe:
        differing = {"recipe": p.recipe, **differing}
    return ", ".join(f"{key}={value}" for key, value in differing.items()) or "nothing"


def datasets(data_name: str, splits: Iterable[str]) -> "list[DatasetInput]":
    """Return the splits that are there as inputs of a run, each with DVC's MD5, its size and what it is used for."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    counts, found = flatten(read_json(paths.DATASET_METRICS)) if paths.DATASET_METRICS.exists() else {}, []
    for split in splits:
        path, context = CONTEXTS[split]
        if path.exists():
            about = {"num_rows": counts.get(f"{split}.count"), "bytes": path.stat().st_size}
            source = {"uri": path.as_posix()}
            dataset = Dataset(f"{data_name} {split}", md5(path), "local", json.dumps(source), profile=json.dumps(about))
            found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def is_validation(dataset: "DatasetInput") -> bool:
    """Say whether an input of a run is its validation split."""
    return any(tag.value == CONTEXTS["validation"][1] for tag in dataset.tags)


def figures(*, evaluated: bool) -> str:
    """Return the errors of the result in this folder, with their 95 % intervals."""
    statistics, train = read_as(Statistics, paths.DATASET_METRICS), read_as(curve.TrainMetrics, paths.TRAIN_METRICS)
    count = statistics.validation.count
    low, high = wilson(names.errors(train.validation_accuracy, count), count)
    error, interval = _percent(1 - train.validation_accuracy), f"{_percent(low)} to {_percent(high)}"
    said = f"{error} validation error (95 % interval {interval})"
    if evaluated:
        test = read_as(Scores, paths.TEST_METRICS)
        interval = f"{_percent(1 - test.accuracy_high)} to {_percent(1 - test.accuracy_low)}"
        said += f", {_percent(1 - test.accuracy)} test error ({interval})"
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def description(run_id: str, stages: Sequence[str], verdict: str, changed: str | None) -> str:
    """Return what a run says of itself, as Markdown: result and verdict first, since a page shows four lines."""
    parts = [f"**{figures(evaluated='evaluate' in stages)}**{f'; {verdict}' if verdict else ''}"]
    if changed:
        parts.append(f"Changed: {changed}")
    parts.append(f"Reproduce every bit: `python -m digits reproduce {run_id}`")
    if "evaluate" in stages:
        # Only now: what train loads, it would have to depend on.
        from digits.learning.scores import Evidence
        from digits.reports import advice

        parts.append(f"To try next:\n\n{advice.listed(read_as(Evidence, paths.EVIDENCE))}")
    return "\n\n".join(parts)
