"""The step as a graph: when there can be one, and that nothing but its speed tells it from the usual step.

A CPU has no graphs, so `tests/recorder.py` stands in for the GPU's recording: the same operations on the same memory again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from accel_flowers.config.schema import Config
from accel_flowers.core.errors import UserError
from accel_flowers.data.dataset import Batch
from accel_flowers.data.sampler import BatchPlan, random_key
from accel_flowers.data.transforms.gpu.store import DeviceImages
from accel_flowers.data.transforms.gpu.transform import make_device_transform
from accel_flowers.models.freezing import set_training_mode
from accel_flowers.training.graph import CudaRecorder, GraphedStep, graphed, why_not
from accel_flowers.training.optim import build_optimizer, set_lr
from accel_flowers.training.step import LocalEngine, TrainStep, loaded_whole
from accel_flowers.training.tasks import classification
from tests.recorder import OperationRecorder

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLAN = BatchPlan(100, 1, 8)
STEPS = 12


class Net(nn.Module):
    """Convolution, batch norm and an active dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8 * 9, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs))
        return logits


def learn(
    make: Callable[[TrainStep], TrainStep], net: type[nn.Module] = Net, **optim: Any
) -> tuple[list[dict[str, Tensor]], nn.Module, TrainStep]:
    """A dozen steps with other pictures, rates and chance each: what was logged, the network and the step."""
    torch.manual_seed(0)
    network = net()
    set_training_mode(network)
    config = Config(optim={"max_grad_norm": 1.0, **optim})
    step = make(
        TrainStep(
            engine=LocalEngine(),
            model=network,
            optimizer=build_optimizer(network, config.optim),
            task=classification(cross_entropy),
            load=loaded_whole,
            to_inputs=lambda pixels: pixels.float() / 255,
            max_grad_norm=config.optim.max_grad_norm,
        )
    )
    pixels = torch.Generator().manual_seed(1)
    logged = []
    for number in range(STEPS):
        size = 5 if number == 9 else 8
        images = torch.randint(256, (size, 3, 7, 7), dtype=torch.uint8, generator=pixels)
        labels = torch.randint(3, (size,), generator=pixels)
        set_lr(step.optimizer, 0.1 / (1 + number))
        torch.manual_seed(random_key(0, "dropout", number))
        output = step(Batch(pixels=images, labels=labels, samples=labels, micro_batch=number))
        logged.append({"loss": output.loss.detach(), **output.parts})  # kept, as the meter does
    return logged, network, step


def recorded(step: TrainStep, *, insists: bool = False) -> GraphedStep:
    return GraphedStep(**vars(step), recorder=OperationRecorder(step.model.buffers()), insists=insists)


@pytest.mark.holds("A recorded step gives what the usual step gives")
@pytest.mark.parametrize(
    "optim", [{"name": "sgd"}, {"name": "adam"}, {"name": "rmsprop", "max_grad_norm": None}], ids=str
)
def test_losses_and_weights_are_those_of_the_usual_step(optim: dict[str, Any]) -> None:
    """Losses, norms, accuracy, weights, statistics and counters, to the bit: with dropout, clipping, a rate that changes, and a
    batch of another size among them."""
    usual, expected, _ = learn(lambda step: step, **optim)
    logged, network, step = learn(recorded, **optim)
    assert isinstance(step, GraphedStep)
    assert isinstance(step.recorder, OperationRecorder)
    # Three usual steps, two proofs, and one batch that has another size.
    assert step.recorder.replays == STEPS - 3 - 1
    for number, (one, other) in enumerate(zip(usual, logged, strict=True)):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (number, name)
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    assert network.get_buffer("body.1.num_batches_tracked") == STEPS
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.holds("A recorded step gives what the usual step gives")
def test_crops_and_colours_are_those_of_each_batch() -> None:
    """Images that lie on the device: their draws differ from batch to batch, and so do the resizes' shapes."""
    transform = make_device_transform(
        [
            v2.RandomResizedCrop(7),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandomAffine(10, (0.1, 0.1)),
            v2.RandomGrayscale(0.3),
        ]
    )
    assert transform is not None
    store = DeviceImages([(20, 30 + 60 * (number % 2)) for number in range(8)], CPU)
    store.fill(torch.randint(256, (*size, 3), dtype=torch.uint8) for size in store.sizes)

    def draw(batch: Batch) -> tuple[Tensor, ...]:
        samples = torch.arange(len(batch["labels"]))
        rows = [transform.draw(*store.sizes[sample]) for sample in samples.tolist()]
        random_params = torch.tensor(rows, dtype=torch.float64)
        extent = transform.output_extent(random_params)
        return transform.begin(store, samples, random_params, output_extent=extent), random_params

    def to_inputs(pixels: Tensor, random_params: Tensor) -> Tensor:
        return transform.finish(pixels, random_params).float() / 255

    usual, expected, _ = learn(lambda step: replace(step, load=draw, to_inputs=to_inputs))
    logged, network, step = learn(lambda step: recorded(replace(step, load=draw, to_inputs=to_inputs)))
    assert isinstance(step, GraphedStep)
    assert isinstance(step.recorder, OperationRecorder)
    assert step.recorder.replays == STEPS - 3 - 1
    assert [one["loss"] for one in usual] == [other["loss"] for other in logged]
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


