"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929), DeiT and DeiT III, with timm's names and weights.

Shapes: B rows, C channels and H, W pixels of the image, P patches, T tokens (class token, registers, patches), D
channels of the stream, K classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.dropout import KeyedDropout
from restrain.models.fill import Fill, fan_in_uniform
from restrain.models.layers import Conv2d
from restrain.models.residual import JoinSpec
from restrain.models.transformers.block import TransformerBlock, build_blocks, final_norm
from restrain.models.transformers.initial import FilledLinear
from restrain.models.transformers.norms import norm_layer
from restrain.models.transformers.positions import sincos_2d
from restrain.models.transformers.spec import TransformerSpec
from restrain.models.wish import Wish


@dataclass(frozen=True, kw_only=True)
class VitSpec(TransformerSpec):
    """``patch`` and ``image``: sides in pixels. ``pool``: the head sees the class token, or the mean of the patches.

    ``pooled_norm``: the last norm stands behind the mean (timm's ``fc_norm``). ``patch_positions``: the class token and
    the registers have no learned position (timm's ``no_embed_class``). ``layerscale``: the first value of a join's
    gamma, where the recipe's join says nothing about a scale.
    """

    SHAPE: ClassVar[tuple[str, ...]] = (*TransformerSpec.SHAPE, "patch")
    OPTIONS: ClassVar[tuple[str, ...]] = (*TransformerSpec.OPTIONS, "pool", "registers")

    patch: int = 16
    image: int = 224
    pool: str = "token"
    registers: int = 0
    pooled_norm: bool = False
    patch_positions: bool = False
    layerscale: float | None = None
    eps: float = 1e-6


class VitBlock(TransformerBlock):
    """A block whose joins have timm's names: a LayerScale join's gamma is ``ls1.gamma``."""

    join_names = ("ls1", "ls2")


