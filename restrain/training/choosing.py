"""``parallel.strategy: auto``: the layout for a model of a known size on processes with a known memory. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from restrain.insight.units import size
from restrain.parallel.layout import Layout, layout_of
from restrain.parallel.world import World

MOSTLY = 0.7  # share of a process's memory for weights, gradients and optimizer; the rest is for activations

RULE = (
    "ddp where a process holds all of the model; else hsdp where there are several nodes and the processes of one can "
    "share it; else fsdp"
)


@dataclass(frozen=True)
class Need:
    """Bytes. ``held``: of the whole model's weights, gradients and optimizer (its name), and ``average``, whether they
    count a moving average; ``gathered``: of the weights that a sharded model gathers at a time; ``memory``: of a
    process: its GPU's, or its share of the host's."""

    held: int
    gathered: int
    memory: int
    optimizer: str
    average: bool = False


@dataclass(frozen=True)
class Choice:
    """A layout, and why ``auto`` is that, in one sentence; "" where the recipe says which it is."""

    layout: Layout
    reason: str = ""


def choose(parallel: Any, world: World, need: Need | None) -> Choice:
    """The layout of a recipe's ``parallel`` section; ``need``: where that is left to us.

    Each process holds all of the model where it can (ddp); else those of a node share it, where there are several nodes
    and a share fits, so that what is gathered stays within a node (hsdp); else all do (fsdp).

    Raises UserError as :func:`restrain.parallel.layout.layout_of`.
    """
    written = layout_of(parallel, world)
    if parallel.strategy != "auto" or need is None:
        return Choice(written)
    of = f"the model with gradients{',' if need.average else ' and'} {need.optimizer}"
    of += " and its moving average" if need.average else ""
    if written.tensor > 1:
        of += f", cut over tensor groups of {written.tensor},"
    held, most = need.held // written.tensor, int(MOSTLY * need.memory)
    takes = f"{of} takes {size(held)} a process of {size(need.memory)}"
    rest = f"of which {100 * MOSTLY:.0f} % are for these and the rest is for activations"
    if held <= most:
        name = written.strategy
        return Choice(written, f"{name}: {takes}, {rest}; {'one process' if world.size == 1 else 'each'} holds all")
    if written.data == 1:
        return Choice(written, f"{written.strategy}: {takes}, {rest}, and there is no other process to share it")
    node, gathered = world.local_size // written.tensor, need.gathered // written.tensor
    chosen, who = "fsdp", f"{written.data} processes"
    is_whole = world.local_size % written.tensor == 0 and world.size % world.local_size == 0
    if is_whole and 1 < node < written.data and held // node + gathered <= most:
        chosen, who = "hsdp", f"the {node} of a node, within which gathers stay,"
    layout = layout_of(parallel.model_copy(update={"strategy": chosen}), world)
    part = held // layout.shard
    told = f"{chosen}: {takes}, {rest}; {who} share it, {size(part)} each, and gather {size(gathered)} at a time"
    if part + gathered > most:
        told += f", which is still more than {size(most)}: take more processes, or parallel.tensor"
    return Choice(layout, told)
