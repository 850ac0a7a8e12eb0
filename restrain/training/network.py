"""The recipe's network on this rank, laid out over the ranks, and what is refused of it before a run folder is made."""

from __future__ import annotations

import torch
from torch import nn

from restrain.errors import UserError
from restrain.insight.cost import branch_macs, weightless
from restrain.models import float8
from restrain.models.build import build_model, is_foreign
from restrain.models.foreign.contract import Build
from restrain.models.init import materialise
from restrain.models.norm import set_group
from restrain.optim.optimizers import PER_TENSOR
from restrain.parallel import blocks, precision, zero_keys
from restrain.parallel.engine import DataParallel, Engine
from restrain.parallel.layout import ZERO, Layout
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import drop_path, memory, spans
from restrain.training.choosing import Need
from restrain.training.inputs import image_sides, like_inputs
from restrain.training.memory import check_room, lay_remat, needed, process_memory


def build_engine(
    recipe: Recipe,
    device: torch.device,
    own: Build | None = None,
    layout: Layout | None = None,
    rank: int = 0,
    micro: int | None = None,
) -> Engine:
    """The recipe's model, laid over the ranks: recomputation, then compilation, then sharding.

    ``micro``: rows of a forward pass in training, for a memory budget; where it is auto and not given, nobody trains.
    """
    layout = layout or Layout()
    micro = micro or (recipe.batch.micro if recipe.batch.micro != "auto" else None)
    zero = layout.strategy in ZERO
    if not layout.is_sharded and not zero:
        model = build_model_on(recipe, device, recipe.seed, own, gradients=True)
        spans.lay(model, recipe, layout, rank)
        _passes(recipe, model, micro, device, layout)
        return (DataParallel if layout.strategy == "ddp" else Engine)(model, layout, rank)
    section, dtype = recipe.model.model_dump(), precision.dtype_of_weights(recipe.precision)
    foreign = is_foreign(recipe.model.name)
    if foreign:
        model = build_model(section, recipe.seed, image_sides(recipe), own).to(dtype).to(device)
    else:
        with torch.device("meta"):
            model = build_model(section, sides=image_sides(recipe)).to(dtype)
    spans.lay(model, recipe, layout, rank)
    _passes(recipe, model, micro, device, layout)
    parallel = recipe.parallel
    if zero:
        from restrain.parallel.zero import Zero

        return Zero(
            model,
            layout,
            rank,
            device,
            seed=recipe.seed,
            autocast=precision.autocast_dtype(recipe.precision),
            reduce=parallel.reduce,
            skips=recipe.model.drop_path.mode == "batch" and recipe.model.drop_path.rate > 0,
            reshard=parallel.reshard,
            offload=parallel.offload == "cpu",
            keys=zero_keys.engine_keys(parallel.deepspeed),
        )
    from restrain.parallel.sharded import Sharded

    engine = Sharded(
        model,
        layout,
        rank,
        device,
        reduce={None: None, "fp32": torch.float32, "bf16": torch.bfloat16}[parallel.reduce],
        reshard=parallel.reshard,
        per_tensor=recipe.optimizer.name in PER_TENSOR,
    )
    if not foreign:
        engine.materialise(device, recipe.seed)
    return engine


def _passes(recipe: Recipe, model: nn.Module, micro: int | None, device: torch.device, layout: Layout) -> None:
    if recipe.precision == "fp8":
        float8.apply(model)
    lay_remat(recipe, model, micro, precision.resolve(recipe.precision, device), layout)
    if recipe.parallel.compile == "block":
        blocks.apply_compile(model)
    elif recipe.parallel.compile == "step":
        blocks.apply_compile_whole(model)


