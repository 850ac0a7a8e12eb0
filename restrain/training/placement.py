"""Where a run happens: device, micro-batch and threads, with ``auto`` resolved. None of it defines the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from restrain.data.order import check_micro
from restrain.errors import UserError
from restrain.optim.optimizers import PER_TENSOR
from restrain.parallel import zero_keys
from restrain.parallel.layout import ZERO, Layout
from restrain.parallel.world import World, cores_of
from restrain.recipe import Recipe
from restrain.training import spans
from restrain.training.choosing import Choice, Need, choose
from restrain.training.micro import BYTES_A_TOKEN, auto_micro

# Below this many pixels a micro-batch, the threads of an operation cost more than they give (digits: 4,096 pixels,
# 1.0 s on one thread against 2.5 s and more on two; CIFAR-10 at 128: 131,072 pixels gains from two).
PIXELS_WORTH_THREADS = 32_768


@dataclass(frozen=True)
class Placement:
    """``micro``: rows a forward pass. ``threads``: torch's own, a process. ``data_threads``: of the loader.
    ``strategy``, ``tensor``, ``shard``: the layout (:class:`restrain.parallel.layout.Layout`). ``because``: why
    ``parallel.strategy: auto`` is that."""

    device: str
    micro: int
    threads: int
    data_threads: int
    strategy: str = "single"
    tensor: int = 1
    shard: int = 1
    because: str = ""

    def layout(self, world: World) -> Layout:
        """How the model lies over so many ranks."""
        return Layout(self.strategy, world.size, self.tensor, self.shard)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def device_of(recipe: Recipe, world: World) -> torch.device:
    """The device of this rank. Raises UserError where the recipe wants a GPU and there is none, or too few."""
    wanted = recipe.parallel.accelerator
    count = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and not count:
        raise UserError("parallel.accelerator=cuda: torch finds no CUDA device. Use auto or cpu, or another machine.")
    if not count:
        return torch.device("cpu")
    if world.local_rank >= count:
        raise UserError(
            f"{world.local_size} processes on this node, of which this one sees {count} CUDA device(s): one process a "
            f"device, and each sees all of its node's. Start fewer (parallel.devices={count}), or under srun drop "
            f"--gpus-per-task and --gpu-bind."
        )
    return torch.device("cuda", world.local_rank)


def place(
    recipe: Recipe,
    world: World,
    device: torch.device,
    pixels: int,
    *,
    trains: bool = False,
    need: Need | None = None,
) -> Placement:
    """Resolve micro-batch, threads and, where it ``trains``, the layout; what only looks at a run has it whole.

    ``pixels``: height x width of a training image (``Data.pixels``). ``need``: what ``strategy: auto`` goes by.

    Raises UserError, naming the sizes that work, for a micro-batch or a layout that cannot be.
    """
    choice = choose(recipe.parallel, world, need) if trains else Choice(Layout())
    layout = choice.layout
    spans.check(recipe, layout.data)
    batch, group = recipe.batch.global_, recipe.batch.group
    if recipe.batch.micro == "auto":
        # The card's whole memory, not what is free just now: the same on every rank and after every restart.
        memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
        row_bytes = recipe.data.context * BYTES_A_TOKEN if recipe.data.kind == "tokens" else None
        micro = auto_micro(batch, group, layout.data, pixels, memory, row_bytes)
    else:
        micro = recipe.batch.micro
        check_micro(batch, group, layout.data, micro)
    cores = world.cores or cores_of(world)
    threads = recipe.parallel.threads
    if threads == "auto":
        threads = cores if device.type == "cuda" or micro * pixels >= PIXELS_WORTH_THREADS else 1
    loaders = recipe.data.threads
    if loaders == "auto":
        loaders = 1 if pixels <= 64 * 64 else max(1, min(16, cores))
    return Placement(str(device), micro, threads, loaders, *_laid(choice))


def _laid(choice: Choice) -> tuple[str, int, int, str]:
    layout = choice.layout
    return layout.strategy, layout.tensor, layout.shard, choice.reason


def check_layout(recipe: Recipe, layout: Layout, device: torch.device) -> None:
    """Raises UserError for what does not go with a layout, before there is a run folder."""
    parallel, tensor = recipe.parallel, layout.tensor
    if layout.strategy in ZERO:
        zero_keys.check(parallel, recipe.precision, recipe.optimizer.name)
        if parallel.deepspeed:
            from restrain.parallel import zero

            zero.validate(zero_keys.engine_keys(parallel.deepspeed), int(layout.strategy[-1]), device)
    if parallel.offload == "cpu" and (device.type != "cuda" or layout.strategy not in ZERO):
        raise UserError(
            f"parallel.offload=cpu keeps the optimizer in the host's memory while a GPU computes: it needs a GPU and "
            f"parallel.strategy zero1 to zero3, and this is {layout.strategy} on {device.type}. Set "
            f"parallel.offload=none."
        )
    if parallel.compile == "step" and layout.is_sharded:
        raise UserError(
            f"parallel.compile=step is one graph, and {layout.strategy}, which parallel.strategy=auto has chosen, "
            f"gathers parameters block by block. Use parallel.compile=block."
        )
    if tensor > 1 and recipe.optimizer.name in PER_TENSOR:
        raise UserError(
            f"parallel.tensor={tensor} with optimizer.name={recipe.optimizer.name}, whose step takes the norm or the "
            f"spectrum of each whole matrix, and a rank has a part of it. Use sgd, adamw, nadam, lion or adan, or "
            f"parallel.tensor=1 with fsdp."
        )
    if tensor > 1 and recipe.model.feedback != "exact":
        raise UserError(
            f"parallel.tensor={tensor} with model.feedback={recipe.model.feedback}: the matrices that send the error "
            f"down are not cut over ranks. Set parallel.tensor=1."
        )
