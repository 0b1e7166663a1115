"""The trained network as files that need none of this code: ONNX, torch.export's pt2, and a model card.

Both files take float32 [batch, 1, 28, 28] with pixels in 0 … 1 (white digit on black) and give logits [batch, classes],
for any batch size; normalisation is inside. Exporters note source paths in their files; they are taken out, so that
equal networks give equal bytes wherever they are exported.
"""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from digits.data import Split, to_float
from digits.datasets import SIDE
from digits.files import SEAL, flatten, seal, write_bytes
from digits.models import Description

INPUT, OUTPUT = "images", "logits"
DYNAMIC = ({0: torch.export.Dim("batch", min=1)},)  # axis 0 of the only input may have any size


def _example() -> Tensor:
    return torch.zeros(2, 1, SIDE, SIDE)  # a batch of 1 would be frozen into the graph


def write_pt2(network: nn.Module, path: Path, description: Description) -> None:
    """Write `network` (in evaluation mode, on the CPU) as a torch.export archive; `torch.export.load` reads it.

    The description is the archive's extra file `model.json`.
    """
    program = torch.export.export(network, (_example(),), dynamic_shapes=DYNAMIC)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()  # given a path, torch would write the file's name into the archive
    torch.export.save(program, buffer, extra_files={"model.json": json.dumps(asdict(description), sort_keys=True)})
    write_bytes(path, buffer.getvalue())


def write_onnx(network: nn.Module, path: Path, opset: int, description: Description) -> None:
    """Write `network` (in evaluation mode, on the CPU) as one ONNX file.

    Its metadata hold the names of the classes, the description and the checksum of the file (`files.is_intact`).
    """
    exported = torch.onnx.export(
        network,
        (_example(),),
        dynamic_shapes=DYNAMIC,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamo=True,
        verbose=False,
    )
    assert exported is not None  # None only comes from the exporter of old
    model = exported.model
    # torch would ask for the newest format, which runtimes refuse that know the operators well.
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.metadata_props.clear()
    model.metadata_props.update(
        {
            "classes": json.dumps(description.classes),
            "model": json.dumps(asdict(description), sort_keys=True),
            "md5": SEAL,
        }
    )
    for graph in model.graphs():
        graph.metadata_props.clear()
        for item in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            item.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for output in node.outputs:
                output.metadata_props.clear()
    write_bytes(path, seal(exported.model_proto.SerializeToString(deterministic=True)))


def run_pt2(path: Path, split: Split, batch_size: int) -> Tensor:
    """Load a pt2 file and give its logits for every image of `split`: float32 [n, classes]."""
    module = torch.export.load(path).module()
    with torch.inference_mode():
        return torch.cat([module(to_float(images)) for images in split.images.split(batch_size)])


def run_onnx(path: Path, split: Split, batch_size: int, threads: int) -> Tensor:
    """Load an ONNX file in ONNX Runtime and give its logits for every image of `split`: float32 [n, classes]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = (to_float(images).numpy() for images in split.images.split(batch_size))
    return torch.cat([torch.from_numpy(session.run([OUTPUT], {INPUT: images})[0]) for images in batches])


def model_card(data_name: str, description: Description, results: dict[str, dict[str, Any]], suggestions: str) -> str:
    """Give the model card as Markdown, after Mitchell et al., "Model Cards for Model Reporting" (2019).

    `results` holds the contents of metrics/dataset.json, train.json, test.json and export.json by these names,
    `suggestions` is what `advice.listed` gives.
    """
    dataset, train, test = (flatten(results[name]) for name in ("dataset", "train", "test"))
    recall = results["test"]["recall"]
    weakest = min(recall, key=recall.__getitem__)
    knobs = flatten({"model": {"name": description.name, **description.knobs}, **description.training})
    rows = "\n".join(f"| `{key}` | {value} |" for key, value in knobs.items())
    files = "\n".join(
        f"| `model.{name}` | {entry['bytes']:,} | {entry['accuracy']:.2%} | {entry['max_abs_difference']:.1e} |"
        for name, entry in results["export"].items()
    )
    return f"""# Model card: {description.name} on {data_name}

A classifier of {SIDE} x {SIDE} grey images into {len(description.classes)} classes: \
{", ".join(description.classes)}. {train["parameters"]:,} trained parameters.

## Use

Input `{INPUT}`: float32 `[batch, 1, {SIDE}, {SIDE}]`, pixels in 0 … 1, white on black, any batch size.
Output `{OUTPUT}`: float32 `[batch, {len(description.classes)}]`. Normalisation is inside the model.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((1, 1, {SIDE}, {SIDE}), dtype=np.float32)  # yours
logits = session.run(["{OUTPUT}"], {{"{INPUT}": images}})[0]
print(logits.argmax(axis=1))
```

`torch.export.load("model.pt2").module()` is the same network as a torch module.

| file | bytes | test accuracy | largest logit difference from the trained model |
|---|---|---|---|
{files}

## How good it is

On {test["count"]:,} test images, used once, after every choice was made on validation images:

| figure | value |
|---|---|
| accuracy | {test["accuracy"]:.2%} (95 % interval {test["accuracy_low"]:.2%} to {test["accuracy_high"]:.2%}), \
{test["errors"]} errors |
| cross-entropy | {test["loss"]:.4f} nats |
| expected calibration error | {test["calibration_error"]:.2%} |
| macro F1 | {test["macro_f1"]:.4f} |
| weakest class | {description.classes[int(weakest)]}: recall {recall[weakest]:.2%} |

## How it was made

{dataset["train.count"]:,} training and {dataset["validation.count"]:,} validation images of {data_name}, \
split by class. After {train["epochs"]} epochs, with the weights of epoch {train["kept_epoch"]}: validation accuracy \
{train["validation_accuracy"]:.2%}, training accuracy {train["train_accuracy"]:.2%}. \
Each file holds the MD5s of the data and the code that made it; `python -m digits.provenance of model.onnx`, in the \
repository, finds the commits and the runs.

| knob of params.yaml | value |
|---|---|
{rows}

## Limits

- It has seen single, centred, upright characters of one size. On anything else (several digits, letters, photographs,
  a blank page) it still answers with one of its classes, and can be confident.
- Images must be prepared as in training: cropped, scaled into 20 x 20 pixels and centred by mass in {SIDE} x {SIDE}.
- How far its confidence can be trusted was measured on this test set only: see the calibration error above.

## What may improve it

{suggestions}
"""