class OnHost(Net):
    """Chance that a graph would repeat."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (1 + random.random())


class Remembering(Net):
    """A number on the host that moves from step to step, which a recording freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs) * float(1 + self.calls % 2)


class Waiting(Net):
    """A value of the device decides on the host."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * float(inputs.mean())


REFUSED: list[tuple[type[nn.Module], str]] = [
    (OnHost, "the network draws chance on the host"),
    (Remembering, r"its gradients differ by [\d.]+ of their norm"),
    (Waiting, "it cannot be recorded: operation not permitted when stream is capturing"),
]


@pytest.mark.holds("A recorded step gives what the usual step gives")
@pytest.mark.parametrize(("net", "words"), REFUSED, ids=[net.__name__ for net, _ in REFUSED])
def test_what_a_graph_would_get_wrong_takes_the_usual_way(
    net: type[nn.Module], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        logged, network, step = learn(recorded, net)
    assert isinstance(step, GraphedStep)
    assert step.recorder is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("step: no CUDA graph, because ")
    with pytest.raises(UserError, match=words + r"(.|\n)*--train.cuda-graph auto or off"):
        learn(lambda step: recorded(step, insists=True), net)
    if net is Waiting:  # the others do other things each time
        usual, expected, _ = learn(lambda step: step, net)
        assert [one["loss"] for one in usual] == [other["loss"] for other in logged]
        for name, value in expected.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


class Short(OperationRecorder):
    """There is memory for a recording, and none to run it."""

    def replay(self) -> None:
        super().replay()
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_memory_for_both_is_no_end(caplog: pytest.LogCaptureFixture) -> None:
    usual, expected, _ = learn(lambda step: step)
    logged, network, _ = learn(lambda step: replace(recorded(step), recorder=Short(step.model.buffers())))
    assert "there is not enough memory" in caplog.text
    assert [one["loss"] for one in usual] == [other["loss"] for other in logged]
    assert torch.equal(network.get_buffer("body.1.running_mean"), expected.get_buffer("body.1.running_mean"))


FORBIDDEN: list[tuple[dict[str, Any], torch.device, BatchPlan, str]] = [
    ({}, CPU, PLAN, "only a CUDA device"),
    ({}, GPU, BatchPlan(100, 1, 8, 2), "several processes"),
    ({}, GPU, BatchPlan(100, 1, 8, 1, 4), "several forward passes"),
    ({"train": {"compile": True}}, GPU, PLAN, "--train.compile"),
    ({"debug": {"detect_anomaly": True}}, GPU, PLAN, "--debug.detect-anomaly"),
]


@pytest.mark.parametrize(("sections", "device", "plan", "words"), FORBIDDEN, ids=[row[3] for row in FORBIDDEN])
def test_what_forbids_a_graph_is_told(
    sections: dict[str, Any], device: torch.device, plan: BatchPlan, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    step = learn(lambda step: step)[2]

    def config(wanted: str) -> Config:
        return Config.model_validate({**sections, "train": {**sections.get("train", {}), "cuda_graph": wanted}})

    assert words in (why_not(config("auto"), device=device, plan=plan) or "")
    with caplog.at_level(logging.INFO):
        assert graphed(step, config("off"), device=device, plan=plan) is step
        assert not caplog.records
        assert graphed(step, config("auto"), device=device, plan=plan) is step
    assert words in caplog.text
    with pytest.raises(UserError, match="cannot be a CUDA graph"):
        graphed(step, config("on"), device=device, plan=plan)


def test_nothing_forbids_it_on_one_gpu() -> None:
    assert why_not(Config(), device=GPU, plan=PLAN) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpus_recording_does_what_the_tests_recorder_does() -> None:
    """The methods are the same; what they do is seen where there is a GPU."""
    state: Sequence[Tensor] = [torch.zeros(4, device=GPU)]
    recorder, given = CudaRecorder(GPU), torch.ones(4, device=GPU)
    recorder.aside(lambda: given * 2)
    made = recorder.record(lambda: (state[0].add_(1), given * 2)[1])
    assert not state[0].any()
    given.fill_(5)
    recorder.replay()
    assert made.tolist() == [10.0] * 4
    assert state[0].tolist() == [1.0] * 4
