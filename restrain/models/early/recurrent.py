"""Recurrent networks, whose residual stream runs through time: plain RNN, LSTM of 1997 and LSTM of 2000.

Shapes: B rows, T steps, D inputs, H hidden units, G gates and cell input side by side (G = a multiple of H), K outputs,
V vocabulary.

A layer is one :class:`ResidualBlock` that is passed T times, so "block l of depth" of the residual formula reads "step
t of time". In an LSTM the stream is the cell c: c_t = join(c_{t-1}, i_t g_t). With the join ``add`` that is c_t =
c_{t-1} + i_t g_t, so c_T = c_t + sum of i_s g_s over s = t+1 ... T: the constant error carousel of Hochreiter and
Schmidhuber 1997 ("Long short-term memory", Neural Computation 9) is a residual stream of weight 1.0. The forget gate of
Gers, Schmidhuber and Cummins 2000 ("Learning to forget", Neural Computation 12) scales its shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.fill import Fill, fan_in_uniform
from restrain.models.layers import Linear
from restrain.models.residual import AddJoin, ForgetJoin, Join
from restrain.models.wish import Wish

State = tuple[Tensor, ...]  # each [B, H]; the first is the layer's output h


class Cell(ResidualBlock):
    """One layer: what it makes of the input of a step and of its state after the step before.

    ``gates``: how many vectors of H a step computes; ``drawn``: those whose bias is drawn with the weights, as
    torch.nn.LSTM draws them. ``states``: tensors of the state.
    """

    gates: int
    drawn: int
    states: int

    def __init__(self, inputs: int, width: int, join: Join):
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(self.gates * width, inputs))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * width, width))
        self.bias = nn.Parameter(torch.empty(self.drawn * width))
        self.join = join

    @property
    def width(self) -> int:
        return self.weight_hh.shape[1]

    def whole_bias(self) -> Tensor:
        """[G]."""
        return self.bias

    def unroll(self, x: Tensor) -> Tensor:
        """The outputs [B, T, H] for inputs [B, T, D], or for tokens int64 [B, T], which are one-hot inputs."""
        bias = self.whole_bias()
        # What does not wait for the step before is computed for all steps at once.
        z_BTG = F.linear(x, self.weight_ih, bias) if x.dim() == 3 else F.embedding(x, self.weight_ih.t()) + bias
        # In the dtype of the weights also where the arithmetic is narrower: a stream of many small additions.
        nothing = torch.zeros(x.shape[0], self.width, dtype=self.weight_hh.dtype, device=x.device)
        state: State = (nothing,) * self.states
        outputs = []
        for z_BG in z_BTG.unbind(1):
            state = self(z_BG, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)

    def summed(self, z_BG: Tensor, h_BH: Tensor) -> Tensor:
        """The arguments of the gates, [B, G]."""
        return z_BG + F.linear(h_BH, self.weight_hh)

    def fills(self) -> dict[str, Fill]:
        bound = fan_in_uniform(self.width)
        return {"weight_ih": bound, "weight_hh": bound, "bias": bound}

    def extra_repr(self) -> str:
        return f"{self.weight_ih.shape[1]}, {self.width}"


class RNNCell(Cell):
    """h_t = join(h_{t-1}, tanh(W x_t + U h_{t-1} + b)): with the join ``none``, Elman's network (1990)."""

    gates, drawn, states = 1, 1, 1

    def block_forward(self, z_BG: Tensor, state: State) -> State:
        (h_BH,) = state
        return (self.join(h_BH, torch.tanh(self.summed(z_BG, h_BH))),)


class LSTM1997Cell(Cell):
    """The LSTM without a forget gate: input gate, cell input, output gate.

    ::

        c_{t-1} ──────────────── join ── c_t ── tanh ── × ── h_t
                                   │                    │
        x_t, h_{t-1} ─┬─ i = σ ─── × ── g = tanh     o = σ

    The squashing functions are tanh, as everybody has them since; those of 1997 had the ranges (-2, 2) and (-1, 1).

    The input gate's bias stands on its own, since it may start at a value of its own: a cell that forgets nothing adds
    up what an untrained gate lets in, and a negative bias keeps it from drifting (section 4 of the paper, "internal
    state drift").
    """

    gates, drawn, states = 3, 2, 2

    def __init__(self, inputs: int, width: int, join: Join, input_bias: float | None = None):
        super().__init__(inputs, width, join)
        self.bias_input = nn.Parameter(torch.empty(width))
        self.input_bias = input_bias

    def whole_bias(self) -> Tensor:
        return torch.cat((self.bias_input, self.bias))

    def fills(self) -> dict[str, Fill]:
        return super().fills() | {"bias_input": _bias(self.input_bias, self.width)}

    def block_forward(self, z_BG: Tensor, state: State) -> State:
        h_BH, c_BH = state
        i_BH, g_BH, o_BH = self.summed(z_BG, h_BH).chunk(3, 1)
        c_BH = self.join(c_BH, torch.sigmoid(i_BH) * torch.tanh(g_BH))
        return torch.sigmoid(o_BH) * torch.tanh(c_BH), c_BH


