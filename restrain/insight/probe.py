"""Probes: what happens at every join of a network in one forward and backward pass.

J places in depth order: the joins of our own models, and the blocks of those that are not ours (x is then what goes in,
y what comes out, and the branch y - x). Nothing is attached between two samples, and nothing that is attached changes a
bit of what the network computes: numbers are read under ``no_grad`` and kept on the device until :meth:`Probe.take`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from restrain.insight import stream
from restrain.insight.quantities import NAMES
from restrain.models import Join, ResidualBlock, joins, residual_blocks
from restrain.models.residual import ForgetJoin, GateJoin, ScaledAddJoin, ScaleJoin, ShortcutGateJoin

Values = dict[str, list[float | None]]
ON_DEVICE = ("ratio", "cosine", "mean", "variance", "rank", "gate")


@dataclass
class Record:
    """One join that was passed: scalar tensors by quantity, and what of its gradient has come back."""

    name: str
    read: dict[str, Tensor] = field(default_factory=dict)
    grad: Tensor | None = None
    dead: list[Tensor] = field(default_factory=list)
    units: int = 0


@dataclass(frozen=True)
class Sampler:
    """``probe`` reads those steps (counted from 1) that are ``due``."""

    probe: Probe
    due: Callable[[int], bool]


class Probe:
    """Reads one forward and backward pass of ``model``::

        with probe.attached():
            loss = model(x)
        loss.backward()
        values = probe.take()

    Under activation checkpointing the recomputation happens in the backward pass, when nothing is attached any more.
    """

    def __init__(self, model: nn.Module):
        self.joins: list[tuple[str, Join]] = []
        self.blocks: list[tuple[str, ResidualBlock]] = []
        self.order: list[str] = []
        for name, block in residual_blocks(model):
            found = [(f"{name}.{inner}", join) for inner, join in joins(block) if isinstance(join, Join)]
            self.joins += found
            self.blocks += [] if found else [(name, block)]
            self.order += [inner for inner, _ in found] or [name]
        self.relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        self.records: list[Record] = []
        self._dead: list[Tensor] = []
        self._units = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Reads the forward passes inside; what was read before is forgotten."""
        self.records, self._dead, self._units = [], [], 0
        observers = [(join, self._observer(name)) for name, join in self.joins]
        handles = [block.register_forward_hook(self._block_hook(name)) for name, block in self.blocks]
        handles += [relu.register_forward_hook(self._relu_hook) for relu in self.relus]
        for join, observer in observers:
            join.observers.append(observer)
        try:
            yield
        finally:
            for join, observer in observers:
                join.observers.remove(observer)
            for handle in handles:
                handle.remove()

    def take(self, grad_scale: float = 1.0) -> tuple[list[str], Values]:
        """(names of the places, values by quantity), in depth order; None where a quantity does not exist.

        A block that is passed several times (shared weights) has a place each time, ``name``, ``name#2``, ...; one that
        was skipped has values of None. ``grad_scale``: what gradients are multiplied with. Waits for the device.
        """
        records, self.records = self.records, []
        names = self._named(records)
        flat = [tensor.double() for one in records for tensor in (*one.read.values(), *_grad(one), *_dead(one))]
        numbers = iter(torch.stack(flat).tolist() if flat else [])
        rows: dict[str, dict[str, float]] = {}
        for name, one in zip(names, records, strict=True):
            rows[name] = {quantity: next(numbers) for quantity in one.read}
            for _ in _grad(one):
                rows[name]["grad"] = next(numbers) * grad_scale
            for _ in _dead(one):
                rows[name]["dead"] = next(numbers) / one.units
        order = self.order if set(names) <= set(self.order) else names
        return list(order), {q: [rows.get(name, {}).get(q) for name in order] for q in NAMES}

    def _named(self, records: list[Record]) -> list[str]:
        passed: dict[str, int] = {}
        names = []
        for one in records:
            passed[one.name] = passed.get(one.name, 0) + 1
            names.append(one.name if passed[one.name] == 1 else f"{one.name}#{passed[one.name]}")
        return names

    # ----------------------------------------------------------------------------------------- called by the network

    def _observer(self, name: str) -> Callable[[Join, Tensor, Tensor, Tensor], None]:
        def observe(join: Join, x: Tensor, branch: Tensor, y: Tensor) -> None:
            with torch.no_grad():
                self._read(name, x, arriving(join, x, branch), y, gate_of(join, x))

        return observe

    def _block_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def observe(block: nn.Module, inputs: tuple[Any, ...], y: Any) -> None:
            x = inputs[0] if inputs else None
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
                self._read(name, x, y.detach() - x.detach(), y, None)

        return observe

    @torch.no_grad()
    def _relu_hook(self, relu: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        dead, units = stream.dead_units(y)
        self._dead.append(dead)
        self._units += units

    @torch.no_grad()
    def _read(self, name: str, x: Tensor, branch: Tensor, y: Tensor, gate: Tensor | None) -> None:
        record = Record(name, dead=self._dead, units=self._units)
        self._dead, self._units = [], 0
        x, branch = x.detach(), branch.detach()
        of_x, of_branch = stream.norm(x), stream.norm(branch)
        record.read["ratio"] = of_branch / of_x
        if x.shape == branch.shape:
            record.read["cosine"] = stream.cosine(x, branch, of_x * of_branch)
        variance, mean = torch.var_mean(stream.wide(y.detach()), correction=0)
        record.read |= {"mean": mean, "variance": variance}
        if y.dim() == 3:
            record.read["rank"] = stream.participation_ratio(y.detach())
        if gate is not None:
            record.read["gate"] = gate
        if y.requires_grad:
            y.register_hook(lambda grad: _keep(record, grad))
        self.records.append(record)


def arriving(join: Join, x: Tensor, branch: Tensor) -> Tensor:
    """What of a branch is added to the stream: the branch, under a scale or a gate where the join has one."""
    if isinstance(join, ScaledAddJoin | ScaleJoin):
        return join.joined(torch.zeros_like(x), branch)
    if isinstance(join, GateJoin) and not isinstance(join, ShortcutGateJoin):  # whose gate is on the shortcut alone
        return join.gate(x) * branch
    return branch


def gate_of(join: Join, x: Tensor) -> Tensor | None:
    """The mean of a gating join's t(x), computed once more, or of a forget gate's f; None for other joins."""
    if isinstance(join, ForgetJoin):
        return None if join.opened is None else stream.wide(join.opened).mean()
    return stream.wide(join.gate(x)).mean() if isinstance(join, GateJoin) else None


@torch.no_grad()
def _keep(record: Record, grad: Tensor) -> None:
    # Two backward passes through one forward add up elsewhere; here the last one stands.
    record.grad = stream.norm(grad)


def _grad(record: Record) -> list[Tensor]:
    return [] if record.grad is None else [record.grad]


def _dead(record: Record) -> list[Tensor]:
    return [torch.stack(record.dead).sum()] if record.dead else []
