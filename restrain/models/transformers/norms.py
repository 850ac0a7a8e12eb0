"""The two normalisations of a token's channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from restrain.models.fill import ONE, Fill

if TYPE_CHECKING:
    from restrain.models.transformers.spec import TransformerSpec


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a gain (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def fills(self) -> dict[str, Fill]:
        return {"weight": ONE}


def norm_layer(spec: TransformerSpec, width: int) -> nn.Module:
    """The norm that a transformer uses everywhere: LayerNorm (Ba et al. 2016, arXiv:1607.06450) or RMSNorm."""
    if spec.norm == "rmsnorm":
        return RMSNorm(width, spec.eps)
    return nn.LayerNorm(width, spec.eps, bias=spec.bias)
