"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from restrain.errors import UserError

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: str) -> list[dict[str, Any]]:
    """Optimizer groups ``{"params", "weight_decay"}`` that partition the trainable parameters.

    ``no_decay``: ``none`` decays everything (He et al. 2015); ``norm`` leaves out the parameters of normalisations
    alone, as torchvision's ``--norm-weight-decay 0``; ``norm_and_bias`` leaves out the parameters of
    normalisations and all vectors and scalars, which are biases and gains (Goyal et al. 2017, arXiv:1706.02677, section
    5.3, footnote; He et al. 2019, arXiv:1812.01187). Decided by the kind of module and by ndim, never by name.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise UserError("Every parameter is frozen: model.freeze leaves nothing to train.")
    if no_decay == "none":
        return [{"params": trainable, "weight_decay": weight_decay}]
    if no_decay not in ("norm", "norm_and_bias"):
        raise UserError(f"optimizer.no_decay is {no_decay!r}; it is none, norm or norm_and_bias.")
    of_norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(False)}
    vectors = no_decay == "norm_and_bias"
    spared = [p for p in trainable if id(p) in of_norms or (vectors and p.ndim <= 1)]
    ids = {id(p) for p in spared}
    decayed = [p for p in trainable if id(p) not in ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    seen = [id(p) for group in groups for p in group["params"]]
    assert len(seen) == len(set(seen)) == len(trainable), "the groups do not partition the trainable parameters"
    return groups
