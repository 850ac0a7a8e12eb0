"""The sections that say how weights move: optimizer, schedule, loss, moving average."""

from typing import Annotated, Literal

from pydantic import Field

from restrain.recipe.base import AsTuple, Every, Moment, NonNegative, Positive, PositiveFloat, Section, Span, Unit
from restrain.recipe.durations import Duration

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], AsTuple]


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
        default=0.0,
        description="Weight decay: added to the gradient (sgd, lars), to the step before its norm is taken (lamb), or "
        "decoupled from the gradient, as learning rate x decay (the others).",
    )
    no_decay: Literal["none", "norm", "norm_and_bias"] = Field(
        default="none",
        description="What weight decay spares: nothing; norm layers alone (torchvision, FFCV); or norm layers, biases, "
        "layer scales, and what the model names itself (position embeddings, class tokens).",
    )
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Learning rate of each block, as a share of that of the block above it (Clark et al. 2020; Bao et "
        "al. 2021, BEiT): the head has `lr`, the last block that times this, the stem the least; null: one rate.",
    )


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Momentum of the gradient's average."
    )
    nesterov: bool = Field(default=False, description="Nesterov's momentum: look ahead before the step.")
    decay: Literal["coupled", "decoupled"] = Field(
        default="coupled",
        description="coupled: weight decay is added to the gradient; decoupled: weights shrink by the decay times the "
        "schedule's factor, whatever the learning rate (SGDW, Loshchilov and Hutter 2019, arXiv:1711.05101).",
    )


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"]
    betas: Betas = Field(default=(0.9, 0.999), description="Decay of the averages of the gradient and of its square.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the root of the second moment.")


class NAdam(_Optimizer):
    """Adam with Nesterov's momentum (Dozat 2016) and decoupled weight decay; torch's, with its momentum decay 0.004."""

    name: Literal["nadam"]
    betas: Betas = Field(default=(0.9, 0.999), description="Decay of the averages of the gradient and of its square.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the root of the second moment.")


class Lamb(_Optimizer):
    """Adam's step scaled by each tensor's own norm, for large batches (You et al. 2020, arXiv:1904.00962); timm's.

    With timm's defaults, which are those of "ResNet strikes back": bias correction, no clipping of the trust ratio, and
    tensors that do not decay (`no_decay`) take Adam's step as it is.
    """

    name: Literal["lamb"]
    betas: Betas = Field(default=(0.9, 0.999), description="Decay of the averages of the gradient and of its square.")
    eps: PositiveFloat = Field(default=1e-6, description="Added to the root of the second moment.")
    max_grad_norm: PositiveFloat | None = Field(
        default=1.0, description="LAMB's own limit of the gradient's global norm, after `clip`; null: none."
    )


class Lars(_Optimizer):
    """SGD whose rate follows each tensor's own norm, for large batches (You et al. 2017, arXiv:1708.03888); timm's.

    Tensors that do not decay (`no_decay`) take SGD's step, as in MLPerf's ResNet. The rate multiplies the momentum, as
    in torch's SGD; MLPerf's implementations have it inside, which differs while the rate changes.
    """

    name: Literal["lars"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Momentum of the gradient's average."
    )
    nesterov: bool = Field(default=False, description="Nesterov's momentum: look ahead before the step.")
    trust: PositiveFloat = Field(default=1e-3, description="Trust coefficient eta of a tensor's local rate.")
    eps: NonNegative = Field(default=1e-8, description="Added to the divisor of the local rate.")


class Lion(_Optimizer):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675), decoupled weight decay; timm's."""

    name: Literal["lion"]
    betas: Betas = Field(default=(0.9, 0.99), description="Decay of the update's and of the kept average.")


class Adan(_Optimizer):
    """Adaptive Nesterov momentum (Xie et al. 2022, arXiv:2208.06677), proximal weight decay; timm's."""

    name: Literal["adan"]
    betas: Annotated[tuple[Beta, Beta, Beta], AsTuple] = Field(
        default=(0.98, 0.92, 0.99),
        description="Decay of the averages of gradient, its difference, and their square: one minus the paper's betas.",
    )
    eps: PositiveFloat = Field(default=1e-8, description="Added to the root of the second moment.")


class Muon(_Optimizer):
    """Orthogonalised momentum for matrices and convolutions (Jordan et al. 2024), AdamW for the rest; timm's.

    A convolution is the matrix of its output channels by all else. Vectors, tensors with a side of 1 in front or below
    4, and very oblong ones are AdamW's (with `nesterov`, NAdamW's). Steps are scaled by 0.2 sqrt(longer side), so that
    learning rate and decay are AdamW's as well (Liu et al. 2025, arXiv:2502.16982); the iteration is computed in bf16.
    """

    name: Literal["muon"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.95, description="Momentum of the matrices' average."
    )
    nesterov: bool = Field(default=True, description="Nesterov's momentum: look ahead before the step.")
    steps: Positive = Field(default=5, description="Iterations of the orthogonalisation (Newton and Schulz).")
    betas: Betas = Field(default=(0.9, 0.95), description="AdamW's, for what is no matrix.")
    eps: PositiveFloat = Field(
        default=1e-7, description="AdamW's, for what is no matrix; of a matrix the least norm that is divided by."
    )


