"""Which parameters decay, and how fast each layer learns."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn

from restrain.errors import UserError
from restrain.models.blocks import residual_blocks

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module, weight_decay: float, no_decay: str, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups ``{"params", "weight_decay"}`` that partition the trainable parameters.

    ``no_decay``: ``none`` decays everything (He et al. 2015); ``norm`` leaves out the parameters of normalisations
    alone, as torchvision's ``--norm-weight-decay 0``; ``norm_and_bias`` leaves out the parameters of normalisations,
    all vectors and scalars, which are biases and gains (Goyal et al. 2017, arXiv:1706.02677, section 5.3, footnote; He
    et al. 2019, arXiv:1812.01187), and what the model itself says must not decay: its position embeddings and class
    tokens (:func:`stated`). Decided by the kind of module and by ndim, never by name.

    With ``layer_decay`` each layer has groups of its own, with an ``lr_scale`` of layer_decay^(layers above it), in
    the order from the head down (:func:`layers`).
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise UserError("Every parameter is frozen: model.freeze leaves nothing to train.")
    spared = _spared(model, no_decay)
    layer = layers(model) if layer_decay is not None else dict.fromkeys((name for name, _ in named), 0)
    top = max(layer.values())
    groups = []
    for number in sorted(set(layer.values()), reverse=True):
        for decays in (True, False):
            members = [p for name, p in named if layer[name] == number and (id(p) not in spared) == decays]
            if members:
                group = {"params": members, "weight_decay": weight_decay if decays else 0.0}
                groups.append(group if layer_decay is None else {**group, "lr_scale": layer_decay ** (top - number)})
    seen = [id(p) for group in groups for p in group["params"]]
    assert len(seen) == len(set(seen)) == len(named), "the groups do not partition the trainable parameters"
    return groups


def _spared(model: nn.Module, no_decay: str) -> set[int]:
    """The ids of the parameters that do not decay."""
    if no_decay == "none":
        return set()
    if no_decay not in ("norm", "norm_and_bias"):
        raise UserError(f"optimizer.no_decay is {no_decay!r}; it is none, norm or norm_and_bias.")
    spared = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(False)}
    if no_decay == "norm_and_bias":
        spared |= {id(p) for p in model.parameters() if p.ndim <= 1} | stated(model)
    return spared


def stated(model: nn.Module) -> set[int]:
    """The ids of the parameters that a model (or a part of it) names in its method ``no_weight_decay()``, as timm's do.

    A name may be a pattern (``*.pos_embed``) and is relative to the module that says it.
    """
    found = set()
    for module in model.modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            for pattern in names():  # pyright: ignore[reportGeneralTypeIssues]
                found |= {id(p) for name, p in module.named_parameters() if fnmatch.fnmatchcase(name, pattern)}
    return found


def layers(model: nn.Module) -> dict[str, int]:
    """Parameter name -> layer: 0 the stem, 1 to L the L residual blocks, L + 1 the head.

    As BEiT counts them (Bao et al. 2021, arXiv:2106.08254). What stands between two blocks, such as the downsampling of
    a stage, belongs to the block that follows; what a model holds beside its first and last block is stem and head.
    Raises UserError for a model without residual blocks.
    """
    blocks = [f"{name}." for name, _ in residual_blocks(model)]
    if not blocks:
        raise UserError("optimizer.layer_decay needs a model with residual blocks, and this one has none.")
    names = [name for name, _ in model.named_parameters()]
    inside = {name: number for number, block in enumerate(blocks, 1) for name in names if name.startswith(block)}
    places = [place for place, name in enumerate(names) if name in inside]
    found, following = {}, len(blocks) + 1
    for place, name in reversed(list(enumerate(names))):
        following = inside.get(name, following)
        found[name] = following if place >= places[0] else 0
    return found
