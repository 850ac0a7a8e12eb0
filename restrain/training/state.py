"""RunState: everything a checkpoint holds, and nothing else.

A training step is a pure function of (recipe, interventions, step), so there is no loader state, no generator state and
nothing that belongs to a rank: the tensors below, and a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from restrain.errors import WorldError
from restrain.optim import stepping
from restrain.optim.ema import Ema
from restrain.parallel.engine import Engine
from restrain.parallel.held import Held
from restrain.parallel.precision import LossScale
from restrain.run.checkpoint import Reader, Slice

VERSION = 1


@dataclass
class RunState:
    """The state of a run after ``step`` optimizer steps.

    ``interventions``: append-only list of ``{at_step, kind, ...}``, empty in a healthy run. ``evaluated_at``: the
    last step whose evaluation finished. ``best``: ``{metric, value, step}``. ``held``: the journal line of a step
    whose evaluation was interrupted; it is written once the evaluation has been repeated. ``tracker``: the wandb
    run's id. ``looked_at``: the tripwires that have been looked at. ``engine``: how ``model`` lies over ranks; one that
    is whole where none is given.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: LossScale | None = None
    step: int = 0
    interventions: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, int]] = field(default_factory=list)
    evaluated_at: int = 0
    best: dict[str, Any] | None = None
    held: str | None = None
    tracker: dict[str, Any] = field(default_factory=dict)
    replaced: int = 0
    looked_at: list[str] = field(default_factory=list)
    engine: Engine = field(default=None)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.engine is None:
            self.engine = Engine(self.model)

    @property
    def updates(self) -> int | None:
        """The optimizer's own count of its updates, where it keeps one beside its tensors (LAMB, Adan)."""
        return stepping.updates(self.optimizer)

    @updates.setter
    def updates(self, count: int | None) -> None:
        stepping.set_updates(self.optimizer, count)

    def named_tensors(self) -> dict[str, Tensor]:
        """``name|kind`` -> the live tensor of this rank: param, buffer, each optimizer state by its torch name, ema,
        scaler."""
        tensors: dict[str, Tensor] = {f"{name}|param": p for name, p in self.engine.leaves()}
        persistent = self.model.state_dict(keep_vars=True)
        tensors.update({f"{name}|buffer": b for name, b in self.model.named_buffers() if name in persistent})
        tensors.update({f"{name}|{slot}": t for name, slot, t in self.engine.slots(self.optimizer)})
        if self.ema is not None:
            tensors.update({f"{name}|ema": t for name, t in self.ema.tensors().items()})
        if self.scaler is not None:
            tensors.update(self.scaler.tensors())
        return tensors

    def tensors(self) -> dict[str, list[Slice]]:
        """This rank's share of a checkpoint; of what several ranks hold alike, one has it."""
        named = {name: tensor.detach() for name, tensor in self.named_tensors().items()}
        held = {name: self.place_of(name, tensor) for name, tensor in named.items()}
        shares = {
            name: [Slice(part, held[name].shape, offset) for part, offset in held[name].saved(tensor)]
            for name, tensor in named.items()
        }
        return {name: slices for name, slices in shares.items() if slices}

    def place_of(self, name: str, tensor: Tensor) -> Held:
        """Where a live tensor ``name|kind`` lies in the whole one."""
        return self.engine.held(name.rpartition("|")[0], tensor)

    def scalars(self) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return {
            "version": VERSION,
            "step": self.step,
            "interventions": self.interventions,
            "segments": self.segments,
            "evaluated_at": self.evaluated_at,
            "best": self.best,
            "held": self.held,
            "tracker": self.tracker,
            "replaced": self.replaced,
            "looked_at": self.looked_at,
            "updates": self.updates,
        }

    def restore(self, reader: Reader) -> None:
        """Take over a checkpoint, in place: every live tensor must be there, with its shape.

        Values are copied *into* the live tensors because fused optimizers silently go wrong when the strides of a
        restored momentum differ from those of its parameter (channels-last weights, contiguous files).
        """
        scalars = reader.scalars
        if scalars.get("version") != VERSION:
            raise WorldError(
                f"The checkpoint {reader.path} has version {scalars.get('version')} of the run state; this Restrain "
                f"reads version {VERSION}. Continue the run with the Restrain that wrote it (named in its run.json)."
            )
        self.restore_tensors(reader)
        for name in scalars.keys() - {"version"}:
            setattr(self, name, scalars[name])

    def restore_tensors(self, reader: Reader, kinds: Sequence[str] | None = None) -> None:
        """Only the tensors; ``kinds``: of some kinds alone (what follows the last ``|`` of a name)."""
        live = self.named_tensors()
        wanted = {name: live[name] for name in live if kinds is None or name.rpartition("|")[2] in kinds}
        self._refuse_misfits(reader, wanted)
        for name, tensor in wanted.items():
            held = self.place_of(name, tensor)
            held.fill(tensor.detach(), lambda part, offset, n=name, w=held.shape: reader.read_into(n, part, offset, w))
        self.engine.refresh()
        self.check_strides()

    def _refuse_misfits(self, reader: Reader, wanted: dict[str, Tensor]) -> None:
        """Before anything is overwritten: all that is not there, or has another shape, told by its first three."""
        there, wrong = set(reader.names()), []
        for name, tensor in wanted.items():
            shape = tuple(self.place_of(name, tensor).shape)
            if name not in there:
                wrong.append(f"{name} is not there")
            elif reader.shape(name) != shape:
                wrong.append(f"{name} is {list(reader.shape(name))} there and {list(shape)} here")
        if wrong:
            more = f", and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
            raise WorldError(
                f"The checkpoint {reader.path} does not fit this run: {'; '.join(wrong[:3])}{more}, of "
                f"{len(wanted):,} tensors. It comes from another model or optimizer, or was cut short: resume with the "
                f"recipe that it was made with, or remove it, and the one before is used."
            )

    def check_strides(self) -> None:
        """Optimizer moments have the strides of their parameters; anything else is a bug that trains wrongly."""
        for p, slots in self.optimizer.state.items():
            for slot, t in slots.items():
                if isinstance(t, Tensor) and t.shape == p.shape and _layout(t) != _layout(p):
                    raise AssertionError(f"optimizer state {slot} has strides {t.stride()}, its parameter {p.stride()}")


def _layout(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have any: of a dimension of 1 the stride says nothing, and operations differ."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