class PatchEmbed(nn.Module):
    """The linear map of each patch: a convolution whose stride is its size."""

    def __init__(self, in_chans: int, width: int, patch: int):
        super().__init__()
        self.patch = patch
        self.proj = PatchConv(in_chans, width, patch, patch, padding=0, bias=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / patch, W / patch]."""
        height, width = x_BCHW.shape[2:]
        if height % self.patch or width % self.patch:
            raise UserError(does_not_fit(f"{height} x {width}", min(height, width), self.patch))
        return self.proj(x_BCHW)


class PatchConv(Conv2d):
    """Weight and bias uniform in 1/sqrt(fan_in): torch's own of a convolution, which timm's ViT keeps here."""

    def fills(self) -> dict[str, Fill]:
        bound = fan_in_uniform(math.prod(self.weight.shape[1:]))
        return {"weight": bound, "bias": bound}


class Vit(nn.Module):
    """stem (patches, tokens, positions) -> blocks -> norm -> class token or mean -> linear head.

    ::

        x [B, C, H, W] ─ patch_embed ─ + pos_embed ─ cls_token, reg_token before ─ blocks ─ norm ─ pool ─ head ─ [B, K]
    """

    def __init__(self, spec: VitSpec, wish: Wish):
        super().__init__()
        self.spec = spec
        width = spec.width
        self.patch_embed = PatchEmbed(wish.in_chans, width, spec.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if spec.pool == "token" else None
        self.reg_token = nn.Parameter(torch.empty(1, spec.registers, width)) if spec.registers else None
        self.prefix = (spec.pool == "token") + spec.registers  # tokens before the patches
        self.placed = 0 if spec.patch_positions else self.prefix  # those of them that have a position
        self.grid = spec.image // spec.patch
        length = self.grid**2 + self.placed
        self.pos_embed = nn.Parameter(torch.empty(1, length, width)) if spec.position == "learned" else None
        self.pos_drop = KeyedDropout(spec.dropout) if spec.dropout else nn.Identity()
        self.blocks = nn.ModuleList(build_blocks(spec, wish, VitBlock))
        self.norm = nn.Identity() if spec.pooled_norm else final_norm(spec)
        self.fc_norm = norm_layer(spec, width) if spec.pooled_norm else nn.Identity()
        self.head = FilledLinear(width, wish.classes, True, Fill("normal", 0.02))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BTD = self.pos_drop(self.embed(x_BCHW))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.norm(x_BTD)
        x_BD = x_BTD[:, 0] if self.cls_token is not None else x_BTD[:, self.prefix :].mean(1)
        return self.head(self.fc_norm(x_BD))

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """The tokens [B, T, D] that the first block sees; images of another size than ``spec.image`` get positions
        between those that were learned."""
        x_BDHW = self.patch_embed(x_BCHW)
        rows, _, height, width = x_BDHW.shape
        x_BPD = x_BDHW.flatten(2).transpose(1, 2)
        before = [token.expand(rows, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        if self.pos_embed is None:
            if self.spec.position == "sincos":
                x_BPD = x_BPD + sincos_2d(height, width, self.spec.width, x_BPD)
            return torch.cat((*before, x_BPD), 1) if before else x_BPD
        positions = self.pos_embed
        if (height, width) != (self.grid, self.grid):
            positions = resized(positions, self.placed, (height, width))
        if not self.placed:
            x_BPD = x_BPD + positions
            return torch.cat((*before, x_BPD), 1) if before else x_BPD
        return torch.cat((*before, x_BPD), 1) + positions

    def fills(self) -> dict[str, Fill]:
        """timm's: positions N(0, 0.02^2), class and register tokens next to zero."""
        little = Fill("normal", 1e-6)
        return {"pos_embed": Fill("normal", 0.02), "cls_token": little, "reg_token": little}

    def no_weight_decay(self) -> set[str]:
        """Parameters that do not decay under ``optimizer.no_decay: norm_and_bias``."""
        return {"pos_embed", "cls_token", "reg_token"}

    def part(self, name: str) -> list[nn.Module | nn.Parameter]:
        """``stem``: patches, tokens and positions. ``head``: the linear layer."""
        tokens = [token for token in (self.cls_token, self.reg_token, self.pos_embed) if token is not None]
        return {"stem": [self.patch_embed, *tokens], "head": [self.head]}[name]

    def resize(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a model that saw images of another size: its position embeddings for this size."""
        found, own = dict(tensors), self.pos_embed
        given = found.get("pos_embed")
        if own is None or given is None or given.shape[1] == own.shape[1]:
            return found
        if math.isqrt(given.shape[1] - self.placed) ** 2 == given.shape[1] - self.placed:
            found["pos_embed"] = resized(given, self.placed, (self.grid, self.grid))
        return found


def resized(pos_embed_1LD: Tensor, placed: int, grid: tuple[int, int]) -> Tensor:
    """Learned positions for another grid of patches, bicubic and antialiased as timm's; those of ``placed`` tokens
    before the patches stay. The old grid is a square."""
    old = math.isqrt(pos_embed_1LD.shape[1] - placed)
    before, patches = pos_embed_1LD[:, :placed], pos_embed_1LD[:, placed:]
    picture_1DHW = patches.float().view(1, old, old, -1).permute(0, 3, 1, 2)
    new_1DHW = F.interpolate(picture_1DHW, size=grid, mode="bicubic", antialias=True)
    return torch.cat((before, new_1DHW.flatten(2).transpose(1, 2).to(before.dtype)), 1)


def does_not_fit(size: str, side: int, patch: int) -> str:
    """Why an image size is refused, with the sizes next to it that work."""
    below, above = side // patch * patch, -(-side // patch) * patch
    works = " and ".join(str(n) for n in dict.fromkeys((below, above)) if n)
    return (
        f"An image of {size} pixels cannot be cut into patches of {patch} x {patch}: sides that work are multiples of "
        f"{patch}, such as {works} (resolution.train, .eval and .schedule; the patch is model.shape.patch)."
    )


def _sizes(prefix: str, sizes: Mapping[str, tuple[int, int, int, int]], **common: object) -> dict[str, VitSpec]:
    return {
        f"{prefix}_{name}_patch{patch}_224": VitSpec(depth=depth, width=width, heads=heads, patch=patch, **common)  # pyright: ignore
        for name, (depth, width, heads, patch) in sizes.items()
    }


TINY, SMALL, BASE = (12, 192, 3, 16), (12, 384, 6, 16), (12, 768, 12, 16)
MEDIUM, LARGE, HUGE = (12, 512, 8, 16), (24, 1024, 16, 16), (32, 1280, 16, 14)
REGISTERS = {"pool": "avg", "registers": 4, "pooled_norm": True, "patch_positions": True, "image": 256}

SPECS: dict[str, VitSpec] = {
    "vit": VitSpec(patch=0, pool="avg", position="sincos"),
    **_sizes("vit", {"tiny": TINY, "small": SMALL, "base": BASE, "large": LARGE, "huge": HUGE}),
    **_sizes("deit", {"tiny": TINY, "small": SMALL, "base": BASE}),
    **_sizes(
        "deit3",
        {"small": SMALL, "medium": MEDIUM, "base": BASE, "large": LARGE, "huge": HUGE},
        patch_positions=True,
        layerscale=1e-4,  # the authors' models_v2.py; timm's 1e-6 is overwritten by the weights that it loads
    ),
    # Darcet et al. 2023 (arXiv:2309.16588)
    "vit_medium_patch16_reg4_gap_256": VitSpec(depth=12, width=512, heads=8, layerscale=1e-5, **REGISTERS),  # pyright: ignore
    "vit_base_patch16_reg4_gap_256": VitSpec(depth=12, width=768, heads=12, **REGISTERS),  # pyright: ignore
}


def build(spec: VitSpec, wish: Wish) -> Vit:
    """A vision transformer of the given size, for images of ``wish.sides`` (the first is that of training).

    Raises:
        UserError: wishes that it has no place for, an image that the patches do not divide.
    """
    spec = spec.asked(wish)
    if spec.patch < 1:
        raise UserError(f"model.shape.patch is missing: the side of a patch of {wish.name} in pixels.")
    if spec.pool not in ("token", "avg"):
        raise UserError(f"model.transformer.pool is {spec.pool!r}; it is token or avg.")
    if spec.pool == "token" or spec.order != "pre":
        spec = dataclasses.replace(spec, pooled_norm=False)
    for side in dict.fromkeys(wish.sides):
        if side % spec.patch:
            raise UserError(does_not_fit(f"{side} x {side}", side, spec.patch))
    if wish.sides:
        spec = dataclasses.replace(spec, image=wish.sides[0])
    if spec.layerscale is not None and wish.join.name == "add" and wish.join.options.get("scale") is None:
        wish = dataclasses.replace(wish, join=JoinSpec("add", {"scale": "layerscale", "init": spec.layerscale}))
    return Vit(spec, wish)
