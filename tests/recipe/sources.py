"""Every number of a shipped ImageNet or CIFAR recipe beside where it was published; typed from there, not from here."""

from typing import Any

import pytest

RESNET = "He et al. 2015, arXiv:1512.03385, section 3.4"
AUTHORS = "KaimingHe/deep-residual-networks README, 1-crop top-1 error"
CIFAR = "He et al. 2015, arXiv:1512.03385, section 4.2"
PREACT = "He et al. 2016, arXiv:1603.05027, appendix"
DEPTH = "yueatsprograms/Stochastic_Depth main.lua, defaults"
DENSE = "liuzhuang13/DenseNet README, opts.lua and train.lua"
V1 = "pytorch/vision references/classification/train.py, defaults"
V2 = "pytorch/vision issue 3995, the command of comment 1013906621"
RSB = "Wightman et al. 2021, arXiv:2110.00476, table 2"
TIMM = "huggingface/pytorch-image-models train.py, defaults of 2021"
FFCV = "libffcv/ffcv-imagenet rn50_configs and train_imagenet.py"
MLPERF = "mlcommons/training_results_v0.7 NVIDIA resnet config_DGXA100_multi_96x8x45.sh"
MLPERF_3K = "mlcommons/training_results_v1.0 Supermicro resnet config_DGXA100_2x8x204.sh"
MAE = "He et al. 2021, arXiv:2111.06377, table 9"

Row = tuple[str, object, str]

_V1: list[Row] = [
    ("model.zero_init", False, V1),
    ("batch.global", 256, V1),
    ("batch.group", 32, V1),
    ("length", "90ep", V1),
    ("optimizer.name", "sgd", V1),
    ("optimizer.lr", 0.1, V1),
    ("optimizer.lr_per", 256, V1),
    ("optimizer.momentum", 0.9, V1),
    ("optimizer.weight_decay", 1e-4, V1),
    ("optimizer.no_decay", "none", V1),
    ("schedule.name", "step", V1),
    ("schedule.at", ["30ep", "60ep"], V1),
    ("schedule.factor", 0.1, V1),
    ("resolution.train", 224, V1),
    ("resolution.eval", 224, V1),
    ("resolution.eval_resize", 256, V1),
]

_HE: list[Row] = [
    ("model.zero_init", False, RESNET),
    ("batch.global", 256, RESNET),
    ("length", "600000st", RESNET),
    ("optimizer.name", "sgd", RESNET),
    ("optimizer.lr", 0.1, RESNET),
    ("optimizer.momentum", 0.9, RESNET),
    ("optimizer.weight_decay", 1e-4, RESNET),
    ("optimizer.no_decay", "none", RESNET),
    ("schedule.name", "step", RESNET),
    ("schedule.factor", 0.1, RESNET),
    ("schedule.warmup", "0ep", RESNET),
    ("loss.smoothing", 0.0, RESNET),
    ("resolution.train", 224, RESNET),
    ("resolution.eval", 224, RESNET),
]

_V2: list[Row] = [
    ("model.zero_init", False, V2),
    ("batch.global", 1024, V2),
    ("batch.group", 128, V2),
    ("length", "600ep", V2),
    ("optimizer.name", "sgd", V2),
    ("optimizer.lr", 0.5, V2),
    ("optimizer.lr_per", 1024, V2),
    ("optimizer.momentum", 0.9, V2),
    ("optimizer.weight_decay", 2e-5, V2),
    ("optimizer.no_decay", "norm", V2),
    ("schedule.name", "cosine", V2),
    ("schedule.warmup", "5ep", V2),
    ("schedule.per", "epoch", V2),
    ("schedule.warmup_from", 0.01, V2),
    ("data.repeats", 4, V2),
    ("mix.mixup", 0.2, V2),
    ("mix.cutmix", 1.0, V2),
    ("loss.smoothing", 0.1, V2),
    ("resolution.train", 176, V2),
    ("resolution.eval", 224, V2),
    ("resolution.eval_resize", 232, V2),
    ("ema.every", "32st", V2),
]


