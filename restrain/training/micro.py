"""What ``batch.micro: auto`` becomes. No torch here, so that it can be explained at once."""

from __future__ import annotations

from restrain.data.order import allowed_micro

# Above this many pixels a group, a CPU is faster with one group a micro-batch (plain BatchNorm, and caches).
PIXELS_WORTH_SPLITTING = 262_144
# An estimate: the convolution outputs of a ResNet-50 are 22 MB an image of 224 x 224 in bf16, and about four times that
# is kept for the backward pass; half of the memory is left for the rest.
BYTES_A_PIXEL = 2048
# Of work a token counts as so many pixels (nanoGPT's CPU setting, 768 tokens a step, gains a third from a second
# thread), of memory as more: a GPT-2 of 124M keeps about 1 MB a token, a third of it logits.
PIXELS_A_TOKEN = 64
BYTES_A_TOKEN = 1 << 20
# A network that takes one step of a sequence after the other works on a row's share of a single step at a time.
PIXELS_A_STEP = 1


def auto_micro(
    batch: int, group: int, world: int, pixels: int, memory: int | None, row_bytes: int | None = None
) -> int:
    """Rows of a forward pass on each of ``world`` processes; ``memory``: bytes of the GPU, None on a CPU.

    pixels: height x width of a training image, or as much work. row_bytes: what a row is thought to keep; None: by
    its pixels.
    """
    allowed = allowed_micro(batch, group, world)
    if memory is not None:
        row = pixels * BYTES_A_PIXEL if row_bytes is None else row_bytes
        return max([m for m in allowed if m * row < memory / 2], default=allowed[0])
    if group * pixels >= PIXELS_WORTH_SPLITTING:
        return allowed[0]
    return max([m for m in allowed if m * pixels <= PIXELS_WORTH_SPLITTING], default=allowed[0])
