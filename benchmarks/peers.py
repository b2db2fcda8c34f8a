#!/usr/bin/env python
"""End to end from a folder of photos: this project beside scripts as its peers have them, on this machine, one process.

  ours          `accelerate launch` with `accelerate_configs/cpu.yaml` or `single_gpu.yaml`, through `accel_flowers.training`
  transformers  as transformers' image classification example without Trainer: datasets' imagefolder, `with_transform`,
                torchvision's transforms on Pillow images, DataLoader, Accelerate, AdamW, linear decay; torchvision's network
  timm          as timm's train.py: `create_model`, `create_dataset`, `create_loader`, `create_optimizer_v2`, autocast where
                bf16 is asked for; left out where timm is not installed

All train the network with this name (resnet18 unless told) from random weights on random crops and flips of the same
photos. They run in turn (A B C A B C ...), each in a fresh process. What is timed is the time from one optimizer step, when
all is warm, to another one `--steps` later, with an empty queue of the device at both. Prints images a second of every
run, medians, spread, and the median of ours / peer of neighbouring runs.

`--precision own` is what each takes by itself: ours bf16, or on a CPU what its trial finds faster; the others float32, unless
their user asks for more. `--precision own bf16` measures both. `--workers` not given: ours chooses, transformers 0, timm 4.

  python benchmarks/peers.py --data.path photos
  python benchmarks/peers.py --data.path photos --device cuda --precision own bf16 --batch 128 --steps 100 --replicate 8

timm need not be installed beside the project: `pip install --target DIR --no-deps timm`, then PYTHONPATH=DIR.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common import PROJECT, machine, ratio, spread

sys.path.insert(0, str(PROJECT))

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NEEDS = {"ours": "accel_flowers", "transformers": "datasets", "timm": "timm"}
"""Kind → the module that it cannot do without."""


class Clock:
    """Notes when a step after the warm-up, and one so many steps later, were done; then ends the process."""

    def __init__(self, asked: argparse.Namespace, precision: Callable[[], str]) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._asked, self._precision = asked, precision
        self._steps, self._begun = 0, 0.0
        self._hook = register_optimizer_step_post_hook(lambda *_: self.tick())

    def tick(self) -> None:
        self._steps += 1
        if self._steps == self._asked.warmup:
            self._synchronize()
            self._begun = time.perf_counter()
        elif self._steps == self._asked.warmup + self._asked.steps:
            self._synchronize()
            seconds = time.perf_counter() - self._begun
            rate = self._asked.steps * self._asked.batch / seconds
            self._asked.result.write_text(json.dumps({"rate": rate, "precision": self._precision()}))
            self._hook.remove()
            raise SystemExit(0)

    def _synchronize(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()


def train_ours(asked: argparse.Namespace) -> None:
    import accel_flowers.training.train as training
    from accel_flowers.config.schema import Config
    from accel_flowers.core.yaml_text import parse_yaml
    from accel_flowers.tracking.run_dir import CONFIG_FILE

    run_dir = asked.result.parent / "run"
    size, workers = {"size": asked.size}, {} if asked.workers is None else {"num_workers": asked.workers}
    config = Config.model_validate(
        {
            "run_dir": str(run_dir),
            "data": {
                "path": str(asked.photos),
                "train_transforms": [{"RandomResizedCrop": size}, "RandomHorizontalFlip"],
                "eval_transforms": [{"Resize": {"size": asked.size * 8 // 7}}, {"CenterCrop": size}],
                **workers,
            },
            "model": {"name": asked.model, "weights": "none"},
            "train": {"epochs": 1000, "global_batch_size": asked.batch, "precision": asked.own_precision},
        }
    )

    def precision() -> str:
        environment = parse_yaml((run_dir / CONFIG_FILE).read_text(), CONFIG_FILE)["environment"]
        return str(environment["precision"])

    loop = training.loop

    def timed(*words: Any) -> None:
        Clock(asked, precision)  # not before: the trials before a run take steps, too
        loop(*words)

    training.loop = timed
    training.train(config)


def train_as_transformers(asked: argparse.Namespace) -> None:
    import torch
    from accelerate import Accelerator
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from torchvision import models, transforms
    from tqdm import tqdm

    accelerator = Accelerator()
    dataset = load_dataset("imagefolder", data_dir=str(asked.photos / "train"), split="train")
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(asked.size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def preprocess(rows: dict[str, Any]) -> dict[str, Any]:
        rows["pixel_values"] = [transform(image.convert("RGB")) for image in rows.pop("image")]
        return rows

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixels": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    loader = DataLoader(
        dataset.with_transform(preprocess),
        shuffle=True,
        collate_fn=collate,
        batch_size=asked.batch,
        num_workers=asked.workers or 0,
        drop_last=True,
    )
    num_classes = dataset.features["label"].num_classes
    network = models.get_model(asked.model, num_classes=num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-5)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10**6)
    model, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)
    criterion = torch.nn.CrossEntropyLoss()
    Clock(asked, lambda: accelerator.mixed_precision)
    progress = tqdm(total=10**6, file=sys.stdout, mininterval=1)
    while True:
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                loss = criterion(model(batch["pixels"]), batch["labels"])
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            progress.update(1)


def train_as_timm(asked: argparse.Namespace) -> None:
    import torch
    from timm import create_model
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    device = torch.device(asked.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # train.py does
        torch.backends.cuda.matmul.allow_tf32 = True
    dataset = create_dataset("", root=str(asked.photos / "train"), is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, asked.size, asked.size),
        batch_size=asked.batch,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=4 if asked.workers is None else asked.workers,
        pin_memory=device.type == "cuda",
        device=device,
    )
    model = create_model(asked.model, num_classes=len(dataset.reader.class_to_idx)).to(device)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-3, momentum=0.9, weight_decay=2e-5)
    criterion = torch.nn.CrossEntropyLoss()
    bf16 = asked.asked_precision == "bf16"
    Clock(asked, lambda: "bf16" if bf16 else "no")
    while True:
        model.train()
        for pixels, labels in loader:
            with torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext():
                loss = criterion(model(pixels), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


KINDS = {"ours": train_ours, "transformers": train_as_transformers, "timm": train_as_timm}


def link_photos(source: Path, target: Path, replicate: int) -> int:
    """Make `target/train/CLASS` with every photo `replicate` times under other names, and `target/val/CLASS` with a few.

    Returns:
        Training photos.
    """
    from accel_flowers.data.decoding.kinds import IMAGE_EXTENSIONS

    folders = sorted(folder for folder in source.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    count = 0
    for folder in folders:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_EXTENSIONS)
        for part, own in (("val", files[:2]), ("train", files[2:])):
            place = target / part / folder.name
            place.mkdir(parents=True)
            for number in range(replicate if part == "train" else 1):
                for file in own:
                    (place / f"{number}-{file.name}").symlink_to(file.resolve())
                    count += part == "train"
    return count


def run_one(kind: str, precision: str, asked: argparse.Namespace, photos: Path, scratch: Path) -> tuple[float, str]:
    """One training in a fresh process.

    Returns:
        Images a second, and the precision that it computed in.
    """
    own = Path(tempfile.mkdtemp(dir=scratch))
    launcher = []
    if kind != "timm":
        by_itself = "bf16" if kind == "ours" else "no"
        file = "single_gpu" if asked.device == "cuda" else "cpu"
        launcher = [
            "-m", "accelerate.commands.launch", "--config_file", str(PROJECT / f"accelerate_configs/{file}.yaml"),
            "--mixed_precision", by_itself if precision == "own" else precision,
            "--num_cpu_threads_per_process", str(asked.threads),
        ]  # fmt: skip
    command = [
        sys.executable, *launcher, __file__, *sys.argv[1:], "--only", kind, "--asked-precision", precision,
        "--photos", str(photos), "--result", str(own / "result.json"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(asked.threads),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    if asked.device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (own / "result.json").exists():
        sys.exit(f"{kind} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    found = json.loads((own / "result.json").read_text())
    return found["rate"], found["precision"]


def measure(asked: argparse.Namespace) -> None:
    kinds = []
    for kind in asked.kinds:
        if importlib.util.find_spec(NEEDS[kind]) is None:
            print(f"{kind}: left out, because {NEEDS[kind]} is not installed here")
        else:
            kinds.append(kind)
    columns = [(kind, precision) for precision in asked.precision for kind in kinds]
    packages = ("torch", "torchvision", "accelerate", "datasets", "pillow", *(["timm"] if "timm" in kinds else []))
    workers = "each its own" if asked.workers is None else asked.workers
    print(
        f"{machine(*packages, gpu=asked.device == 'cuda')}\n{asked.model}, {asked.size} px, {asked.batch} pictures a "
        f"step, {asked.threads} threads, workers: {workers}; {asked.steps} steps after {asked.warmup}",
        flush=True,
    )
    rates: dict[tuple[str, str], list[float]] = {column: [] for column in columns}
    computed: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        count = link_photos(Path(asked.data_path).resolve(), scratch / "photos", asked.replicate)
        if count < asked.batch * (asked.warmup + asked.steps):
            sys.exit(
                f"{count} training photos are less than an epoch of {asked.warmup} + {asked.steps} steps of {asked.batch}: "
                "give less --steps, or every photo several times with --replicate."
            )
        for repeat in range(asked.repeats):
            for kind, precision in columns:
                rate, computed[kind, precision] = run_one(kind, precision, asked, scratch / "photos", scratch)
                rates[kind, precision].append(rate)
                print(
                    f"{repeat + 1:2}  {kind:12} {precision:4} -> {computed[kind, precision]:4} {rate:8.1f} images/s",
                    flush=True,
                )
    for (kind, precision), row in rates.items():
        name = f"{kind}, precision {precision} ({computed[kind, precision]})"
        ours = rates.get(("ours", precision))
        beside = f"; ours / {kind} {ratio(ours, row)}" if ours and kind != "ours" else ""
        print(f"{name}: images/s {spread(row, 1)}{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data.path", dest="data_path", required=True, metavar="DIR", help="photos: DIR/CLASS/*.jpg")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--precision", nargs="+", choices=("own", "no", "bf16"), default=["own"], help="default %(default)s")
    add("--batch", type=int, default=32, help="pictures a step; default %(default)s")
    add("--workers", type=int, help="loader workers; default: what each takes by itself")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for computing; default %(default)s")
    add("--steps", type=int, default=20, help="that are timed; default %(default)s")
    add("--warmup", type=int, default=5, help="steps before; default %(default)s")
    add("--repeats", type=int, default=3, help="runs of each; default %(default)s")
    add("--replicate", type=int, default=1, help="take each photo so many times; default %(default)s")
    add("--model", default="resnet18", help="torchvision's and timm's name; default %(default)s")
    add("--size", type=int, default=224, help="pixels; default %(default)s")
    add("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), help="default: all")
    # These are for the processes that this one starts.
    add("--only", choices=sorted(KINDS), help=argparse.SUPPRESS)
    add("--asked-precision", help=argparse.SUPPRESS)
    add("--photos", type=Path, help=argparse.SUPPRESS)
    add("--result", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.device is None:
        import torch

        asked.device = "cuda" if torch.cuda.is_available() else "cpu"
    asked.own_precision = "auto" if asked.asked_precision == "own" else "launcher"
    if min(asked.steps, asked.warmup, asked.repeats, asked.replicate) < 1:
        parser.error("wanted: 1 or more of --steps, --warmup, --repeats and --replicate")
    if asked.only:
        KINDS[asked.only](asked)
    else:
        measure(asked)


if __name__ == "__main__":
    main()
