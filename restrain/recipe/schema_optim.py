"""The sections that say how weights move: optimizer, schedule, loss, moving average."""

from typing import Annotated, Literal

from pydantic import Field

from restrain.recipe.base import AsTuple, Every, Moment, NonNegative, Positive, PositiveFloat, Section, Span, Unit
from restrain.recipe.durations import Duration


class _Optimizer(Section):
    lr: PositiveFloat = Field(description="Learning rate, of which the schedule takes a factor at every step.")
    lr_per: Positive | None = Field(
        default=None, description="Global batch that `lr` is meant for; null: `lr` as written, whatever the batch."
    )
    lr_rule: Literal["linear", "sqrt", "none"] = Field(
        default="none",
        description="How `lr` follows the batch: lr x batch.global / lr_per (Goyal et al. 2017) or its square root.",
    )
    weight_decay: NonNegative = Field(
        default=0.0, description="Weight decay: added to the gradient (sgd), decoupled (adamw)."
    )
    no_decay: Literal["none", "norm_and_bias"] = Field(
        default="none", description="What weight decay spares: nothing, or norm layers and all biases."
    )


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Momentum of the gradient's average."
    )
    nesterov: bool = Field(default=False, description="Nesterov's momentum: look ahead before the step.")


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"]
    betas: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], AsTuple] = Field(
        default=(0.9, 0.999), description="Decay of the averages of the gradient and of its square."
    )
    eps: PositiveFloat = Field(default=1e-8, description="Added to the root of the second moment.")


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="name")]


class _Schedule(Section):
    warmup: Span = Field(default=Duration(0, "ep"), description="Length of the linear rise at the start.")
    warmup_from: Unit = Field(default=0.0, description="Factor of the learning rate at step 0 of the warm-up.")


class Step(_Schedule):
    """The learning rate drops by `factor` at each moment of `at` (He et al. 2015)."""

    name: Literal["step"]
    at: Annotated[tuple[Moment, ...], AsTuple, Field(min_length=1)] = Field(
        description="When the learning rate drops, in rising order."
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="What it is multiplied by.")
    final: Unit | None = Field(default=None, description="Factor from which it never falls; null: no floor.")


class Cosine(_Schedule):
    """Half a cosine from the learning rate to `final` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    name: Literal["cosine"]
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class Linear(_Schedule):
    """A straight line from the learning rate to `final`."""

    name: Literal["linear"]
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class Constant(_Schedule):
    """The learning rate as it is, after the warm-up."""

    name: Literal["constant"]
    final: None = Field(default=None, description="Nothing: the learning rate stays.")


Schedule = Annotated[Step | Cosine | Linear | Constant, Field(discriminator="name")]


class CrossEntropy(Section):
    """Softmax cross-entropy."""

    name: Literal["cross_entropy"]
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Label smoothing (Szegedy et al. 2016): this share of the target is spread over all classes.",
    )


class Bce(Section):
    """One binary cross-entropy a class (Wightman et al. 2021, arXiv:2110.00476)."""

    name: Literal["bce"]
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Label smoothing: this share of the target is spread over all classes."
    )
    threshold: Unit | None = Field(
        default=None, description="Mixed targets above it count as 1, the others as 0; null: as is."
    )


Loss = Annotated[CrossEntropy | Bce, Field(discriminator="name")]


class Ema(Section):
    """Moving average of the weights, used for evaluation."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(description="Share of the old average kept at each update.")
    every: Every = Field(default=Duration(1, "st"), description="How often the average is updated.")
