#!/usr/bin/env python
"""What a GPU makes of images that lie on it, and of the training step: images a second, pixels, where the time goes.

  pixels    `DeviceTransform.apply` beside torchvision's transforms on Pillow images; whether it ever waits for the device
  draw      chance of one sample, on the host
  apply     images of a batch alone: eager, fused by torch.compile, replayed as a CUDA graph
  train     ResNet-18, bf16 autocast, channels_last, fused SGD, on a batch that stays on the device: eager, compiled, replayed
  both      apply, normalisation and step together
  profile   torch's profiler of eager steps of both

Prints one JSON object at the end, and each figure on stderr as it comes. What fails is reported in its place and spoils nothing
else; what no longer fits into `--minutes` is left out and named. Needs torch, torchvision, NumPy,
Pillow and simplejpeg alone.

  python benchmarks/gpu.py
  python benchmarks/gpu.py --device cpu --quick      # whether it runs
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from accel_flowers.data.transforms.gpu.store import DeviceImages, bytes_needed
from accel_flowers.data.transforms.gpu.transform import DeviceTransform, make_device_transform

SIZES = [(500, 375), (375, 500), (499, 665), (333, 500), (500, 333), (240, 320)]
"""Height and width, as photos of a public data set have them."""


def lists(side: int) -> dict[str, list[Any]]:
    """What is done to the images, to `side` x `side` pixels."""
    crop = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return {
        "crop": crop,
        "colour": [*crop, jitter, v2.RandomRotation(10), v2.RandomGrayscale(0.2)],
        "turned": [
            v2.RandomRotation(30), v2.CenterCrop(2 * side), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.1), v2.Resize((side, side)),
        ],
    }  # fmt: skip


class Bench:
    """Device, time left, and what was found."""

    def __init__(self, device: torch.device, *, quick: bool, minutes: float) -> None:
        self.device, self.quick = device, quick
        self.side = 64 if quick else 224
        self.found: dict[str, Any] = {}
        self._end = time.monotonic() + 60 * minutes

    def attempt(self, name: str, work: Callable[[], Any], *, seconds: float = 5) -> None:
        """One figure: `work`'s answer, or its error; left out where `seconds` are no longer there."""
        if time.monotonic() + seconds > self._end:
            self.found[name] = "left out: no time"
        else:
            try:
                self.found[name] = work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the other figures are still wanted
                self.found[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        shown = self.found[name]
        print(f"{name}: {shown if not isinstance(shown, str) else shown[:300]}", file=sys.stderr, flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, work: Callable[[], object], batch: int) -> dict[str, float]:
        """Images a second of a function that handles one batch (median of three rounds), and peak memory."""
        for _ in range(1 if self.quick else 5):
            work()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        rates = []
        for _ in range(3):
            begin, count = time.perf_counter(), 0
            while not count or (time.perf_counter() - begin < (0.05 if self.quick else 0.7)):
                for _ in range(1 if self.quick else 10):
                    work()
                    count += 1
                self.wait()  # also keeps the queue of kernels short
            rates.append(count * batch / (time.perf_counter() - begin))
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return {"images_per_second": round(median(rates), 1), "peak_mib": round(peak / 2**20)}


def smooth(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Blobs of colour with some noise, as photos have them."""
    small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8))


def compiled_with(transform: DeviceTransform, on: bool) -> DeviceTransform:
    transform.compiled = on
    return transform


def built(steps: list[Any]) -> DeviceTransform:
    transform = make_device_transform(steps)
    assert transform is not None
    return transform


class Batches:
    """A few batches whose draws lie on the device."""

    def __init__(self, store: DeviceImages, transform: DeviceTransform, batch: int, count: int) -> None:
        self.store, self.transform = store, transform
        self._batches, self._next = [], 0
        torch.manual_seed(batch)
        for _ in range(count):
            samples = torch.randint(len(store), (batch,))
            random_params = torch.tensor(
                [transform.draw(*store.sizes[sample]) for sample in samples.tolist()], dtype=torch.float64
            )
            output_extent = transform.output_extent(random_params)
            self._batches.append((samples.to(store.device), random_params.to(store.device), output_extent))

    def pixels(self) -> Tensor:
        samples, random_params, output_extent = self._batches[self._next % len(self._batches)]
        self._next += 1
        return self.transform.apply(self.store, samples, random_params, output_extent=output_extent)

    def replayed(self) -> Callable[[], Tensor]:
        """The same as a CUDA graph, in the shapes that serve every batch; the batch is copied into its place."""
        samples, random_params = (tensor.clone() for tensor in self._batches[0][:2])

        def work() -> Tensor:
            return self.transform.apply(self.store, samples, random_params)

        replay, made = captured(work)

        def step() -> Tensor:
            samples.copy_(self._batches[self._next % len(self._batches)][0])
            random_params.copy_(self._batches[self._next % len(self._batches)][1])
            self._next += 1
            replay()
            return made

        return step


def captured(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()
    return graph.replay, made


def pixels_of(bench: Bench, store: DeviceImages, images: list[Image.Image], steps: list[Any], dtype: Any) -> Any:
    """How far the device's pixels are from the plain way's."""
    transform = built(steps)
    transform.dtype = dtype
    plain_way = v2.Compose([*steps, v2.PILToTensor()])
    plain, random_params = [], []
    for number, image in enumerate(images):
        torch.manual_seed(number)
        plain.append(plain_way(image))
        torch.manual_seed(number)
        random_params.append(transform.draw(image.height, image.width))
    table = torch.tensor(random_params, dtype=torch.float64)
    output_extent, samples = transform.output_extent(table), torch.arange(len(images), device=bench.device)
    on_device = table.to(bench.device)
    transform.apply(store, samples, on_device, output_extent=output_extent)  # what waits only once has waited
    bench.wait()
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        made = transform.apply(store, samples, on_device, output_extent=output_extent)
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    far = (made.cpu().int() - torch.stack(plain).int()).abs()
    share = (far > 1).float().mean().item()
    return {"mean": round(far.float().mean().item(), 5), "max": int(far.max()), "share_above_1": round(share, 6)}


class Training:
    """A network that learns from one batch's pixels, uint8 [B, 3, H, W] on the device."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = torchvision.models.resnet18(num_classes=5).to(
            device, memory_format=torch.channels_last
        )
        self.forward: Callable[[Tensor], Tensor] = self.network
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9, fused=True)
        self._device = device
        mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, 3, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        inputs = pixels.to(torch.float32, memory_format=torch.channels_last).mul_(self._scale).add_(self._shift)
        with torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False):
            loss = nn.functional.cross_entropy(self.forward(inputs), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def train_rate(bench: Bench, batch: int, way: str, batches: Batches | None = None) -> dict[str, float]:
    """The training step, on pixels that stay or on images of `batches`. Ways: eager, compiled, replayed."""
    training = Training(bench.device)
    if way == "compiled":
        torch._dynamo.reset()
        training.forward = torch.compile(training.network)
    generator = torch.Generator(bench.device).manual_seed(0)
    labels = torch.randint(5, (batch,), device=bench.device, generator=generator)
    shape = (batch, 3, bench.side, bench.side)
    still = torch.randint(256, shape, device=bench.device, dtype=torch.uint8, generator=generator)
    if way != "replayed":
        return bench.rate(lambda: training.step(batches.pixels() if batches else still, labels), batch)
    # Two graphs: the images', and one of the step that reads where they end up.
    pixels = batches.replayed() if batches else None
    replay, _ = captured(lambda: training.step(still, labels))

    def both() -> None:
        if pixels:
            still.copy_(pixels())
        replay()

    return bench.rate(both, batch)


def profile_of(bench: Bench, batch: int, batches: Batches) -> str:
    """Where the time of eager steps goes, by the device's time where there is one."""
    training = Training(bench.device)
    labels = torch.zeros(batch, dtype=torch.int64, device=bench.device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(3):
        training.step(batches.pixels(), labels)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(2 if bench.quick else 10):
            training.step(batches.pixels(), labels)
        bench.wait()
    by = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=60))


