"""timm's models through the block contract, one of each family: blocks, drop paths, and one step against timm's own.

``python benchmarks/zoo.py [--only resnet50,vit_tiny_patch16_224] [--json FILE]``. For each: our model and timm's get
the same weights (every parameter moved off its initial value, so that a branch that begins at zero counts too) and the
same images in float64; both make one step of SGD with momentum, ours with grouped BatchNorm, staged statistics and its
group the whole batch. The difference is the largest of any parameter or running statistic after the step.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass

import reporting
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restrain.errors import UserError
from restrain.models import StagedStatistics, build_model, named_joins, residual_blocks, set_group
from restrain.models.foreign.zoo import PREFIX

CLASSES = 7
ROWS = 4
RATE = 0.2
# name -> side of an image in pixels: the smallest of each family, and as few pixels as it takes.
MODELS = {
    "resnet18": 64,
    "resnet50": 64,
    "resnet50d": 64,
    "resnext50_32x4d": 64,
    "seresnet50": 64,
    "skresnet18": 64,
    "resnest14d": 64,
    "res2net50_26w_4s": 64,
    "resnetv2_50": 64,
    "tresnet_m": 64,
    "ecaresnet26t": 64,
    "legacy_seresnet18": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "efficientnet_b0": 64,
    "tf_efficientnetv2_b0": 64,
    "mixnet_s": 64,
    "mobilenetv2_050": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "hardcorenas_a": 64,
    "ghostnet_050": 64,
    "repghostnet_050": 64,
    "rexnet_100": 64,
    "lcnet_050": 64,
    "tinynet_e": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "inception_next_atto": 64,
    "convmixer_768_32": 32,
    "densenet121": 64,
    "vgg11_bn": 32,
    "inception_v3": 96,
    "inception_resnet_v2": 96,
    "legacy_xception": 64,
    "xception41": 64,
    "dpn48b": 64,
    "dla34": 64,
    "hrnet_w18_small": 64,
    "selecsls42": 64,
    "vovnet39a": 64,
    "cspresnet50": 64,
    "cs3darknet_s": 64,
    "darknet53": 64,
    "nf_resnet26": 64,
    "eca_nfnet_l0": 64,
    "repvgg_a0": 64,
    "hgnetv2_b0": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "deit3_small_patch16_224": 64,
    "beit_base_patch16_224": 64,
    "eva02_tiny_patch14_224": 56,
    "cait_xxs24_224": 64,
    "xcit_nano_12_p16_224": 64,
    "tnt_s_legacy_patch16_224": 64,
    "pit_ti_224": 64,
    "levit_128s": 64,
    "swin_tiny_patch4_window7_224": 112,
    "swinv2_tiny_window8_256": 128,
    "twins_svt_small": 224,
    "pvt_v2_b0": 64,
    "coat_tiny": 64,
    "convit_tiny": 224,
    "crossvit_tiny_240": 240,
    "maxvit_rmlp_pico_rw_256": 64,
    "coatnet_nano_rw_224": 64,
    "poolformer_s12": 64,
    "caformer_s18": 64,
    "mixer_s32_224": 64,
    "gmlp_s16_224": 64,
    "resmlp_12_224": 64,
    "edgenext_xx_small": 64,
    "fastvit_t8": 64,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "efficientvit_b0": 64,
    "efficientvit_m0": 224,
    "tiny_vit_5m_224": 224,
    "mobilevit_xxs": 64,
    "mobilevitv2_050": 64,
    "repvit_m0_9": 64,
    "nextvit_small": 64,
    "starnet_s1": 64,
    "visformer_tiny": 224,
    "volo_d1_224": 224,
    "gcvit_xxtiny": 224,
    "focalnet_tiny_srf": 64,
    "mvitv2_tiny": 64,
    "davit_tiny": 224,
    "nest_tiny": 224,
    "hiera_tiny_224": 224,
    "mambaout_femto": 64,
    "sequencer2d_s": 64,
    "swinv2_cr_tiny_ns_224": 224,
}


@dataclass(frozen=True)
class Row:
    """What was found of one model; ``refused`` and ``drop_path`` say why something cannot be, or nothing."""

    name: str
    side: int
    parameters: float | None = None  # millions
    blocks: int | None = None
    drop_paths: int | None = None  # of the model built with a drop rate
    step_difference: float | None = None
    notices: list[str] | None = None
    refused: str | None = None
    no_drop_path: str | None = None
    seconds: float = 0.0


def examine(name: str, side: int) -> Row:
    """Build, count and step one model."""
    start = time.perf_counter()
    mapping = {"name": PREFIX + name, "classes": CLASSES}
    try:
        ours = build_model(mapping, seed=1, sides=(side,))
    except UserError as error:
        return Row(name, side, refused=str(error), seconds=time.perf_counter() - start)
    drop_paths, no_drop_path = 0, None
    try:
        with torch.device("meta"):
            dropping = build_model(mapping | {"drop_path": {"rate": RATE}}, sides=(side,))
        drop_paths = sum(join.drops for _, join in named_joins(dropping))
    except UserError as error:
        no_drop_path = str(error)
    difference = step_difference(ours, timms(name, side), side)
    return Row(
        name,
        side,
        round(sum(p.numel() for p in ours.parameters()) / 1e6, 2),
        len(residual_blocks(ours)),
        drop_paths,
        difference,
        list(ours.notices),  # pyright: ignore[reportArgumentType, reportCallIssue]
        no_drop_path=no_drop_path,
        seconds=round(time.perf_counter() - start, 1),
    )


def timms(name: str, side: int) -> nn.Module:
    """timm's own module, its dropout off as ours is."""
    wanted = {"img_size": side, "drop_path_rate": 0.0, "drop_rate": 0.0}
    model = None
    while model is None:
        try:
            model = timm.create_model(name, num_classes=CLASSES, **wanted)
        except TypeError as error:
            refused = [key for key in wanted if f"'{key}'" in str(error)]
            if not refused:
                raise
            wanted = {key: value for key, value in wanted.items() if key not in refused}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


