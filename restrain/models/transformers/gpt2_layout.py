"""GPT-2's published files: their names of tensors, and matrices stored the other way round.

``h.0.attn.c_attn.weight`` (with or without ``transformer.`` before it) is [in, out], for x W; a linear layer's weight
is [out, in], for x W^T.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIX = "transformer."
NAMES = {
    "wte": "tok_embed",
    "wpe": "pos_embed",
    "ln_f": "norm",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"h\.(\d+)\.(.+)")
MASKS = (".attn.bias", ".attn.masked_bias")  # constants that old files carry: the causal mask and its -10,000


def is_gpt2(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are named as in GPT-2's published files."""
    return any(name.removeprefix(PREFIX) == "wte.weight" for name in tensors)


def from_gpt2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of :class:`.gpt.Gpt`, matrices transposed; a name without a place is kept as it is.

    Masks are left out, and so is ``lm_head.weight``, which is the embedding again.
    """
    found = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(PREFIX)
        if bare == "lm_head.weight" or bare.endswith(MASKS):
            continue
        module, _, kind = bare.rpartition(".")
        block = BLOCK.fullmatch(module)
        own = NAMES.get(block[2] if block else module)
        if own is None:
            found[name] = tensor
            continue
        turned = tensor.T if block and kind == "weight" and tensor.dim() == 2 else tensor
        found[f"blocks.{block[1]}.{own}.{kind}" if block else f"{own}.{kind}"] = turned
    return found
