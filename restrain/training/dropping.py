"""Everything that a step draws for its model: which branches are dropped, and the keys of dropout masks.

Shapes: J joins, R rows of a micro-batch, M dropout modules.

The host decides before a step and writes buffers before a forward pass; the forward only reads them, so recomputation
and compilation see the same draws. What is drawn is :mod:`.drop_path`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from restrain import draws
from restrain.draws import Purpose
from restrain.models.blocks import named_joins, residual_blocks, set_factors
from restrain.models.dropout import named_dropouts, set_dropout_keys
from restrain.models.norm import GroupedBatchNorm
from restrain.models.residual import Join
from restrain.training.drop_path import block_rate, kept_of_group, kept_rows, sample_factors, skipped_blocks


class SamplePaths:
    """Mode ``sample``: each row of each join on its own."""

    def __init__(self, model: nn.Module, seed: int, place: torch.device):
        self.seed, self.place, self.step = seed, place, 0
        found = named_joins(model)
        self.joins = [join for _, join in found]
        self.names = _keys(name for name, _ in found)
        self.rates = np.array([join.rate for join in self.joins])

    def begin(self, step: int, group: int) -> None:
        """Decide on the host what holds for a whole step; ``group``: rows of a group of its batch."""
        self.step = step

    def write(self, first: int, rows: int) -> None:
        """Write what the forward pass of the rows [first, first + rows) of the step will read."""
        factors = sample_factors(self.seed, self.step, self.names, self.rates, np.arange(first, first + rows))
        set_factors(self.joins, torch.from_numpy(factors).to(self.place))

    def rest(self, rows: int) -> None:
        """Drop nothing in the next forward pass, of ``rows`` rows."""
        set_factors(self.joins, torch.ones(len(self.joins), rows, device=self.place))

    def left_out(self) -> dict[str, float]:
        """Of each block the share of its branches that the current step does not compute; others: none."""
        return {}

    def idle(self) -> list[GroupedBatchNorm]:
        """BatchNorms that no forward pass of the current step has reached; to be asked after the last one."""
        return []


class BatchPaths(SamplePaths):
    """Mode ``batch``: a whole block is passed by in a step, on all ranks and in all micro-batches."""

    def __init__(self, model: nn.Module, seed: int, place: torch.device):
        super().__init__(model, seed, place)
        self.blocks = {name: block for name, block in residual_blocks(model) if block_rate(block) > 0.0}
        self.block_names = _keys(self.blocks)
        self.block_rates = np.array([block_rate(block) for block in self.blocks.values()])
        self.written = 0  # rows for which the factors were written

    def begin(self, step: int, group: int) -> None:
        skipped = skipped_blocks(self.seed, step, self.block_names, self.block_rates)
        for block, skip in zip(self.blocks.values(), skipped.tolist(), strict=True):
            block.skipped = skip

    def write(self, first: int, rows: int) -> None:
        if rows != self.written:  # the factor of a block that is kept is the same in every step
            factors = torch.from_numpy(1.0 / (1.0 - self.rates)).to(self.place)
            set_factors(self.joins, factors[:, None].expand(-1, rows))
            self.written = rows

    def rest(self, rows: int) -> None:
        for block in self.blocks.values():
            block.skipped = False
        super().rest(rows)
        self.written = 0

    def left_out(self) -> dict[str, float]:
        return {name: float(block.skipped) for name, block in self.blocks.items()}

    def idle(self) -> list[GroupedBatchNorm]:
        return [norm for block in self.blocks.values() if block.skipped for norm in block.idle_norms or ()]


class SubsetPaths(SamplePaths):
    """Mode ``subset``: in each group the same number of rows keeps its branch, and only theirs is computed."""

    def __init__(self, model: nn.Module, seed: int, place: torch.device):
        super().__init__(model, seed, place)
        self.own = [join for join in self.joins if isinstance(join, Join)]
        self.block_rates = {name: block_rate(block) for name, block in residual_blocks(model)}
        self.group, self.written = 0, (0, 0)  # written: (rows, group) for which the buffers have their sizes

    def begin(self, step: int, group: int) -> None:
        self.step, self.group = step, group

    def write(self, first: int, rows: int) -> None:
        group = self.group
        if (rows, group) != self.written:
            self._size(rows, group)
        kept = kept_rows(self.seed, self.step, self.partial_names, self.kept, np.arange(first, first + rows), group)
        indices = torch.from_numpy(np.concatenate(kept)).to(self.place)
        torch._foreach_copy_(self.buffers, list(indices.split([len(one) for one in kept])))  # pyright: ignore[reportPrivateImportUsage]

    def _size(self, rows: int, group: int) -> None:
        """Buffers for the kept rows of each join, and their factors, which are the same in every step."""
        counts = [kept_of_group(rate, group) for rate in self.rates.tolist()]
        for join, kept in zip(self.own, counts, strict=True):
            total, like = rows // group * kept, join.factor
            join.factor = torch.full((total,), group / kept, dtype=like.dtype, device=self.place)
            join.rows = torch.empty(total, dtype=torch.int64, device=self.place) if kept < group else None
        partial = [at for at, kept in enumerate(counts) if kept < group]
        self.kept, self.partial_names = [counts[at] for at in partial], self.names[partial]
        self.buffers = [rows for rows in (join.rows for join in self.own) if rows is not None]
        self.written = rows, group

    def rest(self, rows: int) -> None:
        for join in self.own:
            join.rows = None
        super().rest(rows)
        self.written = 0, 0

    def left_out(self) -> dict[str, float]:
        return {name: 1.0 - kept_of_group(rate, self.group) / self.group for name, rate in self.block_rates.items()}


# Another mode is a class above and a line here.
MODES: dict[str, type[SamplePaths]] = {"sample": SamplePaths, "batch": BatchPaths, "subset": SubsetPaths}


class Dropping:
    """The owner of all draws of a step that its forward passes read.

    Once a step :meth:`begin`, once before each forward pass :meth:`write`; :meth:`rest` before one that is no step.

    Args:
        model: on its device. seed: the run's.
        mode: ``model.drop_path.mode``; it fits the model (:func:`.drop_path.check_mode`).
        work: of each block by name what its branches cost, in any unit; for :attr:`dropped` alone.
    """

    def __init__(self, model: nn.Module, mode: str, seed: int, work: Mapping[str, float] | None = None):
        self.seed, self.place = seed, next(model.parameters()).device
        drops = any(join.drops for _, join in named_joins(model))
        self.paths = MODES[mode](model, seed, self.place) if drops else None
        found = named_dropouts(model)
        self.dropouts = [module for _, module in found]
        self.dropout_names = _keys(name for name, _ in found)
        whole = sum(work.values()) if work else 0.0
        self.work = {name: one / whole for name, one in work.items()} if work and whole else {}
        self.step = 0

    def begin(self, step: int, group: int) -> None:
        """Take the host's decisions of a step, before its first forward pass; ``group``: rows of a group."""
        self.step = step
        if self.paths is not None:
            self.paths.begin(step, group)

    def write(self, first: int, rows: int) -> None:
        """Write the draws of the rows [first, first + rows) of the step, which the next forward pass computes."""
        if self.paths is not None:
            self.paths.write(first, rows)
        if self.dropouts:
            self._write_keys(np.arange(first, first + rows))

    def rest(self, rows: int) -> None:
        """Let the next forward pass, of ``rows`` rows, drop no branch; it is no part of a step."""
        if self.paths is not None:
            self.paths.rest(rows)
        if self.dropouts:
            self._write_keys(np.arange(rows))

    def _write_keys(self, rows: np.ndarray) -> None:
        keys = dropout_keys(self.seed, self.step, self.dropout_names, rows)
        set_dropout_keys(self.dropouts, torch.from_numpy(keys).to(self.place))

    @property
    def idle(self) -> list[GroupedBatchNorm]:
        """BatchNorms that no forward pass of the step has reached."""
        return [] if self.paths is None else self.paths.idle()

    @property
    def left_out(self) -> dict[str, float]:
        """Block -> share of its branches that the step does not compute; a block that is not there leaves out none."""
        return {} if self.paths is None else self.paths.left_out()

    @property
    def dropped(self) -> float | None:
        """Share of all blocks' work that the step leaves out; None where the mode leaves out none, or none is known."""
        left_out = self.left_out
        return sum(self.work[name] * share for name, share in left_out.items()) if left_out and self.work else None


def dropout_keys(seed: int, step: int, names: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One key a row for each dropout module, int64 [M, R]: its mask is a function of the key and of nothing else."""
    return draws.extend(draws.mix(seed, Purpose.DROPOUT, step), names[:, None], rows).view(np.int64)


def _keys(names: Iterable[str]) -> np.ndarray:
    return np.array([draws.name_key(name) for name in names], np.uint64)
