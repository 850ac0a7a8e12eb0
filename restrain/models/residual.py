"""The join: the one place where a branch meets the residual stream.

Shapes: B rows, C channels, R rows of a micro-batch, J joins of a model. A stream is an image [B, C, H, W], or tokens
[B, T, C] and vectors [B, C], whose channels come last.

Every ``x + f(x)`` of our own models is a :class:`Join` (a timm model's are its own, with a keyed :class:`BranchDrop` on
the branch). The join owns drop path and observation, and a plain network is the same model with another join.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError, nearest
from restrain.models.dropout import KeyedDropout
from restrain.models.fill import ONE, Fill, fan_in_uniform, he_normal

Observer = Callable[["Join", Tensor, Tensor, Tensor], None]


class DropPath(nn.Module):
    """Where the branch of a row may be dropped (Huang et al. 2016, arXiv:1603.09382).

    ``rate`` is the drop probability; ``factor`` [R] holds what each row's branch is multiplied with, 0 or
    1 / (1 - rate), written by :func:`set_factors` before a micro-step's forward and only read here, so recomputation
    and compilation see the same draws. ``spread``: consecutive rows of the branch that belong to one row of the batch
    (more than one where a model folds patches into the batch).
    """

    spread: int = 1

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise UserError(f"model.drop_path.rate is {rate}: a drop probability lies in [0, 1).")
        self.rate = rate
        # Blocks differ in `rate`, and torch.compile guards on each float that it reads: forward reads this bool alone.
        self.drops = rate > 0.0
        self.factor: Tensor
        self.register_buffer("factor", torch.empty(0, dtype=torch.float32), persistent=False)

    def dropped(self, branch: Tensor) -> Tensor:
        """The branch with each row multiplied by its factor."""
        return branch * self.factors_of(branch)

    def factors_of(self, branch: Tensor) -> Tensor:
        """The factors of the branch's rows, in its dtype, so shaped that they multiply it."""
        if self.factor.shape[0] * self.spread != branch.shape[0]:
            raise RuntimeError(
                f"The join drops paths with rate {self.rate}, but holds {self.factor.shape[0]} keep factors for "
                f"{branch.shape[0]} rows: call restrain.models.set_factors before each forward in training mode."
            )
        factor = self.factor if self.spread == 1 else self.factor.repeat_interleave(self.spread)
        return factor.to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))

    def fills(self) -> dict[str, Fill]:
        return {"factor": ONE}


