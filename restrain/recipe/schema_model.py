"""The recipe's ``model`` section."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from restrain.errors import nearest
from restrain.recipe.base import AsTuple, Auto, NonNegative, Positive, PositiveFloat, Section
from restrain.recipe.model_names import NAMES, family_of
from restrain.recipe.schema_data import PACKAGE_NAME


def _foreign_name(value: Any) -> Any:
    """A name that is none of ours is meant to be one of timm's, or misspelt: said before the pattern says less."""
    if isinstance(value, str) and "/" not in value:
        meant = nearest(value, NAMES) or f" Did you mean 'timm/{value}'?"
        raise ValueError(
            f"is no model of ours ({', '.join(NAMES)}); one of timm's is written timm/NAME, one of an installed "
            f"package PACKAGE/NAME.{meant}"
        )
    return value


# The names are data, so that families add theirs in one place; editors and messages still know each of them.
OwnModel = Literal[NAMES]  # pyright: ignore[reportInvalidTypeForm]
ForeignModel = Annotated[str, Field(pattern=PACKAGE_NAME), BeforeValidator(_foreign_name)]


class NoJoin(Section):
    """y = f(x): a plain network."""

    name: Literal["none"]


class AddJoin(Section):
    """y = x + a drop_path(f(x)): the residual network."""

    name: Literal["add"]
    scale: Literal["one", "layerscale", "rezero", "skipinit"] | None = Field(
        default=None,
        description="a: 1; a learned vector (LayerScale, arXiv:2103.17239); or one learned number, 0 at first (ReZero, "
        "arXiv:2003.04887; SkipInit, arXiv:2002.10444). null: one, but layerscale in the networks that have it by name "
        "(deit3_small_patch16_224).",
    )
    init: NonNegative | None = Field(
        default=None, description="What a learned a is at first; null: 1e-5 for layerscale, else 0."
    )


class GateJoin(Section):
    """y = t(x) f(x) + (1 - t(x)) x: highway networks (arXiv:1505.00387)."""

    name: Literal["gate"]
    bias: float = Field(default=-2.0, description="Of the gate t at first: negative opens the carry.")


class ConcatJoin(Section):
    """y = [x, f(x)]: DenseNet (arXiv:1608.06993)."""

    name: Literal["concat"]


class ScaleJoin(Section):
    """y = shortcut x + branch f(x), with constants (arXiv:1603.05027, table 1)."""

    name: Literal["scale"]
    shortcut: float = Field(default=0.5, description="What the shortcut is multiplied with.")
    branch: float = Field(default=0.5, description="What the branch is multiplied with.")


class ShortcutGateJoin(Section):
    """y = f(x) + (1 - g(x)) x (arXiv:1603.05027, table 1)."""

    name: Literal["shortcut_gate"]
    bias: float = Field(default=-6.0, description="Of the gate g at first: negative opens the shortcut.")


class ExclusiveGateJoin(Section):
    """y = g(x) f(x) + (1 - g(x)) x (arXiv:1603.05027, table 1)."""

    name: Literal["exclusive_gate"]
    bias: float = Field(default=-6.0, description="Of the gate g at first: negative opens the shortcut.")


class Conv1x1Join(Section):
    """y = W x + f(x), W a 1x1 convolution (arXiv:1603.05027, table 1)."""

    name: Literal["conv1x1"]


class DropoutJoin(Section):
    """y = dropout(x) + f(x) (arXiv:1603.05027, table 1)."""

    name: Literal["dropout"]
    rate: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.5, description="Share of the shortcut that is dropped.")


Join = Annotated[
    NoJoin
    | AddJoin
    | GateJoin
    | ConcatJoin
    | ScaleJoin
    | ShortcutGateJoin
    | ExclusiveGateJoin
    | Conv1x1Join
    | DropoutJoin,
    Field(discriminator="name"),
]


class DropPath(Section):
    """Stochastic depth: branches are dropped at random (Huang et al. 2016, arXiv:1603.09382)."""

    rate: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Probability that the last branch is dropped."
    )
    decay: Literal["linear", "constant"] = Field(
        default="linear", description="Over depth: rising linearly from 0 to `rate`, or `rate` everywhere."
    )
    mode: Literal["sample", "batch", "subset"] = Field(
        default="sample",
        description="sample: drawn for each row of the batch. batch: drawn for the whole batch, and a dropped block is "
        "not computed. subset: of each group a fixed number of rows, and the branch is computed for these alone.",
    )