@torch.no_grad()
def unsettle(model: nn.Module) -> None:
    """Move every parameter and running statistic off its initial value."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)
        tensor.add_(0.02 * (noise.abs() if name.endswith("running_var") else noise))


def step_difference(ours: nn.Module, theirs: nn.Module, side: int) -> float:
    """Largest difference of any tensor of the state dict after one step of each from the same weights."""
    ours, theirs = ours.double(), theirs.double()
    unsettle(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(ROWS, 3, side, side, dtype=torch.float64, generator=generator)
    labels = torch.arange(ROWS) % CLASSES
    set_group(ours, ROWS)
    staged = StagedStatistics(ours)
    step(ours, images.contiguous(memory_format=torch.channels_last), labels)
    staged.accumulate()
    staged.commit(1)
    step(theirs, images, labels)
    found = ours.state_dict()
    return max((found[name] - tensor).abs().max().item() for name, tensor in theirs.state_dict().items())


def step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    F.cross_entropy(model.train()(images), labels).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.only.split(",") if arguments.only else list(MODELS)
    rows = []
    for name in names:
        rows.append(examine(name, MODELS.get(name, 224)))
        told = rows[-1].refused or f"difference {rows[-1].step_difference:.1e}"
        print(f"{name}: {told}", flush=True)
    header = ["model", "side", "parameters", "blocks", "drop paths", "step difference", "refused"]
    reporting.table(header, [cells(row) for row in rows])
    reporting.write(arguments.json, vars(arguments), {"models": [asdict(row) for row in rows]})


def cells(row: Row) -> list[str]:
    if row.refused:
        return [row.name, str(row.side), "-", "-", "-", "-", row.refused]
    return [
        row.name,
        str(row.side),
        f"{row.parameters} M",
        str(row.blocks),
        str(row.drop_paths),
        f"{row.step_difference:.1e}",
        "drop path" if row.no_drop_path else "",
    ]


if __name__ == "__main__":
    main()
