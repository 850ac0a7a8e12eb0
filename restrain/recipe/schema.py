"""The recipe: everything that defines a run, as plain data. This file and the three beside it are its reference.

Closed and strict: an unknown key, a string where a number belongs or a missing unit is an error. Sections that have a
``name`` are unions told apart by it. What depends on more than one section is in ``checks.py``.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from restrain.recipe import checks
from restrain.recipe.base import AsTuple, Auto, Length, Moment, NonNegative, Positive, PositiveFloat, Section, Span
from restrain.recipe.schema_data import PACKAGE_NAME, Data
from restrain.recipe.schema_model import Model
from restrain.recipe.schema_optim import CrossEntropy, Ema, Loss, NextToken, Objective, Optimizer, Schedule
from restrain.recipe.schema_run import Checkpoint, Evaluate, Expect, Parallel, Profile, Track


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

    task: Literal["classify", "language", "regress"] | Annotated[str, Field(pattern=PACKAGE_NAME)] = Field(
        default="classify",
        description="What is learned: image classification, language (`objective`), a number at the end of a "
        "sequence, or what PACKAGE/NAME of an installed package says.",
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
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8", "fp64"] = Field(
        default="auto",
        description="Arithmetic of the network; auto: bf16 where the hardware has it, else fp32. fp8: bf16, with the "
        "linear layers of residual blocks in float8.",
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