def _rsb(**table: Any) -> list[Row]:
    """The rows of table 2 that differ between A1, A2 and A3, and those that do not."""
    rows: list[Row] = [(key.replace("__", "."), value, RSB) for key, value in table.items()]
    return [
        *rows,
        ("batch.global", 2048, RSB),
        ("optimizer.name", "lamb", RSB),
        ("schedule.name", "cosine", RSB),
        ("schedule.warmup", "5ep", RSB),
        ("schedule.per", "epoch", TIMM),
        ("schedule.warmup_prefix", False, TIMM),
        ("schedule.final", pytest.approx(1e-6 / table["optimizer__lr"]), TIMM),
        ("schedule.warmup_from", pytest.approx(1e-4 / table["optimizer__lr"]), TIMM),
        ("loss.name", "bce", RSB),
        ("mix.cutmix", 1.0, RSB),
        ("resolution.eval", 224, RSB),
        ("resolution.eval_resize", 224 * 100 // 95, RSB),
        ("optimizer.no_decay", "norm_and_bias", TIMM),
        ("optimizer.max_grad_norm", 1.0, TIMM),
        ("model.zero_init", True, TIMM),
        ("loss.threshold", 0.2, TIMM),
        ("loss.over_classes", "mean", TIMM),
    ]


_A1 = _rsb(
    length="600ep",
    optimizer__lr=5e-3,
    optimizer__weight_decay=0.01,
    loss__smoothing=0.1,
    model__drop_path__rate=0.05,
    data__repeats=3,
    mix__mixup=0.2,
    resolution__train=224,
)
_A2 = _rsb(
    length="300ep",
    optimizer__lr=5e-3,
    optimizer__weight_decay=0.02,
    loss__smoothing=0.0,
    model__drop_path__rate=0.05,
    data__repeats=3,
    mix__mixup=0.1,
    resolution__train=224,
)
_A3 = _rsb(
    length="100ep",
    optimizer__lr=8e-3,
    optimizer__weight_decay=0.02,
    loss__smoothing=0.0,
    model__drop_path__rate=0.0,
    data__repeats=1,
    mix__mixup=0.1,
    resolution__train=160,
)


def _ffcv(length: str, ramp: list[str]) -> list[Row]:
    return [
        ("model.blurpool", True, FFCV),
        ("model.zero_init", False, FFCV),
        ("batch.global", 8 * 512, FFCV),
        ("batch.group", 512, FFCV),
        ("length", length, FFCV),
        ("optimizer.name", "sgd", FFCV),
        ("optimizer.lr", 1.7, FFCV),
        ("optimizer.lr_per", 4096, FFCV),
        ("optimizer.momentum", 0.9, FFCV),
        ("optimizer.weight_decay", 1e-4, FFCV),
        ("optimizer.no_decay", "norm", FFCV),
        ("schedule.name", "one_cycle", FFCV),
        ("schedule.peak", "2ep", FFCV),
        ("schedule.start", 1e-4, FFCV),
        ("schedule.final", 0.0, FFCV),
        ("loss.smoothing", 0.1, FFCV),
        ("resolution.train", 192, FFCV),
        ("resolution.schedule.first", 160, FFCV),
        ("resolution.schedule.ramp", ramp, FFCV),
        ("resolution.schedule.multiple", 32, FFCV),
        ("resolution.eval", 256, FFCV),
        ("resolution.eval_resize", int(256 / (224 / 256)), FFCV),
        ("evaluate.flip", True, FFCV),
    ]


def _mlperf(source: str, batch: int, group: int, length: str, lr: float, momentum: float, decay: float, warmup: str):
    return [
        ("batch.global", batch, source),
        ("batch.group", group, source),
        ("length", length, source),
        ("optimizer.name", "lars", source),
        ("optimizer.lr", lr, source),
        ("optimizer.lr_per", batch, source),
        ("optimizer.momentum", momentum, source),
        ("optimizer.weight_decay", decay, source),
        ("optimizer.trust", 1e-3, source),
        ("optimizer.no_decay", "norm_and_bias", source),
        ("schedule.name", "poly", source),
        ("schedule.power", 2.0, source),
        ("schedule.warmup", warmup, source),
        ("loss.smoothing", 0.1, source),
        ("expect.value", 75.9, "MLPerf Training, target of image classification"),
    ]


_CIFAR: list[Row] = [
    ("model.zero_init", False, CIFAR),
    ("batch.global", 128, CIFAR),
    ("batch.group", 64, CIFAR),
    ("length", "64000st", CIFAR),
    ("optimizer.name", "sgd", CIFAR),
    ("optimizer.lr", 0.1, CIFAR),
    ("optimizer.momentum", 0.9, CIFAR),
    ("optimizer.weight_decay", 1e-4, CIFAR),
    ("schedule.name", "step", CIFAR),
    ("schedule.at", ["50%", "75%"], CIFAR),
    ("schedule.factor", 0.1, CIFAR),
]

# As the ResNets of 2015, with the warm-up in the appendix.
_PREACT: list[Row] = [(key, value, PREACT) for key, value, _ in _CIFAR] + [("schedule.warmup", "400st", PREACT)]

_DEPTH: list[Row] = [
    ("model.join.name", "add", DEPTH),
    ("model.drop_path.rate", 0.5, DEPTH),
    ("model.drop_path.decay", "linear", DEPTH),
    ("model.drop_path.mode", "batch", DEPTH),
    ("batch.global", 128, DEPTH),
    ("batch.group", 128, DEPTH),
    ("optimizer.name", "sgd", DEPTH),
    ("optimizer.lr", 0.1, DEPTH),
    ("optimizer.momentum", 0.9, DEPTH),
    ("optimizer.nesterov", True, DEPTH),
    ("optimizer.weight_decay", 1e-4, DEPTH),
    ("schedule.name", "step", DEPTH),
    ("schedule.at", ["50%", "75%"], DEPTH),
    ("schedule.factor", 0.1, DEPTH),
]

SOURCES: dict[str, list[Row]] = {
    "imagenet_resnet50": [*_V1, ("expect.value", 76.13, "torchvision ResNet50_Weights.IMAGENET1K_V1")],
    "imagenet_resnet152": [*_V1, ("expect.value", 78.312, "torchvision ResNet152_Weights.IMAGENET1K_V1")],
    "imagenet_resnet50_he2015": [*_HE, ("expect.value", 100 - 24.7, AUTHORS)],
    "imagenet_resnet152_he2015": [*_HE, ("expect.value", 100 - 23.0, AUTHORS)],
    "imagenet_resnet50_v2": [*_V2, ("expect.value", 80.858, "torchvision ResNet50_Weights.IMAGENET1K_V2")],
    "imagenet_resnet152_v2": [*_V2, ("expect.value", 82.284, "torchvision ResNet152_Weights.IMAGENET1K_V2")],
    "imagenet_resnet50_rsb_a1": [*_A1, ("expect.value", 80.4, "arXiv:2110.00476, table 1")],
    "imagenet_resnet50_rsb_a2": [*_A2, ("expect.value", 79.8, "arXiv:2110.00476, table 1")],
    "imagenet_resnet50_rsb_a3": [*_A3, ("expect.value", 78.1, "arXiv:2110.00476, table 1")],
    "imagenet_resnet152_rsb_a1": [*_A1, ("expect.value", 81.998, "timm results-imagenet.csv")],
    "imagenet_resnet152_rsb_a2": [*_A2, ("expect.value", 81.764, "timm results-imagenet.csv")],
    "imagenet_resnet152_rsb_a3": [*_A3, ("expect.value", 80.548, "timm results-imagenet.csv")],
    "imagenet_resnet50_ffcv16": [*_ffcv("16ep", ["11ep", "13ep"]), ("expect.value", 73.8, "FFCV's README")],
    "imagenet_resnet50_ffcv88": [*_ffcv("88ep", ["65ep", "76ep"]), ("expect.value", 78.4, "FFCV's README")],
    "imagenet_resnet50_mlperf": _mlperf(MLPERF, 96 * 8 * 45, 45, "59ep", 21.6, 0.94, 2.5e-5, "17ep"),
    "imagenet_resnet50_mlperf_3k": _mlperf(MLPERF_3K, 2 * 8 * 204, 204, "37ep", 10.5, 0.9, 5e-5, "2ep"),
    "cifar10_resnet20": [*_CIFAR, ("expect.value", 100 - 8.75, "He et al. 2015, table 6")],
    "cifar10_resnet56": [*_CIFAR, ("expect.value", 100 - 6.97, "He et al. 2015, table 6")],
    "cifar10_resnet110": [*_CIFAR, ("expect.value", 100 - 6.43, "He et al. 2015, table 6")],
    "cifar10_preresnet110": [*_PREACT, ("expect.value", 100 - 6.37, "He et al. 2016, table 2")],
    "cifar10_preresnet164": [*_PREACT, ("expect.value", 100 - 5.46, "He et al. 2016, table 2")],
    "cifar10_preresnet1001": [*_PREACT, ("expect.value", 100 - 4.92, "KaimingHe/resnet-1k-layers README")],
    "cifar10_resnet110_sd": [
        *_DEPTH,
        ("length", "500ep", DEPTH),
        ("schedule.warmup", "0ep", DEPTH),
        ("expect.value", 100 - 5.25, "yueatsprograms/Stochastic_Depth README"),
    ],
    "cifar10_resnet1202_sd": [
        *_DEPTH,
        ("length", "300ep", "Huang et al. 2016, arXiv:1603.09382, section 4"),
        ("schedule.warmup", "10ep", "Huang et al. 2016, arXiv:1603.09382, section 4"),
        ("schedule.warmup_from", 0.1, "Huang et al. 2016, arXiv:1603.09382, section 4: 0.01"),
        ("expect.value", 100 - 4.91, "Huang et al. 2016, arXiv:1603.09382, abstract"),
    ],
    "cifar10_densenetbc100": [
        ("model.join.name", "concat", DENSE),
        ("batch.global", 64, DENSE),
        ("batch.group", 64, DENSE),
        ("length", "300ep", DENSE),
        ("optimizer.name", "sgd", DENSE),
        ("optimizer.lr", 0.1, DENSE),
        ("optimizer.momentum", 0.9, DENSE),
        ("optimizer.nesterov", True, DENSE),
        ("optimizer.weight_decay", 1e-4, DENSE),
        ("optimizer.no_decay", "none", DENSE),
        ("schedule.name", "step", DENSE),
        ("schedule.at", ["50%", "75%"], DENSE),
        ("schedule.factor", 0.1, DENSE),
        ("expect.value", 100 - 4.51, DENSE),
    ],
    "finetune": [
        ("optimizer.name", "adamw", MAE),
        ("optimizer.lr", 1e-3, MAE),
        ("optimizer.lr_per", 256, MAE),
        ("optimizer.weight_decay", 0.05, MAE),
        ("optimizer.betas", [0.9, 0.999], MAE),
        ("optimizer.layer_decay", 0.75, MAE),
        ("schedule.name", "cosine", MAE),
        ("schedule.warmup", "5%", MAE),
        ("loss.smoothing", 0.1, MAE),
        ("mix.mixup", 0.8, MAE),
        ("mix.cutmix", 1.0, MAE),
        ("model.drop_path.rate", 0.1, MAE),
    ],
}

AUGMENTATIONS: dict[str, tuple[list[dict[str, object]], str]] = {
    "imagenet_resnet50": (
        [
            {"name": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bilinear"},
            {"name": "flip", "p": 0.5},
        ],
        V1,
    ),
    "imagenet_resnet50_he2015": (
        [
            {"name": "random_short_side", "sizes": [256, 480]},
            {"name": "random_crop", "size": 224},
            {"name": "flip", "p": 0.5},
            {"name": "lighting", "std": 0.1},
        ],
        RESNET,
    ),
    "imagenet_resnet50_v2": (
        [
            {"name": "random_resized_crop", "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bilinear"},
            {"name": "flip", "p": 0.5},
            {"name": "trivial_augment"},
            {"name": "random_erasing", "p": 0.1, "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "fill": "mean"},
        ],
        V2,
    ),
    "imagenet_resnet50_rsb_a1": ([{"name": "rand_augment", "policy": "rand-m7-mstd0.5-inc1"}], RSB),
    "imagenet_resnet50_rsb_a2": ([{"name": "rand_augment", "policy": "rand-m7-mstd0.5-inc1"}], RSB),
    "imagenet_resnet50_rsb_a3": ([{"name": "rand_augment", "policy": "rand-m6-mstd0.5-inc1"}], RSB),
}
