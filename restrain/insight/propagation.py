"""Signal propagation along the residual stream: x_L = x_l + sum of f_i, and what it says of gradients.

He et al. 2016 (arXiv:1603.05027), equations 4 and 5: where shortcuts are identities and nothing stands between the
joins, the stream is a sum, and dE/dx_l = dE/dx_L (1 + d/dx_l sum of f_i): a part of the gradient passes no weight.

Shapes: x, f and y are a join's stream, branch and output, all [B, C, H, W] or all [B, T, D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from restrain.insight.probe import arriving
from restrain.models import Join, named_joins

EXACT = 1e-6  # relative: what rounding of one addition explains, in fp32 with room


@dataclass(frozen=True)
class Passed:
    """One join in one forward pass, its tensors in the graph. ``branch``: as it arrives, scales included."""

    name: str
    join: Join
    x: Tensor
    branch: Tensor
    y: Tensor


@dataclass(frozen=True)
class Check:
    """A stretch of the trunk on which the stream keeps its shape.

    ``error``: ||x_L - (x_l + sum f)|| / ||x_L||; ``grad_error``: the same of the two sides of the gradient's identity.
    ``because``: why the sum cannot hold on it; empty where it must.
    """

    first: str
    last: str
    joins: int
    shape: tuple[int, ...]
    error: float
    grad_error: float
    because: str

    @property
    def holds(self) -> bool:
        return not self.because


def record(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[Tensor, list[Passed]]:
    """(what ``forward`` returns, the joins in the order in which it passed them).

    Modules that work in place are told not to: they would write over what a join has returned.
    """
    passed: list[Passed] = []
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # pyright: ignore[reportArgumentType]
    found = [(name, join) for name, join in named_joins(model) if isinstance(join, Join)]

    def observer(name: str):
        def observe(join: Join, x: Tensor, branch: Tensor, y: Tensor) -> None:
            passed.append(Passed(name, join, x, arriving(join, x, branch), y))

        return observe

    observers = [(join, observer(name)) for name, join in found]
    for join, one in observers:
        join.observers.append(one)
    try:
        return forward(), passed
    finally:
        for join, one in observers:
            join.observers.remove(one)


def check(loss: Tensor, passed: Sequence[Passed]) -> list[Check]:
    """The identity on each stretch of the joins that were passed; ``loss`` is of shape []. The graph is kept."""
    return [_checked(loss, stretch) for stretch in stretches(passed)]


def stretches(passed: Sequence[Passed]) -> list[list[Passed]]:
    """The joins cut where the stream changes its shape, before a join or in it."""
    found: list[list[Passed]] = []
    for one in passed:
        if one.x.shape != one.y.shape or one.branch.shape != one.y.shape:
            continue  # a join that concatenates: nothing is added
        if not one.x.requires_grad:
            continue  # the stream before any weight, such as the first state of a recurrent network
        if not found or found[-1][-1].y.shape != one.x.shape:
            found.append([])
        found[-1].append(one)
    return found


def _checked(loss: Tensor, stretch: Sequence[Passed]) -> Check:
    first, last = stretch[0], stretch[-1]
    with torch.no_grad():
        total = first.x.double()
        for one in stretch:
            total = total + one.branch.double()
        error = _relative(total, last.y)
    found = torch.autograd.grad(loss, (first.x, last.y), retain_graph=True, allow_unused=True)
    grad_l, grad_last = (torch.zeros_like(last.y) if one is None else one for one in found)
    through = _through(stretch, grad_last)
    return Check(
        first.name,
        last.name,
        len(stretch),
        tuple(first.x.shape[1:]),
        error,
        _relative(grad_last.double() + through, grad_l),
        _because(stretch),
    )


def _through(stretch: Sequence[Passed], grad_last: Tensor) -> Tensor:
    """dE/dx_L times d/dx_l of the sum of the branches, float64."""
    x, branches = stretch[0].x, [one.branch for one in stretch]
    cotangents = [grad_last] * len(branches)
    (found,) = torch.autograd.grad(branches, (x,), cotangents, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x, dtype=torch.float64) if found is None else found.double()


def _relative(found: Tensor, wanted: Tensor) -> float:
    size = float(torch.linalg.vector_norm(wanted.double()))
    away = float(torch.linalg.vector_norm(found.double() - wanted.double()))
    return away / size if size else (0.0 if away == 0.0 else float("inf"))


@torch.no_grad()
def _because(stretch: Sequence[Passed]) -> str:
    """Why the sum is not an identity on a stretch; empty where it is."""
    for one in stretch:
        if _relative(one.x + one.branch, one.y) > EXACT:
            return f"its join is not y = x + f(x): {_kind(one.join)}"
    for one, following in pairwise(stretch):
        if not torch.equal(one.y, following.x):
            return f"the stream is no sum: {_between(following.x)}"
    return ""


def _kind(join: Join) -> str:
    if join.name == "none":
        return "none, y = f(x)"
    if join.name == "add":
        return "its shortcut is scaled, as DeepNorm's"
    return join.name


def _between(x: Tensor) -> str:
    """What stands between two joins, told by the operation that made the stream of the second."""
    made = x.grad_fn.name().removesuffix("0").removesuffix("Backward") if x.grad_fn is not None else "something"
    if made == "Relu":
        return "a ReLU follows each join (post-activation), so x_L = relu(relu(x_l + f_1) + f_2) ..."
    if "Norm" in made:
        return f"a norm follows each join (post-norm, {made}), so x_L = norm(norm(x_l + f_1) + f_2) ..."
    return f"the joins are followed by something else ({made})"
