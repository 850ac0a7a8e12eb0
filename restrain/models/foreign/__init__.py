"""Networks whose code is not ours, timm's or a person's own, under the contract of the blocks."""
