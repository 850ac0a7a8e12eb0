"""Claim 18: residual connections are everywhere since: timm's models through the same contract."""

from __future__ import annotations

from restrain.lineage.bench import Bench, command
from restrain.lineage.charts import bars
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import without_weights
from restrain.models import residual_blocks

# One of each kind, and the year of its paper.
MODELS = {
    "inception_resnet_v2": 2016,
    "resnext50_32x4d": 2016,
    "densenet121": 2016,
    "seresnet50": 2017,
    "efficientnet_b0": 2019,
    "regnety_008": 2020,
    "vit_tiny_patch16_224": 2020,
    "deit_tiny_patch16_224": 2020,
    "swin_tiny_patch4_window7_224": 2021,
    "mixer_s16_224": 2021,
    "convmixer_768_32": 2022,
    "convnext_tiny": 2022,
}


def run(bench: Bench) -> Outcome:
    """Residual blocks of each model, found by the same function that finds those of our own."""
    numbers: dict[str, float] = {}
    for name in MODELS:
        model = without_weights(name=f"timm/{name}", classes=10)
        numbers[f"residual blocks of {name}"] = len(residual_blocks(model))
    found = list(numbers.values())
    rows = [(f"{name} ({year})", count) for (name, year), count in zip(MODELS.items(), found, strict=True)]
    numbers["models looked at"] = len(found)
    numbers["models with residual blocks"] = sum(count > 0 for count in found)
    note = "A sample of kinds chosen beforehand and no survey: AlexNet, VGG and Inception v3 do without."
    commands = (command("check", "digits_resnet20", "model.name=timm/convnext_tiny"),)
    return Outcome(numbers, bars("Residual blocks in models since", "residual blocks", rows), commands, (note,))


CLAIM = Claim(
    number=18,
    title="Everywhere since",
    text="Residual connections are in nearly every deep network since: Inception-ResNet, ResNeXt, ViT, ConvNeXt, GPT.",
    source="Szegedy et al. 2016 (arXiv:1602.07261); Dosovitskiy et al. 2020 (arXiv:2010.11929); Liu et al. 2022 "
    "(arXiv:2201.03545)",
    short="twelve of timm's models of 2016 to 2022, built without memory; their residual blocks, found by one function",
    expected="All twelve have residual blocks.",
    checks=(Check("models with residual blocks", "=", "models looked at"),),
    run=run,
    long=("restrain train imagenet_resnet50 model.name=timm/convnext_tiny",),
)