def build_model_on(
    recipe: Recipe, device: torch.device, seed: int, own: Build | None = None, gradients: bool = False
) -> nn.Module:
    """The recipe's model on its device: built without memory, then filled by keyed initialisation.

    A model that is not ours fills itself while it is constructed, from keys as well: it is built on the host. ``own``:
    what builds a script's. ``gradients``: room for them is wanted too.

    Raises WorldError where the device has less memory than that.
    """
    section = recipe.model.model_dump()
    dtype = precision.dtype_of_weights(recipe.precision)
    if is_foreign(recipe.model.name):
        model = build_model(section, seed, image_sides(recipe), own).to(dtype).to(device)
    else:
        with torch.device("meta"):
            model = build_model(section, sides=image_sides(recipe))
        check_room(recipe.model.name, model.to(dtype), device, gradients)
        materialise(model, device, seed)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    set_group(model, recipe.batch.group)
    return model


def check_model(recipe: Recipe, own: Build | None = None, tensor: int = 1, device: torch.device | None = None) -> None:
    """Raises UserError for a model that cannot be built, trained on what the data are, shared by so many ranks of a
    ``tensor`` group or multiplied on the ``device``, before a run folder is made for it."""
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump(), recipe.seed, image_sides(recipe), own)
    check_drop_path(recipe, model)
    check_layers(recipe, model, tensor, device)
    if recipe.data.kind == "tokens":
        check_speaks(recipe, model)


def check_layers(recipe: Recipe, model: nn.Module, tensor: int, device: torch.device | None) -> None:
    """Raises UserError where a model's layers cannot be shared by so many ranks of a tensor group, or not multiplied as
    the recipe wants on the ``device``."""
    if tensor > 1:
        from restrain.parallel.tensor import check

        check(model, tensor)
    if recipe.precision == "fp8":
        precision.check_float8(device, model, tensor)


def check_speaks(recipe: Recipe, model: nn.Module) -> None:
    """Raises UserError where a model, on the meta device, does not take the tokens and say one for each."""
    tokens = like_inputs(recipe, 1, torch.float32)
    try:
        with torch.no_grad():
            found = tuple(weightless(model).eval()(tokens).shape)
    except UserError:
        raise
    except Exception as error:  # anything may happen in a model that is for something else
        raise UserError(
            f"model.name={recipe.model.name} does not read windows of {tokens.shape[1]} tokens: "
            f"{' '.join(str(error).split())[:200].rstrip('.')}. Name a language model, such as gpt."
        ) from error
    if found != (wanted := (*tokens.shape, recipe.model.classes)):
        raise UserError(
            f"model.name={recipe.model.name} gives {list(found)} for tokens {list(tokens.shape)}, and a language model "
            f"gives logits {list(wanted)}. Name a language model, such as gpt."
        )


def need_of(recipe: Recipe, device: torch.device, world: World, own: Build | None = None) -> Need | None:
    """What a process must hold, and has, for ``parallel.strategy: auto`` to choose by; None where it has no choice."""
    if recipe.parallel.strategy != "auto" or world.size == 1:
        return None
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump(), recipe.seed, image_sides(recipe), own)
    return needed(recipe, model.to(precision.dtype_of_weights(recipe.precision)), process_memory(device, world))


def check_offload(recipe: Recipe, layout: Layout, micro: int, world: World, own: Build | None = None) -> None:
    """Raises WorldError where this node's memory cannot take what its processes would offload into it."""
    if memory.offloads(recipe, layout):
        with torch.device("meta"):
            model = build_model(recipe.model.model_dump(), recipe.seed, image_sides(recipe), own)
        model = model.to(precision.dtype_of_weights(recipe.precision))
        share = memory.held_of(recipe, model, layout, micro)
        memory.check_offload(share, layout, world.local_size, memory.free_on_host())


def check_drop_path(recipe: Recipe, model: nn.Module) -> None:
    """Raises UserError where the mode of drop path does not fit the model or its groups."""
    drop_path.check_mode(model, recipe.model.drop_path.mode, recipe.batch.group, recipe.batch.global_)


def block_work(recipe: Recipe, model: nn.Module) -> dict[str, int] | None:
    """Multiply-adds of each block's branches, where the mode of drop path leaves some of them out; else None."""
    if recipe.model.drop_path.mode == "sample" or not recipe.model.drop_path.rate:
        return None
    return branch_macs(model, like_inputs(recipe, 1, next(model.parameters()).dtype))
