"""The configuration of a run: frozen models of its sections.

A recipe says *what* is learned; the launch configuration (`accelerate_configs/*.yaml`) says *on what*: processes,
devices, precision. No setting has two owners. This module imports neither torch nor Accelerate, so `--help` is quick.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import tyro
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from accel_flowers.config.field_types import (
    AUTO,
    ONE_OR_MORE_TRANSFORMS,
    PLAIN_VALUE,
    Options,
    StandardDeviation,
    ThreeNumbers,
    TrackerList,
    TransformList,
    TransformSpec,
    UserPath,
    allowed,
    is_utf8,
    known,
    named_each,
    part_name,
    regular_expression,
    transform_parts,
)
from accel_flowers.core import registry

LOSSES = ("cross_entropy", "bce", "focal", "logit_adjusted")
"""Built-in ones; `training/losses.py` has them."""

MULTILABEL = "multilabel"
"""The task of images that may have several labels, or none."""

BEST_METRICS = ("accuracy", "loss", "macro_f1", "map", "micro_f1", "exact_match")
_OF_SETS = ("map", "micro_f1", "exact_match")
"""Of them those that only several labels a picture have; accuracy is for one label."""

Tta = Literal["none", "mirror", "mirror_zoom"]
"""Views of an image whose scores are averaged: it alone; it and its mirror image (left and right exchanged); these, and the
middle of both, enlarged."""


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_people_write(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML says `null`; people also write None, right where a field may be None. But `true` is not the number 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("true and false are not allowed here")
        if isinstance(value, int) and abs(value) > 2**63:
            raise ValueError("must be a number of 64 bits")
        if isinstance(value, str) and ("\0" in value or not is_utf8(value)):
            raise ValueError("must be UTF-8 text without NUL characters")
        return None if value == "None" and field.default is None else value


class About(Section):
    """What a recipe is; shown by `accel-flowers recipes`, no effect on training."""

    summary: str = ""
    """One line: what the recipe does."""
    published: str = ""
    """The figure that the source of the recipe published."""
    not_told: str = ""
    """What the source left open and how it was settled here."""


class ImageSettings(NamedTuple):
    """What is done to each image, with nothing left open."""

    train_transforms: tuple[TransformSpec, ...]
    eval_transforms: tuple[TransformSpec, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class LabelWords(TypedDict):
    """What a recipe, or the words of a command, say of where the labels stand."""

    label_column: str | None
    label_separator: str | None
    label_columns: tuple[str, ...]
    label_fixes: str | None


class GroupWords(TypedDict):
    """What a recipe says of which pictures belong together."""

    group_column: str | None
    group_pattern: str | None


class DataConfig(Section):
    path: UserPath | None = None
    """A folder with one sub-folder of images per class, or with train, val and test folders of such; a .zip of one; a folder with a CSV of file and label; a dataset that `datasets` saved, or Parquet; or hub:OWNER/NAME for one of the Hugging Face hub."""
    label_column: str | None = Field(default=None, min_length=1)
    """Column of the classes, where images come from a dataset or have their classes in a CSV; None = the one there is."""
    label_separator: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = Field(default=None, min_length=1)
    """What stands between several class names in that column, as ';' in 'rose;tulip': a picture then has any number of labels, none where the cell is empty; None = one class, or, in a dataset, a list of them."""
    label_columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Columns of 0 and 1 instead of that column, one for each class and called like it, where a picture may have several labels; all = every column that holds nothing else."""
    split: UserPath = "80/10/10"
    """Percentages for train/val or train/val/test, drawn once, stratified, from train.seed; or the path of a split.json to obey. A folder that has train, val and test folders is taken as it stands."""
    group_pattern: Annotated[str, AfterValidator(regular_expression)] | None = Field(default=None, min_length=1)
    """Regular expression over the pictures' names (relative to the folder): those in which its first group, or all of it where it has none, is the same stay in one part, or fold, as '(plant\\d+)_' for photos of one plant; None = only copies do."""
    group_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = Field(default=None, min_length=1)
    """Column of a dataset, or of a CSV beside the pictures that names them: those of which it says the same stay in one part, or fold, as photos of one plant; an empty cell says nothing. None = only copies do."""
    label_fixes: UserPath | None = Field(default=None, min_length=1)
    """A CSV of file and label, as `accel-flowers labels DIR --csv FILE` writes it: an empty label leaves the picture out, a class is the picture's class from here on. It acts before the split is drawn, on all parts; None = labels are right as they are."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """An image that cannot be read: stop before training and name all of them, or skip (leave out and list in split.json)."""
    sampling: Literal["all", "balanced"] = "all"
    """What an epoch of training shows: all = each picture once; balanced = as many pictures, of each class as many, so that those of large classes take turns over the epochs and those of small ones come again, cropped and coloured anew."""
    train_transforms: TransformList = None
    """torchvision v2 transforms for training, by name with arguments. Images arrive as upright RGB and leave as uint8; the normalisation follows by itself. A size may be auto: that which model.name was trained with. auto (None) for all of it = crops at random and mirror images, at that size."""
    eval_transforms: TransformList = None
    """The same for validation, test, evaluate and predict. auto (None) = the resizing and crop that model.name is scored with by its library."""
    eval_size_factor: float = Field(default=1.0, ge=1, le=4)
    """Where eval_transforms are auto, how many times as large a side of the pictures is: crops at random show things larger in training than the whole picture does afterwards (Touvron et al., 2019). A network that takes one size alone keeps it."""
    batch_transform: Annotated[
        str | dict[str, Any] | list[str | dict[str, Any]] | None,
        AfterValidator(PLAIN_VALUE.validate_python),
        allowed("the name of a batch transform, its name with arguments ('mixup: {alpha: 0.2}'), or a list of such"),
        AfterValidator(named_each),
        ONE_OR_MORE_TRANSFORMS,
    ] = None
    """What is done to a whole batch of inputs, in training: mixup ('{mixup: {alpha: 0.2}}'), cutmix, mixup_or_cutmix ('{mixup_or_cutmix: {mixup: 0.2, cutmix: 1.0}}'), each with chance (of a pair) and off_epochs (the last ones, unmixed); progressive_size ('{progressive_size: {from: 0.6, until: 0.75, multiple: 32}}': small pictures at first, whole ones from a share of the run on); a registered batch transform; or a list, applied in turn; None = nothing."""
    mean: ThreeNumbers | None = None
    """Mean of the red, green and blue channel that is subtracted, pixels scaled to 0..1; auto (None) = the one that model.name was trained with, for most ImageNet's 0.485 0.456 0.406."""
    std: Annotated[ThreeNumbers, StandardDeviation] | None = None
    """Standard deviation that is divided by, in the same scale; auto (None) = as mean, for most 0.229 0.224 0.225."""
    num_workers: int | None = Field(default=None, ge=0, le=1024)
    """Loader worker processes for each training process; None = choose from the cores of this machine."""
    pixels_from: Literal["auto", "reference", "files", "cache", "device", "plain"] = "auto"
    """files: each image is decoded anew, JPEGs on a fast way; cache: decoded once into a memory-mapped file that all processes share; device: decoded once into the GPU's memory, cropped and coloured there; reference (or plain, its earlier name): Pillow and torchvision's transforms, which define what the others give to a level; auto: the first of device, cache and files that fits, and files on a CPU, where training takes longer than loading."""
    cache_dir: UserPath | None = Field(default=None, min_length=1)
    """Where decoded images are kept; None = accel_flowers in the user's cache directory (XDG_CACHE_HOME)."""
    cache_gib: float = Field(default=20.0, gt=0)
    """Most that all decoded images there may take, in GiB; the longest unused give way."""

    @field_validator("label_columns", mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way_to_say_labels(self) -> DataConfig:
        if self.label_columns and (self.label_column is not None or self.label_separator is not None):
            raise ValueError(
                "label_columns name a 0/1 column for each class, label_column and label_separator one column of names: give "
                "the one or the other"
            )
        return self

    @model_validator(mode="after")
    def _size_factor_of_what(self) -> DataConfig:
        if self.eval_size_factor != 1 and self.eval_transforms is not None:
            raise ValueError(
                f"eval_size_factor {self.eval_size_factor:g} enlarges what eval_transforms: auto makes, and eval_transforms are given: write the "
                "larger sizes there, or leave one of the two out"
            )
        return self

    @property
    def labels(self) -> LabelWords:
        """Where the labels stand, as keyword arguments of `load_images`."""
        return LabelWords(
            label_column=self.label_column,
            label_separator=self.label_separator,
            label_columns=self.label_columns,
            label_fixes=self.label_fixes,
        )

    @property
    def groups(self) -> GroupWords:
        """What belongs together, as keyword arguments of `load_images`."""
        return GroupWords(group_column=self.group_column, group_pattern=self.group_pattern)

    @field_validator("train_transforms", "eval_transforms", "mean", "std", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == AUTO else value

    @property
    def batch_transforms(self) -> tuple[TransformSpec, ...]:
        """Those of `batch_transform`, in turn; none where there is none."""
        given = self.batch_transform
        if given is None:
            return ()
        return tuple(given) if isinstance(given, list) else (given,)

    def preprocessing(self) -> ImageSettings:
        """The four fields once they are settled (`models/preprocessing.py`), which is before anything is built."""
        train, evaluation, mean, std = self.train_transforms, self.eval_transforms, self.mean, self.std
        assert train is not None
        assert evaluation is not None
        assert mean is not None
        assert std is not None
        return ImageSettings(train, evaluation, mean, std)

    @field_validator("pixels_from")
    @classmethod
    def _one_name(cls, value: str) -> str:
        """A run that began under the earlier name goes on under either."""
        return "reference" if value == "plain" else value


class ModelConfig(Section):
    name: str = "resnet18"
    """Architecture: any classification model of torchvision, by its name there; timm/NAME for one of timm (`pip install 'accel-flowers[timm]'`); a registered one; or auto: the one that the file of model.weights is for, else a good one for this machine, which is told and written into config.yaml."""
    weights: UserPath = "imagenet"
    """Starting weights: imagenet (its library's download), none (random), or a .safetensors or .pth file, whole or partial."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of dropout in front of the new last layer; None = what the architecture has."""
    freeze: Annotated[
        Literal["none", "backbone"] | Annotated[int, Field(ge=1)],
        allowed("none, backbone, or a number of first stages: 1 or more"),
    ] = "none"
    """What keeps its weights: none, backbone (everything but the new last layer), or a number: so many first stages."""

    tta: Literal[Tta, "auto"] = "none"
    """Test-time augmentation, views of a picture whose scores are averaged: none; mirror (it and its mirror image; takes twice the time), mirror_zoom (these, and the middle of both enlarged; four times), or auto: whichever has the lowest validation loss. It is settled when the run ends, kept in the model, and used by evaluate and predict; epochs are scored without it."""


class LossConfig(Section):
    task: Annotated[str, known("task", "classification", MULTILABEL, "distillation", "manifold_mixup")] = (
        "classification"
    )
    """What a step computes: classification (the network's scores against the labels by `name`); multilabel (the same where a picture may have several labels, or none: each class is told by itself); distillation (a saved model's answers beside the labels: task_options '{teacher: runs/large, temperature: 2, weight: 0.5}'); manifold_mixup (pairs of pictures mixed inside the network: task_options '{alpha: 2, stages: 3}'); or a registered task."""
    task_options: Options = {}
    """Arguments of the task."""
    name: Annotated[str, known("loss", *LOSSES)] = "cross_entropy"
    """Loss of the scores: cross_entropy; bce (binary cross-entropy of each class by itself, summed); focal (options '{gamma: 2}': what is known already counts less); logit_adjusted (options '{tau: 1}': for classes of unlike sizes); or a registered loss. Validation is told in cross-entropy whatever this is."""
    options: Options = {}
    """Arguments of the loss, as '{gamma: 2}'."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes, 0..1; with several labels over yes and no of each class."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced = each class weighs the same, whatever its number of images; with several labels, yes and no of each class do."""

    @model_validator(mode="after")
    def _one_correction(self) -> LossConfig:
        if self.name == "logit_adjusted" and self.class_weights != "none":
            raise ValueError(
                "logit_adjusted and class_weights: balanced both correct for the sizes of classes: take one of them"
            )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it is cross-entropy, comes to 0 where all is learnt, and is what validation is told in."""
        varied = self.label_smoothing or self.class_weights != "none"
        plain = (("classification", "cross_entropy"), (MULTILABEL, "bce"))
        return (self.task, self.name) in plain and not varied

    @property
    def _is_of_task(self) -> bool:
        """Recipes of earlier versions give a task's arguments as `options`."""
        without = ("classification", MULTILABEL)
        return self.name == "cross_entropy" and self.task not in without and not self.task_options

    @property
    def options_of_task(self) -> dict[str, Any]:
        """What the task is made with."""
        return dict(self.options if self._is_of_task else self.task_options)

    @property
    def teacher(self) -> str | None:
        """Path of the model that teaches, where the recipe names one."""
        teacher = self.options_of_task.get("teacher")
        return teacher if self.task == "distillation" and isinstance(teacher, str) and teacher else None

    @property
    def options_of_loss(self) -> dict[str, Any]:
        """What the loss is made with."""
        return {} if self._is_of_task else dict(self.options)


class OptimConfig(Section):
    name: Annotated[str, known("optimizer", "sgd", "adam", "adamw", "rmsprop", of_timm=True)] = "sgd"
    """Optimizer of torch.optim: sgd, adam, adamw or rmsprop; timm/NAME for one of timm, as timm/lion or timm/muon (`pip install 'accel-flowers[timm]'`); or a registered one."""
    options: Options = {}
    """Arguments of an optimizer of timm or a registered one, as '{betas: [0.9, 0.95]}'."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate at its height; the schedule multiplies it."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd, rmsprop and those of timm that have one."""
    nesterov: bool = False
    """Nesterov's momentum (sgd only)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty (sgd, adam, rmsprop) or decoupled decay (adamw)."""
    decay_norms_and_biases: bool = True
    """Whether weight_decay also acts on biases and normalisation layers."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Layer-wise decay of the learning rate: a stage has lr times this to the power of the stages above it, the head counted, so 0.9 gives the last stage 0.9 lr and the one before 0.81 lr; None = all have lr. The stages are those that model.freeze counts."""
    head_lr_factor: float = Field(default=1.0, gt=0)
    """Learning rate of the head, as a factor of lr: 10 for a new head on pretrained weights that shall change little."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients are scaled down to this norm, over all parameters; None = no clipping."""
    sam_rho: float | None = Field(default=None, gt=0)
    """Sharpness-aware minimisation (SAM): each forward pass's gradient is taken at the worst weights so near, for example 0.05, which takes twice the time and finds flatter minima; None = at the weights as they are. The micro-batch is part of the recipe then: set train.micro_batch_size."""

    @property
    def differs_by_layer(self) -> bool:
        """Whether layers have rates of their own."""
        return self.layer_decay is not None or self.head_lr_factor != 1.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimConfig:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError(
                f"nesterov goes with name: sgd and a momentum above 0, not with {self.name} and {self.momentum:g}; "
                "switch it off with nesterov: false or --optim.no-nesterov"
            )
        return self


class ScheduleConfig(Section):
    name: Literal["constant", "step", "multistep", "cosine", "one_cycle"] = "cosine"
    """Course of the learning rate over the run."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs of linear rise in front, whose first step is above 0 and whose last is full (one_cycle: length of its rising part, 0 = 30 % of the run)."""
    step_epochs: float = Field(default=7, gt=0)
    """step: epochs between two drops."""
    milestones: tuple[float, ...] = (7, 14, 21)
    """multistep: epochs at which the rate drops."""
    gamma: float = Field(default=0.1, gt=0)
    """step, multistep: factor of each drop."""
    min_factor: float = Field(default=0.0, ge=0, le=1)
    """cosine, one_cycle: the rate at the end, as a factor of optim.lr."""

    @field_validator("milestones")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)) or value[0] <= 0:
            raise ValueError("milestones must be rising epochs above 0")
        return value


