"""A flavor of MLflow's models: the network for those who have torch, and the exported file for all that serve it."""

import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digits import paths

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo


LOADER = Path(__file__).parents[1] / "serving/digits_onnx.py"  # copied, not imported


def log(**about: Any) -> "ModelInfo":
    """Log the exported files as a model: `mlflow.pyfunc` and `mlflow models serve` use ONNX, `mlflow.pytorch` pt2."""
    from mlflow.models import Model

    logged: ModelInfo = Model.log(artifact_path=None, flavor=sys.modules[__name__], **about)
    return logged


def save_model(path: str, mlflow_model: "Model", **about: Any) -> None:
    """Write a model's folder: MLflow calls this."""
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        path,
        loader_module=LOADER.stem,
        data_path=str(paths.ONNX),
        code_paths=[str(LOADER)],
        mlflow_model=mlflow_model,
        **about,
    )
    folder = Path(path)
    # As mlflow.pytorch.save_model would write it, which takes three seconds to make the same file once more.
    shutil.copy(paths.PT2, folder / "data")
    mlflow_model.add_flavor("pytorch", model_data="data", pytorch_version=version("torch"), code=None)
    shutil.copy(paths.VALIDATION_TABLE, folder)  # by which it is judged, also when its run has been deleted
    mlflow_model.save(str(folder / "MLmodel"))
