"""The trained network as files that need none of this code: ONNX and torch.export's pt2.

Both take float32 [batch, channels, side, side] with pixels in 0 … 1 and return logits [batch, classes], for
any batch size. Normalization is inside, and so is the temperature that makes their softmax a probability. The source
paths that exporters record are removed, so that equal networks give equal bytes wherever they are exported.
"""

import io
import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from digits.datasets import Shape
from digits.errors import UserError
from digits.files import SEAL, flatten, is_intact, seal, write_bytes
from digits.images.batches import to_float
from digits.images.splits import Split
from digits.learning import evaluation
from digits.learning.description import Description, described
from digits.serving import runtime

INPUT, OUTPUT = "images", "logits"
DYNAMIC = ({0: torch.export.Dim("batch", min=1)},)  # axis 0 of the only input may have any size


def _example(shape: Shape) -> Tensor:
    return torch.zeros(2, shape.channels, shape.side, shape.side)  # a batch of 1 would be frozen into the graph


def capture(network: nn.Module, shape: Shape) -> ExportedProgram:
    """Return the operations of `network` (in evaluation mode, on the CPU) for images of a shape."""
    program = torch.export.export(network, (_example(shape),), dynamic_shapes=DYNAMIC)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def write_pt2(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write a captured network as a torch.export archive; `torch.export.load` reads it.

    The description is the archive's extra file `model.json`, the checksum of the file the comment of the archive.
    """
    buffer = io.BytesIO()  # given a path, torch would write the file's name into the archive
    torch.export.save(program, buffer, extra_files={"model.json": json.dumps(asdict(description), sort_keys=True)})
    content = buffer.getvalue().removesuffix(b"\0\0")  # the length of the comment, which comes last
    write_bytes(path, seal(content + len(SEAL).to_bytes(2, "little") + SEAL.encode()))


def read_pt2(content: bytes) -> Description:
    """Return what a pt2 file says about itself.

    Raises ValueError unless it is as `write_pt2` wrote it, and nothing in it is run when it is loaded: to
    `torch.export.load`, weights can be pickles, and the sample inputs are one.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        checksum = archive.comment.decode("ascii", "replace")
        if len(checksum) != len(SEAL) or not is_intact(content, checksum):
            raise ValueError("its content does not match its checksum")
        entries = archive.infolist()
        names = [entry.filename.partition("/")[2] for entry in entries]
        if any(entry.compress_type for entry in entries) or len(set(names)) < len(names):
            raise ValueError("it is compressed, or has a name twice")
        for name, entry in zip(names, entries, strict=True):
            # As flattened JSON, whatever the spaces in it.
            if name.endswith("_config.json"):
                said = flatten(json.loads(archive.read(entry)))
                if any(value for key, value in said.items() if key.endswith("use_pickle")):
                    raise ValueError(f"{name} asks for pickles, which can run code")
            if name.startswith("data/sample_inputs/"):
                try:
                    torch.load(io.BytesIO(archive.read(entry)), "cpu", weights_only=True)
                except pickle.UnpicklingError:
                    raise ValueError(f"{name} would run code") from None
        return described(json.loads(archive.read(entries[names.index("extra/model.json")])))


def write_onnx(program: ExportedProgram, path: Path, opset: int, description: Description) -> None:
    """Write a captured network as one ONNX file.

    Its metadata are the names of the classes, the description and the checksum of the file (`files.is_intact`).
    """
    options: dict[str, Any] = {"dynamic_shapes": DYNAMIC, "opset_version": opset, "dynamo": True, "verbose": False}
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    exported = torch.onnx.export(program, (_example(description.shape),), **options, **names)
    assert exported is not None  # only the old exporter returns None
    model = exported.model
    # torch would ask for the newest format, which runtimes refuse although they know the operators.
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.metadata_props.clear()
    said = {"classes": json.dumps(description.classes), "model": json.dumps(asdict(description), sort_keys=True)}
    model.metadata_props.update(said | {"md5": SEAL})
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
    """Load a pt2 file and return its logits for every image of `split`: float32 [n, classes].

    Raises ValueError as `read_pt2` does.
    """
    content = path.read_bytes()
    read_pt2(content)
    module = torch.export.load(io.BytesIO(content)).module()
    with torch.inference_mode():
        return torch.cat([module(to_float(images)) for images in split.images.split(batch_size)])


def run_onnx(path: Path, split: Split, batch_size: int, threads: int) -> Tensor:
    """Load an ONNX file in ONNX Runtime and return its logits for every image of `split`: float32 [n, classes]."""
    onnxruntime = runtime.load()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    batches = (to_float(images).numpy() for images in split.images.split(batch_size))
    return torch.cat([torch.from_numpy(session.run([OUTPUT], {INPUT: images})[0]) for images in batches])


def operations(network: nn.Module, shape: Shape) -> int:
    """Return the multiply-accumulate operations that one image takes in convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(_example(shape)[:1])
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Exported:
    """What metrics/export.json says of one file. `max_abs_difference` is that of any logit from the trained model's."""

    bytes: int
    accuracy: float
    max_abs_difference: float


def verify(
    path: Path, logits: Tensor, trained: evaluation.Predictions, temperature: float, tolerance: float
) -> Exported:
    """Compare an exported file's `logits` with the trained model's, divided by the temperature.

    Raises UserError if one differs by more than `tolerance`, or any image gets another class.
    """
    difference = float((logits - trained.logits / temperature).abs().max())
    changed = int((logits.argmax(dim=1) != trained.logits.argmax(dim=1)).sum())
    if changed or not difference <= tolerance:
        found = f"{changed} of {len(logits)} test images get another class, logits differ by {difference:.2g}"
        raise UserError(f"{path}: not the trained model: {found} (params.yaml: export.tolerance: {tolerance:g})")
    return Exported(path.stat().st_size, evaluation.score(logits, trained.split.labels)[1], difference)