class TrainConfig(Section):
    epochs: int = Field(default=25, ge=1)
    """Passes over the training images."""
    min_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps that a run has at least: with few pictures there are so many more epochs, and the head's phase, the schedule, gradual unfreezing and early stopping, which are counted in epochs, grow alike. A few steps teach a network nothing, however small the folder is. None = epochs alone count."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall-clock time from the start of the training to its last score: before the first step a short trial finds how many steps fit, evaluations included, and the schedule is laid over these; epochs is then the most there are. None = all epochs, whatever they take."""
    head_epochs: float = Field(default=0.0, ge=0)
    """Epochs at the beginning in which the new head trains alone, at the full rate, while all else stays as with model.freeze backbone (linear probing, then fine-tuning); then the schedule begins, with its warm-up, for the epochs that are left. 0 = everything trains from the start."""
    unfreeze_every_epochs: float | None = Field(default=None, gt=0)
    """Gradual unfreezing after head_epochs: the last stage begins to train, and after so many epochs each the one before it; None = all stages at once."""
    global_batch_size: int = Field(default=32, ge=1)
    """Images in one optimizer step, over all processes and accumulation."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Images in one forward pass of one process; None = global_batch_size / processes. With it set, any number of processes does the same arithmetic."""
    eval_batch_size: int = Field(default=32, ge=1)
    """Images in one forward pass of evaluation."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Everything random follows from it: split, order, augmentation, dropout, first weights."""
    best_metric: Annotated[str, known("metric", *BEST_METRICS)] = "accuracy"
    """Validation metric that names the best epoch: accuracy, loss, macro_f1, or a registered one; with several labels a picture map, loss, micro_f1, macro_f1, exact_match, or a registered one. Of equal values that with the lower validation loss is the better."""
    early_stopping_epochs: int | None = Field(default=None, ge=1)
    """Stop after so many epochs without a better best_metric, or an equal one at a lower loss; None = never."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """A loss that is nan or infinite: stop and tell where, or rollback: go back to the last checkpoint with half the learning rate, three times at most."""
    precision: Literal["auto", "launcher", "no", "bf16", "fp16"] = "auto"
    """no (float32), bf16 or fp16; launcher: what `accelerate launch` gives; auto: the same, but on a CPU a trial of a few seconds takes float32 instead of bf16 where that trains this network faster, and a run without a launcher takes bf16 where a GPU has it or the trial finds it faster; a GPU that only emulates bf16 takes fp16. It is remembered in the run and, for others, in the user's cache directory."""
    compile: bool = False
    """Compile the model with torch.compile."""
    cuda_graph: Literal["off", "auto", "on"] = "off"
    """Record forward and backward pass as a CUDA graph, which starts in one call instead of hundreds: quicker where batches are small. auto: where nothing forbids it (several processes or forward passes a step, compile) and its gradients agree with the usual pass's; on: an error where it cannot be. It changes no result."""
    log_every_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of training loss in metrics.jsonl."""

    @model_validator(mode="after")
    def _the_head_comes_first(self) -> TrainConfig:
        if self.unfreeze_every_epochs is not None and not self.head_epochs:
            raise ValueError(
                "unfreeze_every_epochs goes with head_epochs, the epochs of the head alone in front: add head_epochs: 1 or "
                "--train.head-epochs 1"
            )
        return self


class EmaConfig(Section):
    decay: float | None = Field(default=None, gt=0, lt=1)
    """Share of a moving average of the weights that a step keeps, for example 0.999; None = no average. It warms up as (1 + step) / (10 + step). With it, averaged weights are scored beside the raw ones (val_ema/...), name the best epoch and are what model/ holds."""


class SoupConfig(Section):
    epochs: int | None = Field(default=None, ge=2)
    """At the end of the run, average the weights (where there is a moving average, those) of the best so many epochs: the best one, and of the others, best first, each with which validation does not get worse; None = the best epoch alone."""
    start: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0, le=1)] | None,
        allowed("auto, or a share above 0, up to 1"),
    ] = None
    """At the end of the run, mix these weights with those from before fine-tuning, which are those after train.head_epochs: the share of the latter, 0..1; or auto: of 0.1, 0.2, 0.3 and 0.5 that with the lowest validation loss, where train.best_metric does not get worse with it and the loss gets lower; None = no mixing."""


class CheckpointConfig(Section):
    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two checkpoints inside an epoch; None = at the end of each epoch only."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes between two checkpoints inside an epoch; None = at the end of each epoch only."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; with two, a damaged one has one before it."""
    keep_best: int = Field(default=1, ge=1)
    """Best checkpoints that are kept."""


