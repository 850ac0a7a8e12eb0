"""BatchNorm over fixed groups of rows, and statistics that are committed once an optimizer step.

Shapes: B rows of a micro-batch, G groups in it, g rows a group, C channels, H and W pixels.

The groups of a batch are part of the run's definition (recipe: ``batch.group``), the micro-batch is not: a micro-batch
of several groups normalises each of them on its own, so every world and micro-batch trains the same model. A group may
also span several ranks (:mod:`.span`), each with an equal part of it. Ghost batch
normalisation (Hoffer et al. 2017, arXiv:1705.08741) is the same computation under another aim.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.models.span import Span


class GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm whose training statistics are those of ``group`` consecutive rows (None: the whole batch).

    Evaluation, and training with one group a micro-batch, are ``F.batch_norm``. Running statistics are updated in the
    forward, as in ``nn.BatchNorm2d`` (by the mean over the groups), until a :class:`StagedStatistics` takes that over:
    then the forward only writes the sums over its groups to a scratch buffer, so recomputing it changes nothing.
    """

    group: int | None = None
    spread: int = 1  # consecutive rows of the input that belong to one row of the batch, where a model folds tokens in
    span: Span | None = None  # the ranks over which each group lies; None: this one has whole groups
    frozen: bool = False  # statistics never move: stays in evaluation mode under .train()
    initial_scale: float = 1.0  # what init.py fills the weight with; 0 for the last norm of a zero-initialised branch
    scratch: Tensor | None = None  # [2, C]: mean and unbiased variance, summed over the groups of the last forward

    def train(self, mode: bool = True) -> GroupedBatchNorm:
        return super().train(mode and not self.frozen)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        rows = input.shape[0]
        group = rows if self.group is None else self.group * self.spread
        if self.span is not None:
            return self._across(input, group, self.span)
        if rows % group:
            raise ValueError(f"{rows} rows cannot be cut into BatchNorm groups of {group}.")
        if rows == group and self.scratch is None:
            return super().forward(input)
        if rows == group and self.scratch is not None and not torch.compiler.is_compiling():
            # Momentum 1 turns "running" statistics into the latest ones: staging costs no further kernel. autograd
            # saves them without need, and would find the flat tensor written by the next norm: hence .data, which has
            # a version counter of its own, and hence no such path in a compiled graph.
            mean, variance = self.scratch.data.unbind()
            return F.batch_norm(input, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        return self._by_groups(input, group)

    def _by_groups(self, x_BCHW: Tensor, group: int) -> Tensor:
        y_BCHW, statistics_2GC = grouped_batch_norm(x_BCHW, self.weight, self.bias, self.eps, group)
        self._track(statistics_2GC)
        return y_BCHW

    def _across(self, x_BCHW: Tensor, group: int, span: Span) -> Tensor:
        if x_BCHW.shape[0] * span.size != group:
            raise ValueError(f"{x_BCHW.shape[0]} rows are not 1/{span.size} of a BatchNorm group of {group}.")
        y_BCHW, statistics_2C = span.batch_norm(x_BCHW, self.weight, self.bias, self.eps)
        self._track(statistics_2C[:, None], 1.0 / span.size)
        return y_BCHW

    @torch.no_grad()
    def _track(self, statistics_2GC: Tensor, share: float = 1.0) -> None:
        """Stage the statistics of groups, or move the running ones at once. share: what this rank stages of them."""
        if self.scratch is not None:
            self.scratch.copy_(statistics_2GC.sum(1) * share)
        elif self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            step = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            mean, variance = statistics_2GC.mean(1).unbind()
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(variance, step)


class GroupedBatchNorm2d(GroupedBatchNorm, nn.BatchNorm2d):
    """Over images [B, C, H, W]."""


class GroupedBatchNorm1d(GroupedBatchNorm, nn.BatchNorm1d):
    """Over vectors [B, C] or sequences [B, C, L]."""


class GroupedBatchNormAct2d(GroupedBatchNorm2d):
    """BatchNorm, dropout and activation in one module, as timm's ``BatchNormAct2d``, whose submodules it has."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def grouped_batch_norm(x_BCHW: Tensor, weight: Tensor, bias: Tensor, eps: float, group: int) -> tuple[Tensor, Tensor]:
    """Normalise each run of ``group`` rows on its own: y [B, C, H, W]; mean and unbiased variance [2, G, C].

    The statistics have the weight's dtype and no gradient. benchmarks/batchnorm.py measures this way beside others.
    """
    # Zeros: the kernel computes 0 x old + 1 x new, and 0 x NaN of fresh memory is NaN.
    statistics_2GC = torch.zeros(2, x_BCHW.shape[0] // group, x_BCHW.shape[1], dtype=weight.dtype, device=weight.device)
    parts = [
        F.batch_norm(part, mean, variance, weight, bias, True, 1.0, eps)
        for part, mean, variance in zip(
            x_BCHW.split(group), *(s.unbind() for s in statistics_2GC.unbind()), strict=True
        )
    ]
    return torch.cat(parts), statistics_2GC


def grouped_norms(model: nn.Module) -> list[tuple[str, GroupedBatchNorm]]:
    """The model's grouped BatchNorms with their dotted names, in order of definition."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, GroupedBatchNorm)]


def set_group(model: nn.Module, group: int | None, span: Span | None = None) -> None:
    """Normalise over ``group`` consecutive rows in training; None is the whole micro-batch.

    span: the ranks over which each group lies. A forward pass in training then takes this rank's equal part of one
    group, and is made by all of these ranks together.
    """
    if group is not None and group < 1:
        raise ValueError(f"A BatchNorm group has at least one row, not {group}.")
    if span is not None and (group is None or group % span.size):
        raise ValueError(f"A BatchNorm group of {group} rows cannot be cut into {span.size} equal parts.")
    for _, norm in grouped_norms(model):
        norm.group, norm.span = group, span


class StagedStatistics:
    """Running statistics of a whole optimizer step, whatever its micro-batches, recomputations and ranks.

    Made once the model is on its device and its frozen parts are marked. Each step::

        for micro_batch in step:  loss(model(micro_batch)).backward(); staged.accumulate()
        all_reduce(staged.sums)                         # SUM over the ranks, once
        staged.commit(groups=batch // group, ok=ok)     # running += momentum x (sums / groups - running)

    ``sums`` is one flat tensor, float32 (float64 where the model's statistics are): mean and unbiased variance of each
    norm, summed over groups. Of a group that spans k ranks each of them adds 1 / k.
    """

    def __init__(self, model: nn.Module):
        self.norms = [norm for _, norm in grouped_norms(model) if not norm.frozen and norm.track_running_stats]
        momenta = [norm.momentum for norm in self.norms if norm.momentum is not None]
        if len(momenta) < len(self.norms):
            raise ValueError("Staged statistics need a momentum in every BatchNorm, not a cumulative average.")
        self.running: list[Tensor] = []
        self.counters: list[Tensor] = []
        for norm in self.norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            self.running += [norm.running_mean, norm.running_var]
            self.counters.append(norm.num_batches_tracked)
        like = self.running[0] if self.running else torch.empty(0)
        self.sizes = [buffer.numel() for buffer in self.running]
        self._scratch = torch.zeros(sum(self.sizes), dtype=like.dtype, device=like.device)
        self.sums = torch.zeros_like(self._scratch)
        # One number where they agree, as they do but in a few of timm's models; else one for each element.
        self.momentum: float | Tensor = momenta[0] if momenta else 0.0
        if len(set(momenta)) > 1:
            twice = [momentum for momentum in momenta for _ in range(2)]
            parts = [like.new_full((size,), momentum) for size, momentum in zip(self.sizes, twice, strict=True)]
            self.momentum = torch.cat(parts)
        views = self._scratch.split([2 * norm.num_features for norm in self.norms])
        for norm, view in zip(self.norms, views, strict=True):
            norm.scratch = view.view(2, -1)

    def accumulate(self) -> None:
        """Add what the last forward staged to the step's sums; once after each micro-step's backward."""
        self.sums += self._scratch

    @torch.no_grad()
    def commit(self, groups: int, ok: Tensor | None = None, idle: Collection[GroupedBatchNorm] = ()) -> None:
        """Move the running statistics by the mean over the step's ``groups`` groups; not at all where ``ok`` is false.

        ``ok`` is a 0-dim bool tensor on the model's device; it is never read by the host. ``idle``: norms that no
        forward pass of the step reached, since their block was skipped; they keep their statistics and their count.
        """
        if self.norms:
            old = torch.cat(self.running)
            new = old + self.momentum * (self.sums / groups - old)
            if ok is not None:
                new = torch.where(ok, new, old)
            running, counters, moved = self.running, self.counters, list(new.split(self.sizes))
            if idle:
                resting = set(map(id, idle))
                places = [place for place, norm in enumerate(self.norms) if id(norm) not in resting]
                counters = [counters[place] for place in places]
                running, moved = ([pair[2 * at + i] for at in places for i in (0, 1)] for pair in (running, moved))
            if counters:
                torch._foreach_copy_(running, moved)  # pyright: ignore[reportPrivateImportUsage]
                # A list of tensors: one tensor for all would be read by the host, on a CPU at least.
                one = 1 if ok is None else [ok.long()] * len(counters)
                torch._foreach_add_(counters, one)  # pyright: ignore[reportPrivateImportUsage]
        self.discard()

    def discard(self) -> None:
        """Forget what was staged; the scratch too, which at momentum 1 would keep a NaN for ever (0 x NaN)."""
        self.sums.zero_()
        self._scratch.zero_()

    def detach(self) -> None:
        """Give the norms back their own update in the forward."""
        for norm in self.norms:
            norm.scratch = None
