#!/usr/bin/env python
"""What exactness costs: this project's training beside the same training without its guarantees.

  exact  accel_flowers.training: chance that belongs to the sample, one order for any number of processes, an agreement
         after every step, checkpoints that are flushed and have a manifest, every image scored once
  plain  an Accelerate loop as tutorials have it (`plain_training` below), over the same files with the same transforms,
         network, optimizer and precision: a shuffled DataLoader whose workers seed themselves, `prepare`, `accumulate`,
         `torch.save` of the last state after each epoch, evaluation by `gather_for_metrics`

They run in turn, in fresh processes under the launcher, on a copy of some of the photos. The first epoch warms up. From
the others: the median time of a step inside an epoch, and the mean time of a whole epoch with its evaluation and its
checkpoint; and the processor time of such an epoch in the main process, loader workers left out. The last lines give the
medians over the repeats, their spread, and the ratio exact / plain of neighbouring runs. The goal is a ratio of at most
1.03. Other work on the machine spoils the times; with --threads 1 the processor time suffers least.

  python benchmarks/exactness.py --data.path photos --repeats 7
  python benchmarks/exactness.py --data.path photos --repeats 7 --processes 2
  python benchmarks/exactness.py --data.path photos --repeats 7 --model squeezenet1_1 --size 64 --precision no

Expect the first to take a quarter of an hour on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common import PROJECT, machine, ratio, spread

sys.path.insert(0, str(PROJECT))

from accel_flowers.config.schema import Config
from accel_flowers.data.decoding.kinds import IMAGE_EXTENSIONS

KINDS = ("exact", "plain")
COLUMNS = ("step", "epoch", "processor")
GOAL = 1.03


def copy_photos(source: Path, target: Path, *, num_train: int, num_val: int) -> None:
    """Make `target/train/CLASS` and `target/val/CLASS`, so that both trainings have the same whole steps.

    Classes take turns; of files with the same content one is taken.
    """
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    files = [
        [file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGE_EXTENSIONS] for folder in folders
    ]
    in_turn = (file for row in zip_longest(*files) for file in row if file is not None)
    seen: set[bytes] = set()
    wanted = num_train + num_val
    for file in in_turn:
        digest = hashlib.blake2b(file.read_bytes()).digest()
        if digest in seen:
            continue
        part = target / ("val" if len(seen) < num_val else "train") / file.parent.name
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, part)
        seen.add(digest)
        if len(seen) == wanted:
            return
    sys.exit(f"'{source}' holds {len(seen)} different photos, {wanted} are wanted: give less --steps or --batch.")


def build_config(asked: argparse.Namespace, photos: Path, run_dir: Path) -> Config:
    """What both trainings do."""
    values = {
        "run_dir": str(run_dir),
        "data": {
            "path": str(photos),
            "num_workers": asked.workers,
            "train_transforms": [
                {"RandomResizedCrop": {"size": asked.size}},
                "RandomHorizontalFlip",
                {"ColorJitter": {"brightness": 0.2, "contrast": 0.2}},
            ],
            "eval_transforms": [{"Resize": {"size": asked.size * 8 // 7}}, {"CenterCrop": {"size": asked.size}}],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "model": {"name": asked.model, "weights": "none"},
        "optim": {"name": "sgd", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "train": {
            "epochs": asked.epochs,
            "global_batch_size": asked.batch,
            "micro_batch_size": asked.micro_batch,
            "eval_batch_size": asked.micro_batch,
            "precision": "launcher",  # the same for both
        },
    }
    return Config.model_validate(values)


def plain_training(config: Config) -> None:
    """The same training without the guarantees."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    from accel_flowers.data.transforms.build import build_transform
    from accel_flowers.models.backbone import wants_channels_last
    from accel_flowers.models.find import build_network
    from accel_flowers.models.normalizer import Normalizer
    from accel_flowers.training.optim import build_optimizer

    data, settings = config.data, config.train
    assert data.path is not None
    assert config.run_dir is not None
    assert settings.micro_batch_size is not None
    per_step = settings.global_batch_size // settings.micro_batch_size
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    accelerator.gradient_accumulation_steps = per_step // accelerator.num_processes
    torch.manual_seed(settings.seed)

    def build_loader(part: str, specs: Any, batch_size: int, *, shuffle: bool) -> Any:
        transform, _ = build_transform(specs, field=part)
        return DataLoader(
            ImageFolder(f"{data.path}/{part}", transform=transform),
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=data.num_workers or 0,
            persistent_workers=bool(data.num_workers),
        )

    train_loader = build_loader("train", data.train_transforms, settings.micro_batch_size, shuffle=True)
    val_loader = build_loader("val", data.eval_transforms, settings.eval_batch_size, shuffle=False)
    classes = train_loader.dataset.classes
    network, _ = build_network(config.model.name, len(classes), weights="none", dropout=config.model.dropout)
    channels_last = wants_channels_last(network)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    normalizer = Normalizer(data.mean, data.std, channels_last=channels_last)
    criterion = torch.nn.CrossEntropyLoss()
    model, optimizer, train_loader, val_loader = accelerator.prepare(
        network, build_optimizer(network, config.optim), train_loader, val_loader
    )
    run_dir = Path(config.run_dir)
    run_dir.mkdir(exist_ok=True)
    step = 0
    with (run_dir / f"log-{accelerator.process_index}.jsonl").open("w") as log:
        for epoch in range(settings.epochs):
            model.train()
            for pixels, labels in train_loader:
                with accelerator.accumulate(model):
                    loss = criterion(model(normalizer(pixels)), labels)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    step += 1
                    if step % settings.log_every_steps == 0:
                        mean = accelerator.reduce(loss.detach(), reduction="mean").item()
                        log.write(json.dumps({"step": step, "loss": mean}) + "\n")
            model.eval()
            right = seen = 0
            with torch.no_grad():
                for pixels, labels in val_loader:
                    guesses = model(normalizer(pixels)).argmax(dim=1)
                    guesses, labels = accelerator.gather_for_metrics((guesses, labels))
                    right += int((guesses == labels).sum())
                    seen += len(labels)
            log.write(json.dumps({"epoch": epoch, "accuracy": right / seen}) + "\n")
            log.flush()
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
                torch.save(state, run_dir / "last.pt")
    accelerator.end_training()