class DebugConfig(Section):
    fast_dev_run: bool = False
    """Everything once and quickly: one epoch of two steps, one batch of each evaluation; to see that a recipe runs."""
    subset: float | None = Field(default=None, gt=0, le=1)
    """Share of the images of each part and class to work with, 0..1; the others are listed as left out in split.json."""
    overfit_batches: int | None = Field(default=None, ge=1)
    """Train on so many steps' worth of images again and again, without augmentation, and validate on the same: a network that can learn comes close to loss 0."""
    profile: bool = False
    """Profile a few steps: a Chrome trace and a table of data, forward, backward and optimizer in RUN_DIR/profile."""
    detect_anomaly: bool = False
    """Name the operation whose gradient is nan (torch's anomaly detection; about twice as slow)."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, also on a GPU; an error where an operation has none."""

    @model_validator(mode="after")
    def _one_way_to_see_less(self) -> DebugConfig:
        if sum([self.fast_dev_run, self.subset is not None, self.overfit_batches is not None]) > 1:
            raise ValueError("fast_dev_run, subset and overfit_batches go one at a time")
        return self


class TrackingConfig(Section):
    wandb: Literal["off", "online", "offline"] = "off"
    """Weights & Biases: off, online (needs `wandb login`), or offline (files for `wandb sync`). WANDB_MODE of the environment goes over online and offline."""
    wandb_project: str | None = Field(default=None, min_length=1)
    """Project that the W&B run belongs to, and runs of trackers in `also` that have projects; None = WANDB_PROJECT of the environment, else accel-flowers."""
    wandb_name: str | None = None
    """Name of the W&B run; None = WANDB_NAME of the environment, else the run directory's name."""
    wandb_registry: str | None = Field(default=None, min_length=1)
    """Collection of a W&B registry that the best model is linked to at the end, as wandb-registry-model/flowers; None = none."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run directory (needs `pip install tensorboard`)."""
    also: TrackerList = ()
    """More trackers, by name or with arguments, as '[mlflow, my/live: {port: 80}]': Accelerate's own (aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, wandb), which get numbers and the configuration, or registered ones."""
    report: bool = True
    """Draw report.html at the end of the run, some 20 s on a CPU; `accel-flowers report RUN_DIR` does it at any time."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> TrackingConfig:
        also = [part_name(spec) for spec in self.also]
        own = ["wandb"] * (self.wandb != "off") + ["tensorboard"] * self.tensorboard
        if doubled := sorted({name for name in also if (also + own).count(name) > 1}):
            raise ValueError(f"also: {', '.join(doubled)} would be opened twice: name each tracker once")
        return self


class Config(Section):
    run_dir: UserPath | None = None
    """Directory that receives everything the run makes; None = runs/RECIPE."""
    resume: Literal["never", "auto"] = "never"
    """A run directory that holds a run already: never = error, auto = go on from its last checkpoint."""
    about: tyro.conf.Suppress[About] = About()
    """What the recipe is."""
    data: DataConfig = DataConfig()
    """Images: where, how split, how transformed."""
    model: ModelConfig = ModelConfig()
    """Network and its starting weights."""
    loss: LossConfig = LossConfig()
    """Cross-entropy and its variants."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""
    train: TrainConfig = TrainConfig()
    """Length, batches, seed, choice of the best."""
    ema: EmaConfig = EmaConfig()
    """Moving average of the weights."""
    soup: SoupConfig = SoupConfig()
    """Mean of several epochs' weights, and of these and the first ones."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved, and what is kept."""
    debug: DebugConfig = DebugConfig()
    """To find out what is wrong, on one GPU or none."""
    tracking: TrackingConfig = TrackingConfig()
    """Where curves go beside metrics.jsonl."""

    @model_validator(mode="after")
    def _the_start_has_a_head(self) -> Config:
        if self.soup.start is None:
            return self
        if not self.train.head_epochs:
            raise ValueError(
                "soup.start mixes with the weights from before fine-tuning, and without head_epochs the head of these has learnt nothing, "
                "so the mean would be spoilt: add train.head_epochs: 1 or --train.head-epochs 1"
            )
        if self.model.freeze == "backbone":
            raise ValueError(
                "soup.start goes with fine-tuning, and model.freeze: backbone leaves the head alone to train in all epochs: take one of them"
            )
        return self

    @model_validator(mode="after")
    def _fits_several_labels(self) -> Config:
        """What goes with several labels, and what with one; a task of the user's own is for either."""
        loss, metric = self.loss, self.train.best_metric
        columns = self.data.label_separator is not None or bool(self.data.label_columns)
        if columns and loss.task == "distillation":
            raise ValueError(
                "loss.task: distillation compares one class with the others, and data.label_separator and label_columns say "
                "several labels a picture: take loss.task: multilabel, or one label each"
            )
        if loss.task == "classification" and not columns and metric in _OF_SETS:
            raise ValueError(
                f"train.best_metric: {metric} is for several labels a picture, and loss.task is classification: take accuracy, "
                "loss or macro_f1, or loss.task: multilabel"
            )
        if loss.task != MULTILABEL:
            return self
        if loss.name in ("focal", "logit_adjusted"):
            raise ValueError(
                f"loss.name: {loss.name} is for one class a picture, and loss.task is multilabel: take bce, with "
                "loss.class_weights: balanced for classes of unlike sizes, or a loss of your own"
            )
        if self.data.sampling == "balanced":
            raise ValueError(
                "data.sampling: balanced lets classes take turns, and with loss.task: multilabel a picture has several: take "
                "loss.class_weights: balanced"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_balanced_once(self) -> Config:
        loss = self.loss
        if self.data.sampling == "balanced" and (loss.class_weights != "none" or loss.name == "logit_adjusted"):
            by = "loss.name: logit_adjusted" if loss.name == "logit_adjusted" else "loss.class_weights: balanced"
            raise ValueError(
                f"data.sampling: balanced and {by} both correct for the sizes of classes: take one of them"
            )
        return self


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain values for YAML, JSON and trackers."""
    return config.model_dump(mode="json")


def flat_fields(config: Config) -> dict[str, Any]:
    """Dotted name → plain value of every field: "optim.lr" → 0.01; a mapping that is a field's value stays whole."""
    flat: dict[str, Any] = {}
    for name, value in config_to_dict(config).items():
        if isinstance(getattr(config, name), Section):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            flat[name] = value
    return flat


def own_parts(config: Config) -> dict[str, dict[str, str]]:
    """The user's own parts that a configuration names: "kind my/name" → module and digest of its source.

    Names that are not registered are left out: whoever builds them tells.
    """
    names: dict[registry.Kind, list[str]] = {
        "transform": transform_parts(*(config.data.train_transforms or ()), *(config.data.eval_transforms or ())),
        "batch_transform": transform_parts(*config.data.batch_transforms),
        "model": [config.model.name],
        "task": [config.loss.task],
        "loss": [config.loss.name],
        "optimizer": [config.optim.name],
        "metric": [config.train.best_metric],
    }
    return registry.described(names)
