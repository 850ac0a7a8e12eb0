"""How a model lies over the ranks of a run. No torch: what fits is known before it is imported.

Ranks form a grid ``replicate x shard x tensor``, the last one innermost, so that ranks that talk most are on one node.
Those of one tensor group see the same rows, all others different ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from restrain.errors import UserError
from restrain.parallel.world import World

SHARDED = ("fsdp", "hsdp")
ZERO = ("zero1", "zero2", "zero3")
STRATEGIES = ("single", "ddp", *SHARDED, *ZERO)


@dataclass(frozen=True)
class Layout:
    """``world`` ranks; ``tensor`` of them share each matrix of a transformer, ``shard`` share each parameter."""

    strategy: str = "single"
    world: int = 1
    tensor: int = 1
    shard: int = 1

    @property
    def data(self) -> int:
        """Ranks that see different rows."""
        return self.world // self.tensor

    @property
    def replicas(self) -> int:
        """Groups of ranks that each hold the whole model."""
        return self.data // self.shard

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are cut over ranks by torch: FSDP2, its hybrid form, or tensor parallelism."""
        return self.strategy in SHARDED or self.tensor > 1

    @property
    def told(self) -> str:
        """For a person, behind the number of devices: nothing of a single process."""
        if self.world == 1:
            return ""
        tensor = f" x tensor {self.tensor}" if self.tensor > 1 else ""
        return f" ({self.strategy}{f' of {self.shard}' if self.strategy == 'hsdp' else ''}{tensor})"

    def place(self, rank: int) -> tuple[int, int, int]:
        """(replica, shard, tensor): a rank's coordinates."""
        of_data, tensor = divmod(rank, self.tensor)
        replica, shard = divmod(of_data, self.shard)
        return replica, shard, tensor

    def rows(self, world: World) -> World:
        """The world as far as rows are concerned: who loads, evaluates and counts which of them."""
        return replace(world, rank=world.rank // self.tensor, size=self.data)

    def tensor_group(self, rank: int) -> list[int]:
        """The ranks that share each matrix with this one."""
        first = rank - rank % self.tensor
        return list(range(first, first + self.tensor))

    def data_group(self, rank: int) -> list[int]:
        """The ranks that hold the same part of each matrix as this one, and see other rows."""
        return list(range(rank % self.tensor, self.world, self.tensor))


def layout_of(parallel: Any, world: World) -> Layout:
    """The layout of a recipe's ``parallel`` section on the ranks that there are; ``strategy: auto`` as if each could
    hold the whole model (:func:`restrain.training.choosing.choose` looks whether it can).

    Raises UserError for sizes that do not divide, naming those that do.
    """
    size, tensor = world.size, parallel.tensor
    if size % tensor:
        raise UserError(
            f"parallel.tensor={tensor} does not divide the {size} process(es) of this run. Tensor groups of "
            f"{listed(_divisors(size))} work, or another number of processes (parallel.devices)."
        )
    data, strategy = size // tensor, parallel.strategy
    if strategy == "auto":
        strategy = "single" if size == 1 else "ddp"
    _check_keys(parallel, strategy)
    if strategy == "single" and size > 1:
        raise UserError(f"parallel.strategy=single, but there are {size} processes. Use ddp or auto.")
    shard = data if strategy == "fsdp" else 1
    if strategy == "hsdp":
        shard = parallel.shard or max(1, world.local_size // tensor)
        if data % shard or not 1 < shard < data:
            works = [n for n in _divisors(data) if 1 < n < data]
            told = f"Sizes that work: {listed(works)}" if works else "No size works here: take fsdp"
            raise UserError(
                f"parallel.strategy=hsdp with groups of {shard} (parallel.shard; by default the processes of a node) "
                f"on {data} data-parallel process(es): there must be several groups of several processes. "
                f"{told}."
            )
    return Layout(strategy, size, tensor, shard)


def _check_keys(parallel: Any, strategy: str) -> None:
    """Raises UserError for keys of another strategy than the one that is written; under ``auto`` some may lie idle."""
    written = parallel.strategy
    if strategy != "hsdp" and parallel.shard is not None:
        raise UserError(
            f"parallel.shard={parallel.shard} is the size of a group of hsdp, and parallel.strategy is {written}. Set "
            f"parallel.strategy=hsdp, or leave parallel.shard out."
        )
    if parallel.deepspeed and strategy not in ZERO:
        raise UserError(
            f"parallel.deepspeed goes to DeepSpeed's engine, and parallel.strategy is {written}. Set zero1, zero2 or "
            f"zero3, or leave parallel.deepspeed out."
        )
    if written in ("single", "ddp") and parallel.reduce is not None:
        adds = "has none to add up" if written == "single" else "adds them as they are"
        raise UserError(
            f"parallel.reduce={parallel.reduce} is the format in which fsdp, hsdp and ZeRO add up gradients, and "
            f"parallel.strategy is {written}, which {adds}. Leave parallel.reduce out, or set one of these "
            f"strategies."
        )
    if written in ("single", "ddp", "zero1", "zero2") and not parallel.reshard:
        raise UserError(
            f"parallel.reshard=false keeps what fsdp, hsdp and zero3 gather, and parallel.strategy is {written}, which "
            f"gathers nothing. Leave parallel.reshard out, or set one of these strategies."
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
