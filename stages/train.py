"""Stage 3: the splits and params.yaml -> a trained network, its learning curve and its final figures.

Sees the training and validation splits only. One device, no worker: see `digits.training`; or several, one a process:
see `digits.distributed`. Killed at any moment and started again, it goes on from its last checkpoint and ends in the
same bits: see `digits.checkpoints`.
"""

import csv
import functools
import io
from dataclasses import asdict, fields

import torch
from tqdm import tqdm

from digits import checkpoints, data, distributed, figures, lineage, models, params, paths, runtime, tracking, training
from digits.command import run
from digits.files import digest, read_json, write_json, write_text


def main() -> None:
    p = params.load()
    models.check(p.model.model_extra or {})
    distributed.launch(p.runtime.processes, "stages.train")
    device = runtime.prepare(p.runtime.device, p.runtime.threads, p.runtime.reproducibility)
    with distributed.joined(device):
        train(p, device)


def train(p: params.Params, device: torch.device) -> None:
    precision = runtime.precision_of(p.runtime.precision, device, p.runtime.reproducibility)
    code, inputs = lineage.code("train"), lineage.inputs("train")
    splits = data.load(paths.TRAIN), data.load(paths.VALIDATION)
    classes, pixels = splits[0].classes, read_json(paths.DATASET_METRICS)

    torch.manual_seed(runtime.derive(p.seed, "weights"))
    knobs = p.model.knobs()
    network = models.build(p.model.name, len(classes), knobs, pixels["pixel_mean"], pixels["pixel_std"])
    if p.runtime.compile:
        network.compile()
    fit = functools.partial(
        training.fit,
        network,
        *splits,
        p.seed,
        p.train,
        p.augmentation,
        p.runtime.batch_size,
        device,
        precision=precision,
    )
    if not distributed.is_leader():
        for _ in fit():
            pass
        return
    print(f"{p.model.name}, {models.count_parameters(network):,} parameters, {precision}, on {device.type}")

    environment = runtime.environment(device, precision)
    recipe = p.model_dump(include={"recipe", "seed", "train", "augmentation"})
    recipe["runtime"] = p.runtime.model_dump(include={"threads", "processes", "compile", "reproducibility"})
    recipe["runtime"]["precision"] = environment["precision"]
    result_of = [p.model.name, knobs, recipe, p.runtime.batch_size, code, inputs, environment]
    epochs = []
    with (
        checkpoints.Checkpoint(result_of, p.runtime.checkpoint) as checkpoint,
        tracking.TrainingRun(p, device, checkpoint.key) as live,
    ):
        for epoch in fit(checkpoint):
            epochs.append(asdict(epoch))
            live.log(epochs[-1])
            tqdm.write(
                f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}; "
                f"validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.2%}"
            )
        kept = epochs[-1] if p.train.keep == "last" else max(epochs, key=lambda row: row["validation_accuracy"])

        description = models.Description(p.model.name, list(classes), knobs, recipe, inputs, digest(code))
        models.save(network, description, paths.MODEL)
        table = io.StringIO()
        writer = csv.DictWriter(table, [field.name for field in fields(training.Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(epochs)
        write_text(paths.CURVE_TABLE, table.getvalue())
        figures.curve({name: [row[name] for row in epochs] for name in epochs[0]}, paths.CURVE)
        write_json(
            paths.TRAIN_METRICS,
            {
                **{name: kept[name] for name in kept if name.startswith(("train_", "validation_"))},
                "epochs": len(epochs),
                "kept_epoch": kept["epoch"],
                "parameters": models.count_parameters(network),
            },
        )


if __name__ == "__main__":
    run(main)