class Shape(Section):
    """Sizes that a name leaves open; null: those of the name."""

    depth: Positive | None = Field(default=None, description="Number of blocks, or of layers where a layer is a block.")
    width: Positive | None = Field(default=None, description="Channels of the residual stream.")
    heads: Positive | None = Field(default=None, description="Attention heads.")
    mlp: PositiveFloat | None = Field(default=None, description="Hidden units of an MLP, in multiples of the width.")
    context: Positive | None = Field(default=None, description="Positions that a language model has, in tokens.")
    patch: Positive | None = Field(default=None, description="Side of a vision transformer's patch in pixels.")


class Transformer(Section):
    """How a transformer is built; null: as its name has it."""

    norm: Literal["layernorm", "rmsnorm"] | None = Field(default=None, description="Normalisation of the stream.")
    order: Literal["pre", "post", "deepnorm"] | None = Field(
        default=None,
        description="Where it stands: before the branch, after the join (arXiv:1706.03762), or after a join whose "
        "shortcut is scaled by depth (DeepNorm, arXiv:2203.00555).",
    )
    position: Literal["learned", "rotary", "sincos", "none"] | None = Field(
        default=None, description="How a token knows its place."
    )
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu"] | None = Field(
        default=None, description="Of the MLP."
    )
    qk_norm: bool | None = Field(default=None, description="Normalise queries and keys of each head.")
    tied: bool | None = Field(default=None, description="The output's matrix is the embedding's.")
    bias: bool | None = Field(default=None, description="Biases in linear layers and norms.")
    pool: Literal["token", "avg"] | None = Field(
        default=None, description="What a vision transformer classifies: its class token, or the mean of its patches."
    )
    registers: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Register tokens (arXiv:2309.16588)."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Of the embedding and of each branch, from keyed masks."
    )


class Recurrent(Section):
    """How a recurrent network is built; null: as its name has it."""

    reads: Literal["numbers", "tokens"] | None = Field(
        default=None,
        description="numbers: `in_chans` of them a step, and the last step is answered. tokens: one of `classes` a "
        "step, and each is answered. null: numbers.",
    )
    input_bias: float | None = Field(
        default=None,
        description="Of an LSTM's input gates at first: negative keeps out what they were not taught to let in. null: "
        "drawn as the weights are.",
    )
    forget_bias: float | None = Field(
        default=None, description="Of an LSTM's forget gates at first: positive opens them. null: 1."
    )


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
    Classes = Auto | Positive


class Model(Section):
    """The network."""

    name: OwnModel | ForeignModel = Field(  # pyright: ignore[reportInvalidTypeForm]
        description="One of ours (docs/models.md lists them), such as resnet50; any of timm's, as timm/convnext_tiny; "
        "or one of an installed package, as PACKAGE/NAME."
    )
    classes: Classes = Field(
        description="Number of classes. A regression has 1 (task=regress), a language model the tokens that it can "
        "say; auto: those of the data."
    )
    in_chans: Positive = Field(default=3, description="Channels of the input: 3 for colour, 1 for grey.")
    join: Join = Field(
        default=AddJoin(name="add"),
        description="Where a branch meets the residual stream; by default gate in highway networks, concat in "
        "DenseNets, none in plain nets.",
    )
    zero_init: Auto | bool = Field(
        default="auto", description="Start the last norm scale of each branch at zero; auto: where the join adds."
    )
    freeze: Annotated[tuple[Annotated[str, Field(pattern=r"^(stem|head|block:\d+(-\d+)?)$")], ...], AsTuple] = Field(
        default=(), description="Parts that are not trained: stem, head, block:3, block:0-3."
    )
    drop_path: DropPath = Field(default=DropPath(), description="Stochastic depth.")
    feedback: Literal["exact", "sign", "random"] = Field(
        default="exact",
        description="What sends the error down in convolutions and linear layers: their weights, their weights' signs "
        "(arXiv:1811.03567), or fixed random matrices (feedback alignment).",
    )
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
    shape: Shape = Field(default=Shape(), description="Sizes that the name leaves open.")
    transformer: Transformer = Field(default=Transformer(), description="How a transformer is built.")
    recurrent: Recurrent = Field(default=Recurrent(), description="How a recurrent network is built.")
    init: Init | None = Field(default=None, description="Where weights come from; null: fresh ones from the seed.")

    @model_validator(mode="before")
    @classmethod
    def _join_of_its_family(cls, section: Any) -> Any:
        """A network has the join of its family where the recipe names none."""
        if isinstance(section, dict) and "join" not in section and (found := family_of(section.get("name", ""))):
            return section | {"join": {"name": found[1].join}}
        return section