def run_one(kind: str, asked: argparse.Namespace) -> None:
    """One training, in the processes of the launcher; the first notes when each optimizer step was done."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    stamps: list[tuple[float, float]] = []
    register_optimizer_step_post_hook(lambda *_: stamps.append((time.perf_counter(), time.process_time())))
    config = build_config(asked, asked.photos, asked.run_dir)
    if kind == "exact":
        from accel_flowers.training.train import train

        train(config)
    else:
        plain_training(config)
    if os.environ.get("RANK", "0") == "0":
        asked.stamps.write_text(json.dumps(stamps))


def launch(kind: str, asked: argparse.Namespace, photos: Path, scratch: Path) -> list[float]:
    """Run one training in fresh processes.

    Returns:
        Seconds of a step, of an epoch, and of the processor in an epoch.
    """
    own = Path(tempfile.mkdtemp(dir=scratch))
    name = "cpu" if asked.processes == 1 else "cpu_2_processes"
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", str(PROJECT / f"accelerate_configs/{name}.yaml"),
        "--num_processes", str(asked.processes), "--mixed_precision", asked.precision,
        "--num_cpu_threads_per_process", str(asked.threads),
        __file__, *sys.argv[1:], "--only", kind,
        "--photos", str(photos), "--run-dir", str(own / "run"), "--stamps", str(own / "stamps.json"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the {kind} training failed:\n{done.stdout}{done.stderr}")
    stamps = json.loads((own / "stamps.json").read_text())
    assert len(stamps) == asked.steps * asked.epochs, f"{kind}: {len(stamps)} steps"
    shutil.rmtree(own)
    clock, processor = zip(*stamps, strict=True)
    return [
        median(step_times(clock, asked.steps)),
        fmean(epoch_times(clock, asked.steps)),
        fmean(epoch_times(processor, asked.steps)),
    ]


def step_times(stamps: Sequence[float], steps: int) -> Iterator[float]:
    """Seconds from the end of one step to the end of the next, in all epochs but the first and not between two."""
    for begin in range(steps, len(stamps), steps):
        for step in range(begin + 1, begin + steps):
            yield stamps[step] - stamps[step - 1]


def epoch_times(stamps: Sequence[float], steps: int) -> Iterator[float]:
    """Seconds between the last steps of two epochs, each time with one evaluation and one checkpoint."""
    for begin in range(steps, len(stamps), steps):
        yield stamps[begin + steps - 1] - stamps[begin - 1]


def measure(asked: argparse.Namespace) -> None:
    print(
        f"{machine('torch', 'torchvision', 'accelerate')}; {asked.threads} threads for each process\n"
        f"{asked.model}, {asked.size} px, {asked.precision}, processes: {asked.processes}; {asked.epochs} epochs of "
        f"{asked.steps} steps of {asked.batch} pictures, {asked.micro_batch} a forward pass",
        flush=True,
    )
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copy_photos(
            Path(asked.data_path), scratch / "photos", num_train=asked.steps * asked.batch, num_val=asked.val_pictures
        )
        for repeat in range(asked.repeats):
            for kind in KINDS:
                found[kind].append(launch(kind, asked, scratch / "photos", scratch))
                words = [f"{name} {value:8.3f} s" for name, value in zip(COLUMNS, found[kind][-1], strict=True)]
                print(f"{repeat + 1:2}  {kind}  {'  '.join(words)}", flush=True)
    for column, name in enumerate(COLUMNS):
        values = {kind: [row[column] for row in rows] for kind, rows in found.items()}
        words = ", ".join(f"{kind} {spread(row, 3)} s" for kind, row in values.items())
        print(f"{name}: {words}; exact / plain {ratio(*values.values(), decimals=3)}, goal {GOAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data.path", dest="data_path", required=True, metavar="DIR", help="photos: DIR/CLASS/*.jpg")
    add("--repeats", type=int, default=5, help="runs of each kind; default %(default)s")
    add("--processes", type=int, default=1, help="default %(default)s")
    add("--threads", type=int, help="of each process; default: cores / processes")
    add("--model", default="resnet18", help="torchvision's name; from random weights; default %(default)s")
    add("--size", type=int, default=224, help="pixels; default %(default)s")
    add("--precision", choices=("no", "bf16"), default="bf16", help="default %(default)s")
    add("--steps", type=int, default=20, help="optimizer steps an epoch; default %(default)s")
    add("--epochs", type=int, default=3, help="the first is not counted; default %(default)s")
    add("--batch", type=int, default=32, help="pictures a step; default %(default)s")
    add("--micro-batch", type=int, default=16, help="pictures of a forward pass; default %(default)s")
    add("--val-pictures", type=int, default=64, help="default %(default)s")
    add("--workers", type=int, default=0, help="loader workers of each process; default %(default)s")
    add("--only", choices=KINDS, help=argparse.SUPPRESS)  # these are for the processes that this one launches
    for name in ("--photos", "--run-dir", "--stamps"):
        add(name, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.threads = asked.threads or max(1, len(os.sched_getaffinity(0)) // asked.processes)
    if asked.steps < 2 or asked.epochs < 2 or asked.batch % (asked.micro_batch * asked.processes):
        parser.error("wanted: 2 steps, 2 epochs, and a batch that micro-batch times processes divides")
    if asked.only:
        run_one(asked.only, asked)
    else:
        measure(asked)


if __name__ == "__main__":
    main()
