"""The recipe: everything that defines a run, as plain data. This file and the three beside it are its reference.

Closed and strict: an unknown key, a string where a number belongs or a missing unit is an error. Sections that have a
``name`` are unions told apart by it. What depends on more than one section is in ``checks.py``.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from restrain.errors import nearest
from restrain.recipe import checks
from restrain.recipe.base import AsTuple, Auto, Length, Moment, NonNegative, Positive, PositiveFloat, Section, Span
from restrain.recipe.schema_data import PACKAGE_NAME, Data
from restrain.recipe.schema_optim import CrossEntropy, Ema, Loss, NextToken, Objective, Optimizer, Schedule
from restrain.recipe.schema_run import Checkpoint, Evaluate, Expect, Parallel, Profile, Track

OwnModel = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
]


def _foreign_name(value: Any) -> Any:
    """A name that is none of ours is meant to be one of timm's, or misspelt: said before the pattern says less."""
    if isinstance(value, str) and "/" not in value:
        ours = get_args(OwnModel)
        meant = nearest(value, ours) or f" Did you mean 'timm/{value}'?"
        raise ValueError(
            f"is no model of ours ({', '.join(ours)}); one of timm's is written timm/NAME, one of an installed package "
            f"PACKAGE/NAME.{meant}"
        )
    return value


ForeignModel = Annotated[str, Field(pattern=PACKAGE_NAME), BeforeValidator(_foreign_name)]


class NoJoin(Section):
    """y = f(x): a plain network."""

    name: Literal["none"]


class AddJoin(Section):
    """y = x + drop_path(f(x)): the residual network."""

    name: Literal["add"]


Join = Annotated[NoJoin | AddJoin, Field(discriminator="name")]


class DropPath(Section):
    """Stochastic depth: branches are dropped at random (Huang et al. 2016, arXiv:1603.09382)."""

    rate: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Probability that the last branch is dropped."
    )
    decay: Literal["linear", "constant"] = Field(
        default="linear", description="Over depth: rising linearly from 0 to `rate`, or `rate` everywhere."
    )
    mode: Literal["sample"] = Field(default="sample", description="sample: drawn for each row of the batch.")


class Init(Section):
    """Weights to begin with, instead of fresh ones."""

    from_: str = Field(
        alias="from",
        min_length=1,
        description="A .safetensors file, a run folder, one of its checkpoints, or `timm`: its own weights, which "
        "need the network once.",
    )
    ema: bool = Field(default=True, description="Of a run: its moving average, where it has one.")
    reset: Annotated[tuple[Literal["head"], ...], AsTuple] = Field(
        default=(), description="Parts that keep their fresh weights: head, where the classes are others."
    )
    interpolate: bool = Field(
        default=True, description="Resize position embeddings to this image size where theirs was another."
    )

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


if TYPE_CHECKING:
    Classes = int  # once it is settled, that is everywhere but in the checks of a recipe
else:
    Classes = Auto | Annotated[int, Field(ge=2)]


class Model(Section):
    """The network."""

    name: OwnModel | ForeignModel = Field(
        description="ImageNet sizes (resnet50) or CIFAR sizes (cifar_resnet20), He et al. 2015; any of timm's, as "
        "timm/convnext_tiny; or one of an installed package, as PACKAGE/NAME."
    )
    classes: Classes = Field(
        description="Number of classes; of a language model the tokens that it can say, auto: those of the data."
    )
    in_chans: Positive = Field(default=3, description="Channels of the input: 3 for colour, 1 for grey.")
    join: Join = Field(default=AddJoin(name="add"), description="Where a branch meets the residual stream.")
    zero_init: Auto | bool = Field(
        default="auto", description="Start the last norm scale of each branch at zero; auto: where the join adds."
    )
    freeze: Annotated[tuple[Annotated[str, Field(pattern=r"^(stem|head|block:\d+(-\d+)?)$")], ...], AsTuple] = Field(
        default=(), description="Parts that are not trained: stem, head, block:3, block:0-3."
    )
    drop_path: DropPath = Field(default=DropPath(), description="Stochastic depth.")
    stem: Literal["basic", "deep"] = Field(
        default="basic",
        description="deep: three 3x3 convolutions for the 7x7 one (ResNet-C, He et al. 2019, 1812.01187).",
    )
    downsample: Literal["conv", "avgpool"] = Field(
        default="conv",
        description="Shortcut of a stride: a strided 1x1 convolution, or an average pooling before it "
        "(ResNet-D). With stem=deep it is timm's resnet50d.",
    )
    blurpool: bool = Field(
        default=False, description="Blur before each strided convolution (Zhang 2019, arXiv:1904.11486; FFCV's form)."
    )
    init: Init | None = Field(default=None, description="Where weights come from; null: fresh ones from the seed.")


