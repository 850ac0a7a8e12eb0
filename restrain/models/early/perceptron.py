"""The skip-layer perceptron: a linear model that hidden layers perturb.

Shapes: B rows, C channels, H and W pixels, K classes, U hidden units.

Connections past the hidden layer are as old as multilayer perceptrons (Rosenblatt 1961, "Principles of neurodynamics").
Ripley 1996 ("Pattern recognition and neural networks", section 5.1) and Venables and Ripley 1994 ("Modern applied
statistics with S", ``nnet`` with ``skip``) let the inputs reach the outputs directly, so that the hidden units describe
how far a linear function is from the truth: y = (b + A x) + V s(c + W x), s the logistic function.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.layers import Linear
from restrain.models.wish import Wish


class SkipLayer(ResidualBlock):
    """From inputs [B, C H W] to outputs [B, K].

    ::

        x ─┬─ (hidden linear ─ logistic) x depth ─ linear ─ join ─ y
           └─────────────────── skip: linear ────────────────┘

    The outputs have one bias: the skip's, or, where the join looks at no skip, the last hidden layer's.
    """

    def __init__(self, inputs: int, width: int, depth: int, wish: Wish):
        super().__init__()
        keeps = wish.join.keeps_shortcut
        self.skip = Linear(inputs, wish.classes) if keeps else None
        sizes = [inputs] + [width] * depth
        self.hidden = nn.ModuleList(Linear(one, other) for one, other in pairwise(sizes))
        self.output = Linear(width, wish.classes, bias=not keeps)
        self.join = wish.join.build(wish.classes, wish.rates(1)[0], tokens=True)

    def linear(self, x_BP: Tensor) -> Tensor:
        """What the join takes as its stream: the linear model."""
        return x_BP.new_zeros(len(x_BP), self.output.out_features) if self.skip is None else self.skip(x_BP)

    def block_forward(self, x_BP: Tensor) -> Tensor:
        h_BU = x_BP
        for layer in self.hidden:
            h_BU = torch.sigmoid(layer(h_BU))
        return self.join(self.linear(x_BP), self.output(h_BU))

    def skip_forward(self, x_BP: Tensor) -> Tensor:
        return self.join.without(self.linear(x_BP))

    def skip_has_parameters(self) -> bool:
        return True


class SkipPerceptron(nn.Module):
    """pixels ─ :class:`SkipLayer` ─ logits [B, K]."""

    def __init__(self, pixels: int, width: int, depth: int, wish: Wish):
        super().__init__()
        self.block = SkipLayer(pixels, width, depth, wish)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block(x_BCHW.flatten(1))

    def part(self, name: str) -> list[nn.Module | nn.Parameter]:
        """The modules of ``stem``, the hidden layers, or of ``head``, all that the classes shape."""
        outputs = [module for module in (self.block.skip, self.block.output) if module is not None]
        return {"stem": [*self.block.hidden], "head": outputs}[name]


@dataclass(frozen=True)
class PerceptronSpec:
    """A perceptron with a skip layer; its sizes are the recipe's."""


SPECS: dict[str, PerceptronSpec] = {"skip_perceptron": PerceptronSpec()}


def build(spec: PerceptronSpec, wish: Wish) -> SkipPerceptron:
    """``shape.depth`` hidden layers (1) of ``shape.width`` units."""
    wish.refuse_join("a skip-layer perceptron", "concat")
    wish.refuse_subset("the branch of a skip-layer perceptron reads the inputs and not the stream")
    if wish.options.get("zero_init") is True:
        raise UserError("model.zero_init is true, but a skip-layer perceptron has no norm to start at zero. Use auto.")
    return SkipPerceptron(wish.pixels(), wish.size("width"), wish.size("depth", 1), wish)
