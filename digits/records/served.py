"""A flavor of MLflow's models: the network for those who have torch, and the exported file for all that serve it."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digits import paths

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo


EXPORTED = "exported.onnx"
LOADER = Path(__file__).parents[1] / "serving/digits_onnx.py"  # copied, not imported


def log(**about: Any) -> "ModelInfo":
    """Log a network as mlflow.pytorch.log_model does; `mlflow.pyfunc` and `mlflow models serve` use the ONNX file."""
    from mlflow.models import Model

    logged: ModelInfo = Model.log(artifact_path=None, flavor=sys.modules[__name__], **about)
    return logged


def save_model(path: str, mlflow_model: "Model", **about: Any) -> None:
    """Write a model's folder: MLflow calls this."""
    import mlflow.pyfunc
    import mlflow.pytorch

    mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **about)
    folder = Path(path)
    shutil.copy(paths.ONNX, folder / EXPORTED)
    shutil.copy(paths.VALIDATION_TABLE, folder)  # by which it is judged, also when its run has been deleted
    (folder / "code").mkdir(exist_ok=True)
    shutil.copy(LOADER, folder / "code")
    environment = mlflow_model.flavors.pop(mlflow.pyfunc.FLAVOR_NAME)["env"]
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=LOADER.stem,
        code="code",
        data=EXPORTED,
        conda_env=environment["conda"],
        python_env=environment["virtualenv"],
    )
    mlflow_model.save(str(folder / "MLmodel"))
