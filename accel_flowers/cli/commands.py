"""The commands and their usage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accel_flowers import __version__
from accel_flowers.cli.benchmark import benchmark_command
from accel_flowers.cli.common import expand_home, split_imports
from accel_flowers.cli.evaluate import evaluate_command
from accel_flowers.cli.export import export_command
from accel_flowers.cli.find_lr import find_lr_command
from accel_flowers.cli.inspect import inspect_command
from accel_flowers.cli.labels import labels_command
from accel_flowers.cli.launch_config import launch_config_command
from accel_flowers.cli.predict import predict_command
from accel_flowers.cli.probe import probe_command
from accel_flowers.cli.push import push_command
from accel_flowers.cli.report import compare_command, report_command
from accel_flowers.cli.samples import download_command, sample_command
from accel_flowers.cli.selfcheck import selfcheck_command
from accel_flowers.cli.serve import serve_command
from accel_flowers.cli.train import recipes_command, train_command
from accel_flowers.cli.tune import tune_command
from accel_flowers.core.console import write_result
from accel_flowers.core.errors import UserError, did_you_mean
from accel_flowers.core.registry import import_parts

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train_command, "RECIPE [--data.path DIR] [--run-dir DIR] [--section.field VALUE ...]"),
    "tune": (tune_command, "RECIPE --data.path DIR [--trials N] [--minutes M] [--search FIELD=LOW:HIGH ...]"),
    "find-lr": (find_lr_command, "RECIPE --data.path DIR [--html FILE] [--json] [--section.field VALUE ...]"),
    "benchmark": (benchmark_command, "RECIPE --data.path DIR [--json] [--seconds S] [--section.field VALUE ...]"),
    "inspect": (inspect_command, "DIR [--json] [--html FILE] [--split SPLIT_JSON] [--show-transforms RECIPE]"),
    "probe": (probe_command, "DIR [--backbones A,B,...] [--weights FILE,...] [--out DIR] [--json]"),
    "labels": (labels_command, "DIR [--csv FILE] [--html FILE] [--data DIR] [--json]"),
    "evaluate": (evaluate_command, "MODEL_DIR --data DIR [--json]"),
    "predict": (predict_command, "MODEL_DIR PATH... [--top-k K] [--tta] [--out FILE] [--html FILE]"),
    "serve": (serve_command, "MODEL_DIR|FILE.onnx [--host ADDRESS] [--port PORT] [--token auto]"),
    "report": (report_command, "RUN_DIR [--data DIR]"),
    "compare": (compare_command, "RUN_DIR RUN_DIR... [--out compare.html] [--json]"),
    "export": (export_command, "MODEL_DIR --out FILE [--format onnx|int8|torch|openvino] [--picture-in] [--data DIR]"),
    "push": (push_command, "MODEL_DIR OWNER/NAME [--private] [--licence L]"),
    "recipes": (recipes_command, ""),
    "launch-config": (launch_config_command, "[NAME]"),
    "selfcheck": (selfcheck_command, "[--launch FILE] [--minutes M] [--only PART...]"),
    "sample": (sample_command, "DIR"),
    "download": (download_command, "DIR"),
}

_OF_SEVERAL_PROCESSES = ("train", "find-lr", "probe", "evaluate", "benchmark")


def is_of_several_processes(words: Sequence[str]) -> bool:
    """Whether the command is one that a launcher's processes do together; then one of them tells a mistake for all."""
    return next((word for word in words if word in COMMANDS), "train") in _OF_SEVERAL_PROCESSES


def _usage() -> str:
    lines = [f"accel-flowers {__version__}: fine-tune image classifiers on your own photos", ""]
    lines += [f"  accel-flowers {name} {rest}".rstrip() for name, (_, rest) in COMMANDS.items()]
    lines += ["", "accel-flowers COMMAND --help tells every flag; --import MODULE brings your own parts. On several processes:",
              "  accelerate launch --config_file \"$(accel-flowers launch-config multi_gpu)\" -m accel_flowers train ..."]  # fmt: skip
    return "\n".join(lines)


def dispatch(words: Sequence[str]) -> int:
    """Run the command that the words name; returns its exit code.

    Raises:
        UserError: there is no such command, or whatever the command raises.
    """
    modules, words = split_imports([expand_home(word) for word in words])
    if not words:
        raise UserError(f"Which command?\n\n{_usage()}")
    if words[0] in ("-h", "--help"):
        write_result(_usage())
        return 0
    if words[0] == "--version":
        write_result(__version__)
        return 0
    if words[0] not in COMMANDS:
        raise UserError(
            f"There is no command '{words[0]}'.{did_you_mean(words[0], tuple(COMMANDS))} "
            f"Commands: {', '.join(COMMANDS)}."
        )
    import_parts(modules)
    return COMMANDS[words[0]][0](words[1:])