def _bias(value: float | None, width: int) -> Fill:
    return fan_in_uniform(width) if value is None else Fill("constant", value)


class LSTMCell(LSTM1997Cell):
    """The LSTM with a forget gate: c_t = f_t c_{t-1} + i_t g_t. Rows of the matrices are in torch's order: i, f, g, o.

    Where the forget gate's bias is positive the gate is open at first, and the cell a residual stream nearly of weight
    1 (Gers et al. 2000, section 3).
    """

    gates, drawn, states = 4, 2, 2
    join: ForgetJoin

    def __init__(
        self, inputs: int, width: int, join: ForgetJoin, input_bias: float | None = None, forget_bias: float = 1.0
    ):
        super().__init__(inputs, width, join, input_bias)
        self.bias_forget = nn.Parameter(torch.empty(width))
        self.forget_bias = forget_bias

    def whole_bias(self) -> Tensor:
        return torch.cat((self.bias_input, self.bias_forget, self.bias))

    def block_forward(self, z_BG: Tensor, state: State) -> State:
        h_BH, c_BH = state
        i_BH, f_BH, g_BH, o_BH = self.summed(z_BG, h_BH).chunk(4, 1)
        c_BH = self.join(c_BH, torch.sigmoid(i_BH) * torch.tanh(g_BH), torch.sigmoid(f_BH))
        return torch.sigmoid(o_BH) * torch.tanh(c_BH), c_BH

    def fills(self) -> dict[str, Fill]:
        return super().fills() | {"bias_forget": Fill("constant", self.forget_bias)}


class Recurrent(nn.Module):
    """layers ─ linear head: of sequences the outputs after their last step, of ``tokens`` those after every step."""

    def __init__(self, layers: list[Cell], classes: int, tokens: bool):
        super().__init__()
        self.tokens = tokens
        self.layers = nn.ModuleList(layers)
        self.head = Linear(layers[-1].width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Floats [B, T, D] -> [B, K]; tokens int64 [B, T] -> [B, T, V]."""
        for layer in self.layers:
            x = layer.unroll(x)  # pyright: ignore[reportCallIssue]
        return self.head(x if self.tokens else x[:, -1])

    def part(self, name: str) -> list[nn.Module | nn.Parameter]:
        """The parts of ``stem``, which reads the inputs, or ``head``, for freezing and the like."""
        return {"stem": [self.get_parameter("layers.0.weight_ih")], "head": [self.head]}[name]


@dataclass(frozen=True)
class RecurrentSpec:
    """A kind of cell."""

    cell: type[Cell]


SPECS: dict[str, RecurrentSpec] = {
    "rnn": RecurrentSpec(RNNCell),
    "lstm1997": RecurrentSpec(LSTM1997Cell),
    "lstm": RecurrentSpec(LSTMCell),
}
FORGET_BIAS = 1.0  # Jozefowicz, Zaremba and Sutskever 2015


def build(spec: RecurrentSpec, wish: Wish) -> Recurrent:
    """``shape.depth`` layers (1) of ``shape.width`` units; the first reads ``in_chans`` numbers, or one of ``classes``
    tokens."""
    wish.refuse_join("a recurrent network", "concat")
    if wish.rate:
        raise UserError(
            f"model.drop_path.rate is {wish.rate}, but {wish.name} passes the same join at every step of time: "
            f"dropped there, a row would have no input. Use 0."
        )
    if wish.options.get("zero_init") is True:
        raise UserError(
            f"model.zero_init is true, but {wish.name} passes one branch at every step of time, and that branch has no "
            f"last layer of its own that could start at zero. Use auto."
        )
    width, tokens = wish.size("width"), _options(wish).get("reads") == "tokens"
    inputs = [wish.classes if tokens else wish.in_chans] + [width] * (wish.size("depth", 1) - 1)
    return Recurrent([_layer(spec.cell, size, width, wish) for size in inputs], wish.classes, tokens)


def _layer(cell: type[Cell], inputs: int, width: int, wish: Wish) -> Cell:
    options = _options(wish)
    if not issubclass(cell, LSTM1997Cell):
        return cell(inputs, width, wish.join.build(width, tokens=True))
    if not issubclass(cell, LSTMCell):
        return cell(inputs, width, wish.join.build(width, tokens=True), options.get("input_bias"))
    if not isinstance(wish.join.build(width, tokens=True), AddJoin):
        scale = wish.join.options.get("scale")
        asked = (
            f"model.join.scale is {scale!r}" if wish.join.name == "add" else f"model.join.name is {wish.join.name!r}"
        )
        plain = "leave model.join.scale out" if wish.join.name == "add" else "use add"
        raise UserError(
            f"{asked}, but the forget gate of {wish.name} is its join already: {plain}, "
            f"or take model.name=lstm1997, which has none."
        )
    forget = options.get("forget_bias")
    return cell(inputs, width, ForgetJoin(), options.get("input_bias"), FORGET_BIAS if forget is None else forget)


def _options(wish: Wish) -> dict[str, Any]:
    return wish.options.get("recurrent") or {}
