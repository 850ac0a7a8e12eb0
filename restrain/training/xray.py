"""``restrain probe``: one forward and backward pass of a network, with everything at its joins read and checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from restrain.insight import propagation
from restrain.insight.probe import Probe, Values
from restrain.insight.propagation import Check
from restrain.training.subject import Subject, batch_of


@dataclass(frozen=True)
class Xray:
    """``joins`` in depth order with their ``values``; ``checks``: signal propagation on each stretch of the trunk, none
    for a network that adds for itself; ``rows``: what it was shown."""

    joins: list[str]
    values: Values
    checks: list[Check]
    loss: float
    rows: str


def xray(subject: Subject) -> Xray:
    """Read and check one pass. The network's weights and statistics are not kept."""
    batch = batch_of(subject)
    model, task = subject.model, subject.task
    probe = Probe(model)

    def forward() -> torch.Tensor:
        with probe.attached():
            return task.rows(model(batch.inputs), batch.target).mean()

    loss, passed = propagation.record(model, forward)
    loss.backward(retain_graph=bool(passed))
    joins, values = probe.take()
    return Xray(joins, values, propagation.check(loss, passed), loss.item(), batch.what)
