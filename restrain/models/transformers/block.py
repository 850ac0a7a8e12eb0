"""The transformer block (Vaswani et al. 2017, arXiv:1706.03762): two residual branches, attention and MLP.

Shapes: B rows, T tokens, D channels of the stream, M channels inside the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.dropout import KeyedDropout
from restrain.models.residual import AddJoin, Join, JoinSpec
from restrain.models.transformers.attention import OPEN, Attention, KeyValueCache, Sight
from restrain.models.transformers.initial import FilledLinear, deepnorm_constants
from restrain.models.transformers.norms import norm_layer
from restrain.models.transformers.spec import TransformerSpec
from restrain.models.wish import Wish


class Mlp(nn.Module):
    """fc2(act(fc1(x))): GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) or its tanh form, ReLU or its square
    (So et al. 2021, arXiv:2109.08668), or SwiGLU (Shazeer 2020, arXiv:2002.05202), whose fc1 gives gates and values."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.activation = spec.activation
        width, hidden = spec.width, spec.hidden
        inner = 2 * hidden if spec.activation == "swiglu" else hidden
        self.fc1 = FilledLinear(width, inner, spec.bias, spec.fill("in", width, hidden))
        self.fc2 = FilledLinear(hidden, width, spec.bias, spec.fill("out", hidden, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x_BTD), self.activation))


def activate(x: Tensor, activation: str) -> Tensor:
    """The MLP's nonlinearity [.., M] -> [.., M]; of swiglu [.., 2 M] -> [.., M]."""
    if activation == "swiglu":
        gate, value = x.chunk(2, -1)
        return F.silu(gate) * value
    if activation in ("relu", "relu2"):
        return F.relu(x) if activation == "relu" else F.relu(x).square()
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class TransformerBlock(ResidualBlock):
    """Attention and MLP, each around a join.

    ::

        pre:   x ─┬─ norm1 ─ attn ─ join1 ─┬─ norm2 ─ mlp ─ join2 ─ y
                  └──────────────────┘     └──────────────────┘
        post:  x ─┬─ attn ─ join1 ─ norm1 ─┬─ mlp ─ join2 ─ norm2 ─ y
                  └───────────┘            └──────────┘
    """

    join_names = ("join1", "join2")

    def __init__(self, spec: TransformerSpec, join: JoinSpec, rate: float):
        super().__init__()
        self.pre = spec.order == "pre"
        first, second = self.join_names
        self.norm1 = norm_layer(spec, spec.width)
        self.attn = Attention(spec)
        self.drop1 = KeyedDropout(spec.dropout) if spec.dropout else nn.Identity()
        self.add_module(first, build_join(spec, join, rate))
        self.norm2 = norm_layer(spec, spec.width)
        self.mlp = Mlp(spec)
        self.drop2 = KeyedDropout(spec.dropout) if spec.dropout else nn.Identity()
        self.add_module(second, build_join(spec, join, rate))

    def two_joins(self) -> tuple[Join, Join]:
        """That of attention and that of the MLP."""
        first, second = self.join_names
        return getattr(self, first), getattr(self, second)

    def block_forward(self, x_BTD: Tensor, sight: Sight = OPEN, cache: KeyValueCache | None = None) -> Tensor:
        join1, join2 = self.two_joins()

        def attend(x_BTD: Tensor) -> Tensor:
            seen = sight.of_rows(join1.rows if self.training else None)
            return self.drop1(self.attn(self.norm1(x_BTD) if self.pre else x_BTD, seen, cache))

        def transform(x_BTD: Tensor) -> Tensor:
            return self.drop2(self.mlp(self.norm2(x_BTD) if self.pre else x_BTD))

        x_BTD = self._after(self.norm1, join1.around(x_BTD, attend))
        return self._after(self.norm2, join2.around(x_BTD, transform))

    def skip_forward(self, x_BTD: Tensor, sight: Sight = OPEN, cache: KeyValueCache | None = None) -> Tensor:
        join1, join2 = self.two_joins()
        x_BTD = self._after(self.norm1, join1.without(x_BTD))
        return self._after(self.norm2, join2.without(x_BTD))

    def skip_has_parameters(self) -> bool:
        return not self.pre or super().skip_has_parameters()

    def _after(self, norm: nn.Module, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.pre else norm(x_BTD)


def build_join(spec: TransformerSpec, join: JoinSpec, rate: float) -> Join:
    """The join of one branch; of DeepNorm y = alpha x + f(x)."""
    if spec.order == "deepnorm":
        return AddJoin(rate, deepnorm_constants(spec.depth)[0])
    return join.build(spec.width, rate, tokens=True)


def build_blocks(
    spec: TransformerSpec, wish: Wish, kind: type[TransformerBlock] = TransformerBlock
) -> Sequence[TransformerBlock]:
    """All blocks in depth order, with the recipe's join and drop path: both joins of a block have its rate.

    Raises:
        UserError: the join has no place in a transformer, or does not go with another wish.
    """
    wish.refuse_join("a transformer, whose stream keeps its width", "concat")
    if spec.order == "deepnorm" and not wish.join.starts_at_zero:
        raise UserError(
            f"model.transformer.order is deepnorm, which is y = alpha x + f(x): model.join.name is 'add' with scale "
            f"'one' there, not {wish.join.name!r}{' with a scale of its own' if wish.join.name == 'add' else ''}."
        )
    if spec.dropout:
        wish.refuse_subset("model.transformer.dropout has one key a row of the batch, and subset computes fewer rows")
    return [kind(spec, wish.join, rate) for rate in wish.rates(spec.depth)]


def final_norm(spec: TransformerSpec) -> nn.Module:
    """The norm behind the last block of a pre-norm transformer; the others' last block ends in one."""
    return norm_layer(spec, spec.width) if spec.order == "pre" else nn.Identity()
