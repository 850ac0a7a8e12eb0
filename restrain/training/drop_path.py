"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): its draws as pure functions, what it fits and what it saves.

Shapes: J joins, R rows of a micro-batch, G groups in it, g rows a group.

A draw is a function of (seed, step, name, row), the row counted in the step's canonical list of groups, so that world,
micro-batch and restarts cannot move it. In every mode a branch has a factor of mean 1; p is its drop probability:

======  ===================================================  ===============  =================
mode    drawn                                                factor if kept   variance
======  ===================================================  ===============  =================
sample  each row of each join                                1 / (1 - p)      p / (1 - p)
batch   each block, for all rows of a step                   1 / (1 - p)      p / (1 - p)
subset  k = round((1 - p) g) of the g rows of each group     g / k            g / k - 1
======  ===================================================  ===============  =================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from restrain import draws
from restrain.draws import Purpose
from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock, joins, named_joins, residual_blocks
from restrain.models.residual import Join


def sample_factors(seed: int, step: int, names: np.ndarray, rates: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Factors [J, R] of mode ``sample``: 0 with probability ``rates`` [J], else 1 / (1 - rate).

    ``names``: uint64 [J], the key of each join's name; ``rows``: int64 [R], their place in the step.
    """
    keys = draws.extend(draws.mix(seed, Purpose.DROP_PATH, step), names[:, None], rows)
    return np.where(draws.uniform(keys) >= rates[:, None], 1.0 / (1.0 - rates[:, None]), 0.0)


def skipped_blocks(seed: int, step: int, names: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Which blocks mode ``batch`` skips in a step, bool [blocks]: the same on all ranks and in all micro-batches."""
    return draws.uniform(draws.extend(draws.mix(seed, Purpose.DROP_PATH, step), names)) < rates


def kept_of_group(rate: float, group: int) -> int:
    """Rows of a group of ``group`` that mode ``subset`` keeps, the nearest to (1 - rate) x group."""
    return round((1.0 - rate) * group)


def kept_rows(
    seed: int, step: int, names: np.ndarray, kept: Sequence[int], rows: np.ndarray, group: int
) -> list[np.ndarray]:
    """Rows that mode ``subset`` keeps of whole groups ``rows`` [R]: for each join int64 [G x kept], ascending.

    Of each group those with the largest keys stay; indices count from ``rows[0]``.
    """
    keys_JR = draws.extend(draws.mix(seed, Purpose.DROP_PATH, step), names[:, None], rows)
    keys_JGg = keys_JR.reshape(len(names), -1, group)
    order_JGg = np.argsort(~keys_JGg, axis=-1, kind="stable")
    starts_G1 = np.arange(keys_JGg.shape[1])[:, None] * group
    return [(np.sort(order[:, :k], axis=-1) + starts_G1).ravel() for order, k in zip(order_JGg, kept, strict=True)]


def block_rate(block: ResidualBlock) -> float:
    """The drop probability of a block, which all of its joins have; 0 without joins. UserError where they differ."""
    rates = {join.rate for _, join in joins(block)}
    if len(rates) > 1:
        raise UserError(
            f"The joins of one {type(block).__name__} drop with different rates, {sorted(rates)}: such a block has "
            f"model.drop_path.mode=sample alone."
        )
    return rates.pop() if rates else 0.0


def saving(model: nn.Module, mode: str, group: int, work: Mapping[str, float]) -> float:
    """Share of the blocks' work that a mode leaves out on average; ``work``: what each block's branches cost."""
    if mode == "sample":
        return 0.0
    rates = {name: block_rate(block) for name, block in residual_blocks(model)}
    if mode == "subset":
        rates = {name: 1.0 - kept_of_group(rate, group) / group for name, rate in rates.items()}
    return sum(work[name] * rate for name, rate in rates.items()) / sum(work.values())


def check_mode(model: nn.Module, mode: str, group: int, batch: int) -> None:
    """Raises UserError where ``model.drop_path.mode`` does not fit the model or the groups of its batch.

    model: may be on the meta device. group, batch: rows of a group and of the global batch.
    """
    if mode == "sample":
        return
    dropping = [(name, block) for name, block in residual_blocks(model) if block_rate(block) > 0.0]
    for name, join in named_joins(model) if dropping else ():
        if not isinstance(join, Join):
            raise UserError(
                f"model.drop_path.mode is {mode!r}, but {type(model).__name__} adds its branches itself ({name}): it "
                f"drops by sample alone."
            )
    if mode == "subset" and dropping:
        _check_norms(dropping)
        _check_group(max(block_rate(block) for _, block in dropping), group, batch)


def _check_norms(dropping: Sequence[tuple[str, ResidualBlock]]) -> None:
    for name, block in dropping:
        for path, module in block.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise UserError(
                    f"model.drop_path.mode is 'subset', but {name}.{path} is a BatchNorm: its statistics would be "
                    f"those of the kept rows alone. Use mode batch, which saves as much, or sample."
                )


def _check_group(rate: float, group: int, batch: int) -> None:
    """``rate``: the highest of the model."""
    if 0 < kept_of_group(rate, group) < group:
        return
    works = [g for g in range(1, batch + 1) if batch % g == 0 and 0 < kept_of_group(rate, g) < g]
    what = "keeps no row" if kept_of_group(rate, group) == 0 else "drops no row"
    cure = f"batch.group={works[0]} is the smallest that works" if works else "no group of this batch works: raise it"
    raise UserError(
        f"model.drop_path.mode is 'subset', which keeps round((1 - rate) x batch.group) rows of a group: with "
        f"batch.group={group} and a rate of at most {rate:g} it {what}. With batch.global={batch}, {cure}; or use mode "
        f"batch or sample."
    )
