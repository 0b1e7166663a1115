"""Stage 3: the splits and params.yaml -> a trained network, its learning curve and its final figures.

Sees the training and validation splits only. Killed at any moment and run again, it resumes from its last checkpoint
and ends in the same bits: see `learning.checkpoints`. With several processes, see `learning.distributed`.
"""

from dataclasses import asdict

import torch
from tqdm import tqdm

from digits import params, paths, pipeline
from digits.errors import run
from digits.files import write_json
from digits.images import splits
from digits.learning import curve, distributed, models, networks, runtime, training
from digits.learning.checkpoints import Checkpoint
from digits.records import recorder
from digits.reports.figures import train as figures


def main() -> None:
    with distributed.reported_once():
        reading = pipeline.Reading("train")
        p = params.load(networks.check)
        if distributed.is_launcher(p.runtime.processes):
            recorder.drop()
            distributed.launch(p.runtime.processes, "stages.train")
        device = runtime.prepare(p.runtime)
        with distributed.joined(device):
            train(p, device, reading)


def train(p: params.Params, device: torch.device, reading: pipeline.Reading) -> None:
    reading.prove()
    learned, held_out = splits.load(paths.TRAIN), splits.load(paths.VALIDATION)
    this = training.begin(p, learned, held_out, device)
    if not distributed.is_leader():
        for _ in this.epochs():
            pass
        return
    size = networks.count_parameters(this.network)
    print(f"{p.model.name}, {size:,} parameters, {this.precision}, on {device.type}")
    description = this.description(reading.inputs, reading.code)
    result_of = [asdict(description), p.runtime.batch_size, runtime.environment(device, this.precision)]
    epochs = []
    with (
        Checkpoint(result_of, p.runtime.checkpoint) as checkpoint,
        recorder.training(p, device, checkpoint.key) as live,
    ):
        for epoch in this.epochs(checkpoint):
            epochs.append(epoch)
            live.log(epoch)
            tqdm.write(
                f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}; "
                f"validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.2%}"
            )
        models.save(this.network, description, paths.MODEL)
        curve.write(epochs, paths.CURVE_TABLE)
        figures.curve(epochs, paths.CURVE)
        figures.augmentation(training.augmented(learned, p, 4, this.background), paths.AUGMENTATION)
        write_json(paths.TRAIN_METRICS, asdict(this.metrics()))
        reading.check()
    reading.check()  # again: the record may take seconds


if __name__ == "__main__":
    run(main)