class BranchDrop(DropPath):
    """Drop path on a branch that joins elsewhere: what a timm model's own ``DropPath`` modules become."""

    def forward(self, branch: Tensor) -> Tensor:
        return self.dropped(branch) if self.drops and self.training else branch

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Join(DropPath):
    """``y = join(x, branch)``: x is the residual stream (after any shortcut projection), branch is f(x).

    ``observers`` are called as ``observer(join, x, branch, y)``; under activation checkpointing they are called in the
    recomputation as well. ``rows`` int64 [k]: where it is given (drop-path mode ``subset``), the branch of
    :meth:`around` is computed for these rows alone, and ``factor`` [k] is theirs.
    """

    name: str
    keeps_shortcut = True  # whether y depends on x: without it a block needs no projection, and dropping means nothing

    def __init__(self, rate: float = 0.0):
        super().__init__(rate)
        self.observers: list[Observer] = []
        self.rows: Tensor | None = None

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.drops and self.training:
            if self.rows is None:
                branch = self.dropped(branch)
            else:
                branch = self._spread_out(self.dropped(branch.index_select(0, self.rows)), self.rows, len(x))
        return self.meet(x, branch)

    def around(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """``join(x, f(x))``, with ``f`` computed only for the rows that keep their branch."""
        if self.rows is None or not self.training:
            return self(x, f(x))
        kept = self.dropped(f(x.index_select(0, self.rows)))
        return self.meet_rows(x, self.rows, kept)

    def meet_rows(self, x: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
        """:meth:`meet` with a branch that is ``kept`` in the rows ``rows`` and zero in all others."""
        return self.meet(x, self._spread_out(kept, rows, len(x)))

    @staticmethod
    def _spread_out(kept: Tensor, rows: Tensor, total: int) -> Tensor:
        return kept.new_zeros(total, *kept.shape[1:]).index_copy(0, rows, kept)

    def meet(self, x: Tensor, branch: Tensor) -> Tensor:
        """The stream after the join, shown to the observers; ``branch`` holds what drop path has left of it."""
        return self.shown(x, branch, self.joined(x, branch))

    def shown(self, x: Tensor, branch: Tensor, y: Tensor) -> Tensor:
        """y, once the observers have seen it."""
        if self.observers:
            for observer in self.observers:
                observer(self, x, branch, y)
        return y

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        """What distinguishes one join from another."""
        raise NotImplementedError

    def without(self, x: Tensor) -> Tensor:
        """The stream after the join where there is no branch."""
        return self.joined(x, torch.zeros_like(x))

    def extra_repr(self) -> str:
        return f"{self.name}, rate={self.rate:g}" if self.drops else self.name


class NoJoin(Join):
    """y = f(x): a plain network, in which depth degrades training (He et al. 2015, arXiv:1512.03385, figure 1)."""

    name = "none"
    keeps_shortcut = False

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return branch


class AddJoin(Join):
    """y = x + f(x) (He et al. 2015, equation 1); with a drop rate, stochastic depth (Huang et al. 2016, 1603.09382).

    ``shortcut``: y = shortcut x + f(x), as DeepNorm has it (Wang et al. 2022, arXiv:2203.00555).
    """

    name = "add"

    def __init__(self, rate: float = 0.0, shortcut: float = 1.0):
        super().__init__(rate)
        self.shortcut = shortcut

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        if not (self.drops and self.training) or self.rows is not None or self.shortcut != 1.0:
            return super().forward(x, branch)
        factors = self.factors_of(branch)
        y = torch.addcmul(x, branch, factors)  # one pass, and no tensor in between
        return self.shown(x, branch * factors, y) if self.observers else y

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.shortcut == 1.0 else self.shortcut * x + branch

    def meet_rows(self, x: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
        if self.observers or self.shortcut != 1.0:
            return super().meet_rows(x, rows, kept)
        return x.index_add(0, rows, kept.to(x.dtype))  # one pass over the stream, where the general form takes three

    def without(self, x: Tensor) -> Tensor:
        return x if self.shortcut == 1.0 else self.shortcut * x


class ScaledAddJoin(Join):
    """y = x + a f(x), with a learned.

    a is a vector [C], of small numbers at first (LayerScale: Touvron et al. 2021, arXiv:2103.17239), or one number,
    zero at first (ReZero: Bachlechner et al. 2020, arXiv:2003.04887; SkipInit: De and Smith 2020, arXiv:2002.10444,
    where it takes BatchNorm's place).
    """

    name = "add"

    def __init__(self, size: int, init: float, rate: float = 0.0, tokens: bool = False):
        super().__init__(rate)
        self.init, self.tokens = init, tokens
        self.gamma = nn.Parameter(torch.empty(size))

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch * _channels(self.gamma, x, self.tokens)

    def without(self, x: Tensor) -> Tensor:
        return x

    def fills(self) -> dict[str, Fill]:
        return super().fills() | {"gamma": Fill("constant", self.init)}


class ConcatJoin(Join):
    """y = [x, f(x)] along the channels: DenseNet (Huang et al. 2016, arXiv:1608.06993)."""

    name = "concat"

    def __init__(self, rate: float = 0.0, tokens: bool = False):
        super().__init__(rate)
        self.dim = -1 if tokens else 1

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return torch.cat((x, branch), self.dim)


class ScaleJoin(Join):
    """y = s x + b f(x) with constants: "constant scaling" of He et al. 2016 (arXiv:1603.05027), table 1."""

    name = "scale"

    def __init__(self, shortcut: float, branch: float, rate: float = 0.0):
        super().__init__(rate)
        self.shortcut, self.branch = shortcut, branch

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.shortcut * x + (branch if self.branch == 1.0 else self.branch * branch)


class Gate(nn.Module):
    """t(x) = sigmoid(W x + bias), the 1x1 convolution of each pixel or the linear layer of each token.

    ``kernel``: of a convolution that looks at more than the pixel.
    """

    def __init__(self, chans: int, bias: float, tokens: bool, kernel: int = 1):
        super().__init__()
        self.opening, self.tokens, self.kernel = bias, tokens, kernel
        self.weight = nn.Parameter(torch.empty(chans, chans, *([kernel, kernel] if kernel > 1 else [])))
        self.bias = nn.Parameter(torch.empty(chans))

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens:
            return torch.sigmoid(F.linear(x, self.weight, self.bias))
        weight = self.weight if self.kernel > 1 else self.weight[:, :, None, None]
        return torch.sigmoid(F.conv2d(x, weight, self.bias, padding=self.kernel // 2))

    def fills(self) -> dict[str, Fill]:
        return {"weight": fan_in_uniform(self.weight[0].numel()), "bias": Fill("constant", self.opening)}


class GateJoin(Join):
    """y = t(x) f(x) + (1 - t(x)) x: a highway layer (Srivastava et al. 2015, arXiv:1505.00387, equation 3).

    A negative bias opens the carry. Under the name ``exclusive_gate`` it is the "exclusive gating" of He et al. 2016,
    table 1, whose best bias is -6.
    """

    name = "gate"

    def __init__(self, chans: int, bias: float, rate: float = 0.0, tokens: bool = False):
        super().__init__(rate)
        self.gate = Gate(chans, bias, tokens)

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        gate = self.gate(x)
        return gate * branch + (1.0 - gate) * x


class ExclusiveGateJoin(GateJoin):
    """A :class:`GateJoin`, by the name that He et al. 2016 give it."""

    name = "exclusive_gate"


class ShortcutGateJoin(GateJoin):
    """y = f(x) + (1 - g(x)) x: "shortcut-only gating" of He et al. 2016, table 1; a negative bias opens it."""

    name = "shortcut_gate"

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return branch + (1.0 - self.gate(x)) * x


class ForgetJoin(Join):
    """y = f x + branch, with the gate f computed by the block.

    It is the cell of an LSTM with a forget gate, c_t = f_t c_{t-1} + i_t g_t (Gers, Schmidhuber and Cummins 2000).
    Fully open, f = 1, it is ``add``: the LSTM of 1997. Observers are shown x before the gate, and find f in ``opened``.
    No recipe names it: it comes with the network.
    """

    name = "forget"
    opened: Tensor | None = None

    def forward(self, x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
        self.opened = gate.detach() if self.observers else None
        y = self.shown(x, branch, gate * x + branch)
        self.opened = None
        return y


class Conv1x1Join(Join):
    """y = W x + f(x): the "1x1 conv shortcut" of He et al. 2016, table 1."""

    name = "conv1x1"

    def __init__(self, chans: int, rate: float = 0.0, tokens: bool = False):
        super().__init__(rate)
        self.tokens = tokens
        self.weight = nn.Parameter(torch.empty(chans, chans))

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.tokens:
            return F.linear(x, self.weight) + branch
        return F.conv2d(x, self.weight[:, :, None, None]) + branch

    def fills(self) -> dict[str, Fill]:
        return super().fills() | {"weight": he_normal(self.weight)}


class DropoutJoin(Join):
    """y = dropout(x) + f(x): the "dropout shortcut" of He et al. 2016, table 1, whose rate is 0.5."""

    name = "dropout"

    def __init__(self, dropout: float, rate: float = 0.0):
        super().__init__(rate)
        self.dropout = KeyedDropout(dropout)

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.dropout(x) + branch


def _channels(vector: Tensor, like: Tensor, tokens: bool) -> Tensor:
    """A vector [C] or [1] as it multiplies a stream."""
    return vector if tokens else vector.view(-1, *[1] * (like.dim() - 2))


@dataclass(frozen=True)
class JoinSpec:
    """The join that a recipe's ``model.join`` asks for; its options are those of the recipe's section of that name."""

    name: str = "add"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keeps_shortcut(self) -> bool:
        return self.name != "none"

    @property
    def concatenates(self) -> bool:
        return self.name == "concat"

    @property
    def starts_at_zero(self) -> bool:
        """Whether a block whose branch starts at zero starts as the identity."""
        return self.name == "add" and (self.options.get("scale") or "one") == "one"

    def build(self, chans: int, rate: float = 0.0, *, tokens: bool = False) -> Join:
        """The join of one branch. chans: channels of the stream; tokens: they come last; rate: of drop path."""
        return JOINS[self.name](self.options, chans, rate, tokens)


def _add(options: Mapping[str, Any], chans: int, rate: float, tokens: bool) -> Join:
    scale = options.get("scale") or "one"
    if scale == "one":
        return AddJoin(rate)
    size, init = (chans, 1e-5) if scale == "layerscale" else (1, 0.0)
    given = options.get("init")
    return ScaledAddJoin(size, init if given is None else given, rate, tokens)


# Another join is a class above and a line here: (options, channels, drop rate, tokens) -> Join.
JOINS: dict[str, Callable[[Mapping[str, Any], int, float, bool], Join]] = {
    "none": lambda options, chans, rate, tokens: NoJoin(rate),
    "add": _add,
    "gate": lambda options, chans, rate, tokens: GateJoin(chans, options.get("bias", -2.0), rate, tokens),
    "concat": lambda options, chans, rate, tokens: ConcatJoin(rate, tokens),
    "scale": lambda options, chans, rate, tokens: ScaleJoin(
        options.get("shortcut", 0.5), options.get("branch", 0.5), rate
    ),
    "shortcut_gate": lambda options, chans, rate, tokens: ShortcutGateJoin(
        chans, options.get("bias", -6.0), rate, tokens
    ),
    "exclusive_gate": lambda options, chans, rate, tokens: ExclusiveGateJoin(
        chans, options.get("bias", -6.0), rate, tokens
    ),
    "conv1x1": lambda options, chans, rate, tokens: Conv1x1Join(chans, rate, tokens),
    "dropout": lambda options, chans, rate, tokens: DropoutJoin(options.get("rate", 0.5), rate),
}


def join_spec(section: Mapping[str, Any] | None) -> JoinSpec:
    """The spec of a recipe's ``model.join`` section; UserError for a name that does not exist."""
    options = dict(section or {})
    name = options.pop("name", "add")
    if name not in JOINS:
        raise UserError(f"model.join.name is {name!r}; the joins are {', '.join(JOINS)}.{nearest(name, JOINS)}")
    return JoinSpec(name, options)