class Progressive(Section):
    """Images grow from `first` to `resolution.train` (FFCV; Howard 2018). An epoch has one size, that of its start."""

    first: Positive = Field(description="Side of a training image at the start.")
    ramp: Annotated[tuple[Span, Span], AsTuple] = Field(
        description="When the side begins and ends to grow, in a straight line."
    )
    multiple: Positive = Field(default=32, description="Sides are rounded to multiples of it.")


class Resolution(Section):
    """Image sizes in pixels. Training smaller than evaluation is a known gain (Touvron et al. 2019)."""

    train: Positive | None = Field(default=None, description="Side of a training image; null: the set's own size.")
    eval: Positive | None = Field(default=None, description="Side of an evaluation image; null: that of training.")
    eval_resize: Positive | None = Field(
        default=None, description="Shorter side before the centre crop to `eval`; null: no resizing."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="Kernel of the resizing in evaluation."
    )
    schedule: Progressive | None = Field(
        default=None, description="Progressive resizing: smaller images first; null: the same size throughout."
    )


class Mix(Section):
    """Mixing of images and labels inside a group of the batch."""

    mixup: NonNegative = Field(default=0.0, description="Alpha of mixup (Zhang et al. 2018); 0: none.")
    cutmix: NonNegative = Field(default=0.0, description="Alpha of cutmix (Yun et al. 2019); 0: none.")
    off: Moment | None = Field(default=None, description="From when on nothing is mixed; null: never.")


class Batch(Section):
    """The samples of one optimizer step: `global` rows in groups of `group`, taken `micro` at a time."""

    global_: Annotated[int, Field(gt=0, le=2**20)] = Field(
        alias="global", description="Samples of an optimizer step, over all processes."
    )
    group: Positive = Field(
        description="Samples that share BatchNorm statistics and mixing partners, whatever the number of processes."
    )
    micro: Auto | Positive = Field(default="auto", description="Samples a process computes at a time. Placement.")

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class Recipe(Section):
    """Everything that defines a run. Keys in the order in which a recipe is read."""

    task: Literal["classify", "language"] | Annotated[str, Field(pattern=PACKAGE_NAME)] = Field(
        default="classify",
        description="What is learned: image classification, language (`objective`), or what PACKAGE/NAME of an "
        "installed package says.",
    )
    model: Model = Field(description="The network.")
    data: Data = Field(description="Where samples come from and how they are augmented.")
    resolution: Resolution = Field(default=Resolution(), description="Image sizes.")
    mix: Mix = Field(default=Mix(), description="Mixing of images and labels.")
    loss: Loss = Field(default=CrossEntropy(name="cross_entropy"), description="Training loss.")
    objective: Objective = Field(
        default=NextToken(name="next_token"), description="What a language model says: the next token, or masked ones."
    )
    batch: Batch = Field(description="Samples of an optimizer step.")
    length: Length = Field(description="Length of the run: epochs (90ep) or optimizer steps (64000st).")
    optimizer: Optimizer = Field(description="Rule by which weights move.")
    schedule: Schedule = Field(description="Factor of the learning rate at each step.")
    clip: PositiveFloat | None = Field(
        default=None, description="Largest global norm of the gradient; null: not clipped."
    )
    ema: Ema | None = Field(default=None, description="Moving average of the weights; null: none.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = Field(
        default="auto", description="Arithmetic of the network; auto: bf16 where the hardware has it, else fp32."
    )
    deterministic: bool = Field(default=False, description="Bit-equal repeats on GPUs too, at some speed.")
    parallel: Parallel = Field(default=Parallel(), description="Layout over devices. Placement.")
    evaluate: Evaluate = Field(default=Evaluate(), description="Evaluation.")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="Checkpoints.")
    track: Track = Field(default=Track(), description="Journal and mirrors. Placement.")
    profile: Profile | None = Field(default=None, description="Window of the profiler; null: none. Placement.")
    expect: Expect | None = Field(default=None, description="Expected result; null: none known.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of every random draw of the run.")

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        found = list(checks.problems(self))
        if found:
            raise checks.Misfit(found)
        return self