def draw_cost(store: DeviceImages, transform: DeviceTransform) -> float:
    """Microseconds a sample, the seeding with it."""
    begin, count = time.perf_counter(), 2000
    for seed in range(count):
        torch.default_generator.manual_seed(seed)
        transform.draw(*store.sizes[seed % len(store)])
    return round((time.perf_counter() - begin) / count * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see whether it runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="what does not fit in is left out")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="batch sizes; 32 64 128 256")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    bench = Bench(device, quick=options.quick, minutes=options.minutes)
    batch_sizes = options.batches or ([2, 4] if options.quick else [32, 64, 128, 256])
    bench.found["machine"] = {
        "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "pillow": PIL.__version__, "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    }  # fmt: skip

    rng = np.random.default_rng(0)
    sizes = [SIZES[number % len(SIZES)] for number in range(6 if options.quick else 96)]
    images = [smooth(height, width, rng) for height, width in sizes]
    begin = time.perf_counter()
    store = DeviceImages(sizes, device)
    store.fill(torch.from_numpy(np.array(image)) for image in images)
    seconds = time.perf_counter() - begin
    need = bytes_needed(sizes)
    equal = all(torch.equal(store.image(n).cpu(), torch.from_numpy(np.array(images[n]))) for n in range(len(store)))
    bench.found["store"] = {
        "pictures": len(store), "bytes": need, "fill_seconds": round(seconds, 3), "equal": equal,
    }  # fmt: skip

    kinds = lists(bench.side)
    ways = ["eager", *(["replayed", "compiled"] if on_gpu else [])]
    for name, steps in kinds.items():
        transform = built(steps)
        for dtype in (None, torch.float32):
            label = "float32" if dtype else "default"
            bench.attempt(f"pixels/{name}/{label}", lambda s=steps, d=dtype: pixels_of(bench, store, images, s, d))
        bench.attempt(f"draw/{name}/microseconds", lambda t=transform: draw_cost(store, t))
    for batch in batch_sizes:
        for name in ("crop", "colour"):
            batches = Batches(store, built(kinds[name]), batch, 2 if options.quick else 8)
            bench.attempt(f"apply/{name}/eager/{batch}", lambda b=batches, n=batch: bench.rate(b.pixels, n))
            if on_gpu:
                bench.attempt(f"apply/{name}/replayed/{batch}", lambda b=batches, n=batch: bench.rate(b.replayed(), n))
    for batch in batch_sizes:
        for way in ways[:2]:
            bench.attempt(f"train/{way}/{batch}", lambda n=batch, w=way: train_rate(bench, n, w))
            for name in ("crop", "colour"):
                batches = Batches(store, built(kinds[name]), batch, 2 if options.quick else 8)
                bench.attempt(
                    f"both/{name}/{way}/{batch}",
                    lambda n=batch, w=way, b=batches: train_rate(bench, n, w, b),
                    seconds=8,
                )
    for name in ("crop", "colour"):
        batch = batch_sizes[-2:][0]
        batches = Batches(store, built(kinds[name]), batch, 2)
        bench.attempt(f"profile/{name}/{batch}", lambda n=batch, b=batches: profile_of(bench, n, b), seconds=15)
    if on_gpu:  # the slow ones last: each compiles
        for batch in batch_sizes:
            for name in ("crop", "colour"):
                batches = Batches(store, compiled_with(built(kinds[name]), True), batch, 8)
                bench.attempt(
                    f"apply/{name}/fused/{batch}", lambda b=batches, n=batch: bench.rate(b.pixels, n), seconds=40
                )
                bench.attempt(
                    f"apply/{name}/fused and replayed/{batch}",
                    lambda b=batches, n=batch: bench.rate(b.replayed(), n), seconds=15,
                )  # fmt: skip
        for batch in batch_sizes[::-1]:
            bench.attempt(f"train/compiled/{batch}", lambda n=batch: train_rate(bench, n, "compiled"), seconds=70)
            batches = Batches(store, compiled_with(built(kinds["colour"]), True), batch, 8)
            bench.attempt(
                f"both/colour/compiled/{batch}",
                lambda n=batch, b=batches: train_rate(bench, n, "compiled", b), seconds=70,
            )  # fmt: skip
    for name in [name for name in bench.found if name.startswith("profile/")]:
        print(f"\n{name}\n{bench.found.pop(name)}", file=sys.stderr)
    print(json.dumps(bench.found, indent=1))


if __name__ == "__main__":
    main()