Optimizer = Annotated[Sgd | AdamW | NAdam | Lamb | Lars | Lion | Adan | Muon, Field(discriminator="name")]


class _Schedule(Section):
    per: Literal["step", "epoch"] = Field(
        default="step",
        description="When the learning rate changes: at every step, or at the start of each epoch only, as under "
        "torchvision's and timm's training scripts.",
    )
    warmup: Span = Field(default=Duration(0, "ep"), description="Length of the linear rise at the start.")
    warmup_from: Unit = Field(default=0.0, description="Factor of the learning rate at step 0 of the warm-up.")


class Step(_Schedule):
    """The learning rate drops by `factor` at each moment of `at` (He et al. 2015)."""

    name: Literal["step"]
    at: Annotated[tuple[Moment, ...], AsTuple, Field(min_length=1)] = Field(
        description="When the learning rate drops, in rising order."
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="What it is multiplied by.")
    final: Unit | None = Field(
        default=None, description="Factor reached at the end, in a straight line from the last drop; null: no line."
    )


class Cosine(_Schedule):
    """Half a cosine from the learning rate to `final` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    name: Literal["cosine"]
    warmup_prefix: bool = Field(
        default=True,
        description="true: the cosine begins where the warm-up ends (torchvision); false: at step 0, and the warm-up "
        "stands in place of its beginning (timm's scripts, so RSB and DeiT).",
    )
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class Linear(_Schedule):
    """A straight line from the learning rate to `final`."""

    name: Literal["linear"]
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class Constant(_Schedule):
    """The learning rate as it is, after the warm-up."""

    name: Literal["constant"]
    final: None = Field(default=None, description="Nothing: the learning rate stays.")


class Poly(_Schedule):
    """(1 - progress) to the power `power`, down to `final` (MLPerf's LARS: power 2 after the warm-up)."""

    name: Literal["poly"]
    power: PositiveFloat = Field(default=2.0, description="Exponent of the remaining share.")
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class OneCycle(_Schedule):
    """Up to the learning rate at `peak`, then down to `final` (Smith and Topin 2018, arXiv:1708.07120).

    FFCV's and airbench's triangle: straight lines. It has its own rise, so `warmup` stays 0.
    """

    name: Literal["one_cycle"]
    peak: Moment = Field(description="When the learning rate is largest.")
    start: Unit = Field(default=0.0, description="Factor of the learning rate at step 0.")
    shape: Literal["linear", "cosine"] = Field(default="linear", description="How it rises and falls.")
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class Wsd(_Schedule):
    """Warm-up, stable, decay: the learning rate as it is, then down to `final` (Hu et al. 2024, arXiv:2404.06395)."""

    name: Literal["wsd"]
    decay: Span = Field(description="Length of the fall at the end.")
    shape: Literal["linear", "cosine", "sqrt"] = Field(
        default="linear", description="How it falls; sqrt: 1 - sqrt(progress) (Hagele et al. 2024, arXiv:2405.18392)."
    )
    final: Unit = Field(default=0.0, description="Factor of the learning rate reached at the end.")


class InverseSqrt(_Schedule):
    """1 / sqrt(step / warmup) after the warm-up, which it needs (Vaswani et al. 2017, arXiv:1706.03762, 5.3)."""

    name: Literal["inverse_sqrt"]
    final: None = Field(default=None, description="Nothing: it falls with the root of the step.")


Schedule = Annotated[
    Step | Cosine | Linear | Constant | Poly | OneCycle | Wsd | InverseSqrt, Field(discriminator="name")
]


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
    over_classes: Literal["sum", "mean"] = Field(
        default="sum",
        description="How a row's loss adds up over classes; timm's BCE (RSB, DeiT III) takes the mean.",
    )


Loss = Annotated[CrossEntropy | Bce, Field(discriminator="name")]


class NextToken(Section):
    """The token after each, from those before it."""

    name: Literal["next_token"]


class MaskedToken(Section):
    """Tokens that were masked, from those around them (BERT, Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

    name: Literal["masked_token"]
    rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.15,
        description="Share of a window's tokens that are to be found out; of these 80 % are replaced by the mask, 10 % "
        "by another token, 10 % stay.",
    )


Objective = Annotated[NextToken | MaskedToken, Field(discriminator="name")]


class Ema(Section):
    """Moving average of the weights, used for evaluation."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Share of the old average that is left after a step, whatever `every` is."
    )
    every: Every = Field(
        default=Duration(1, "st"), description="How often the average is updated; of n steps it keeps decay^n."
    )
