"""Giving a model that is not ours the block contract: residual blocks, keyed drop paths, grouped BatchNorm.

Modules keep their parameters, their buffers and their names, so a state dict is timm's before and after. A block and a
BatchNorm change their class, as FSDP2's ``fully_shard`` changes that of what it shards.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from timm.layers.drop import DropPath as TimmDropPath
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock, named_joins, residual_blocks
from restrain.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d, GroupedBatchNormAct2d
from restrain.models.residual import BranchDrop, DropPath

# A residual block of timm's is known by its drop path, which it names even where it has none. These files' blocks are
# known by their class instead: they have none to name, or name it elsewhere.
BLOCKS: dict[str, tuple[str, ...]] = {
    "convmixer": ("Residual",),
    "densenet": ("DenseLayer",),
    "dla": ("DlaBasic", "DlaBottleneck", "DlaBottle2neck"),
    "dpn": ("DualPathBlock",),
    "efficientvit_mit": ("ResidualBlock",),
    "efficientvit_msra": ("EfficientVitBlock",),
    "ghostnet": ("GhostBottleneck", "GhostBottleneckV3"),
    "inception_resnet_v2": ("Block35", "Block17", "Block8"),
    "lcnetv2": ("RepDepthwiseSeparable",),
    "nasnet": ("CellStem0", "CellStem1", "FirstCell", "NormalCell", "ReductionCell0", "ReductionCell1"),
    "nextvit": ("NextConvBlock", "NextTransformerBlock"),
    "pnasnet": ("CellStem0", "Cell"),
    "repghost": ("RepGhostBottleneck",),
    "repvit": ("RepViTBlock",),
    "selecsls": ("SelecSlsBlock",),
    "senet": ("SEBottleneck", "SEResNetBottleneck", "SEResNeXtBottleneck", "SEResNetBlock"),
    "shvit": ("BasicBlock",),
    "vision_transformer": ("ParallelThingsBlock",),
    "xception": ("Block",),
}

NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GroupedBatchNorm1d,
    nn.BatchNorm2d: GroupedBatchNorm2d,
    BatchNormAct2d: GroupedBatchNormAct2d,
}


def adopt(model: nn.Module, name: str) -> list[str]:
    """Give ``model`` the block contract, in place; returns what a person should be told.

    Raises:
        UserError: the model has a part that cannot keep the contract; it is named.
    """
    _refuse_state(model, name)
    notices = _silence_dropout(model, name)
    for path, module in list(model.named_modules()):
        kind = NORMS.get(type(module))
        if kind is not None:
            module.__class__ = kind
        elif isinstance(module, nn.modules.batchnorm._NormBase) and not _harmless(module):
            raise UserError(
                f"model.name: {name} normalises with {type(module).__name__} ({path}), which has no grouped form: "
                f"its statistics would depend on the micro-batch and on the number of processes."
            )
    _key_drop_paths(model, name)
    _mark_blocks(model)
    inside = {id(join) for _, join in named_joins(model)}
    outside = [
        path for path, module in model.named_modules() if isinstance(module, DropPath) and id(module) not in inside
    ]
    if outside:
        raise UserError(f"model.name: {name} has a drop path outside of its residual blocks ({outside[0]}).")
    return notices


def _harmless(norm: nn.Module) -> bool:
    """Instance normalisation without running statistics: each row on its own."""
    return isinstance(norm, nn.modules.instancenorm._InstanceNorm) and not norm.track_running_stats


def _refuse_state(model: nn.Module, name: str) -> None:
    """Everything that a model holds must be parameters and buffers of real numbers: checkpoints see nothing else."""
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UserError(
                f"model.name: {name} keeps state beside its parameters and buffers ({path}, {type(module).__name__}), "
                f"which checkpoints would not hold."
            )
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            raise UserError(f"model.name: {name} has complex numbers ({path}), which no precision here means.")


def _silence_dropout(model: nn.Module, name: str) -> list[str]:
    """Dropout with a rate of its own, which ``drop_rate`` did not reach, would draw from torch's generator."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            found.append(f"{path} {module.p:g}")
            module.p = 0.0
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention | nn.Transformer) and module.dropout:
            raise UserError(f"model.name: {name} has dropout inside {type(module).__name__} ({path}).")
    if not found:
        return []
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return [f"{name}: dropout is off ({', '.join(found[:3])}{more}): it would draw from a generator and not from keys"]


def _key_drop_paths(model: nn.Module, name: str) -> None:
    for path, module in list(model.named_modules()):
        if not isinstance(module, TimmDropPath):
            continue
        if not module.scale_by_keep:
            raise UserError(f"model.name: {name} drops paths without scaling what it keeps ({path}).")
        parent, _, last = path.rpartition(".")
        owner = model.get_submodule(parent)
        # The MobileNets' blocks have a drop path even where they add nothing, and then never call it.
        idle = getattr(owner, "has_skip", True) is False
        setattr(owner, last, nn.Identity() if idle else BranchDrop(float(module.drop_prob or 0.0)))


def _mark_blocks(model: nn.Module) -> None:
    """The outermost modules that are blocks become ResidualBlocks, whose forward a pass may switch to recompute."""
    pending = list(reversed(list(model.children())))
    while pending:
        module = pending.pop()
        if isinstance(module, ResidualBlock):
            continue  # written for us
        if _is_block(module):
            module.__class__ = _as_block(type(module))
        else:
            pending += reversed(list(module.children()))


def _is_block(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__name__ in BLOCKS.get(kind.__module__.rpartition(".")[2], ()):
        return True
    if kind.__name__ == "ConvBnAct" and not getattr(module, "has_skip", False):
        return False  # the last convolution of the MobileNets, which has a drop path to name but nothing to add to
    own: dict[str, Any] = {**vars(module), **module._modules}
    return any(
        key.startswith("drop_path") and (value is None or isinstance(value, nn.Module)) for key, value in own.items()
    )


@cache
def _as_block(kind: type[nn.Module]) -> type[nn.Module]:
    """``kind`` as a ResidualBlock: its own forward is what the block computes."""
    return type(kind.__name__, (ResidualBlock, kind), {"block_forward": kind.forward, "__module__": kind.__module__})


def parts(model: nn.Module, part: str) -> list[nn.Module | nn.Parameter]:
    """What a timm model's ``stem`` (all before its first block) or ``head`` (its classifier) consists of."""
    if part == "head":
        return [model.get_submodule(path) for path in head_names(model)]
    blocks = [path for path, _ in residual_blocks(model)]
    found: list[nn.Module | nn.Parameter] = [p for _, p in model.named_parameters(recurse=False)]
    for path, module in model.named_modules():
        if not blocks or path == blocks[0]:
            break
        if path and not any(block.startswith(path + ".") for block in blocks):
            found.append(module)
    return found


HEADS = ("head", "fc", "classifier")  # what a model that does not say it calls its own


def head_names(model: nn.Module) -> list[str]:
    """The dotted names of the classifier's modules; of some models there are two (a distillation token's)."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or HEADS
    names = (names,) if isinstance(names, str) else tuple(names)
    return [name for name in names if any(path == name for path, _ in model.named_modules())]
