"""The sources of the transformers' recipes; typed from where they were published."""

import pytest

from .sources import Row

BIG_VISION = "google-research/big_vision configs/vit_s16_i1k.py"
DEIT = "facebookresearch/deit main.py, defaults of 2021"
DEIT_PAGE = "facebookresearch/deit README_deit.md"
REVENGE = "facebookresearch/deit README_revenge.md, the published commands"
NANOGPT = "karpathy/nanoGPT config/train_gpt2.py, and train.py's defaults"
GPT3 = "Brown et al. 2020, arXiv:2005.14165, table 2.1 and appendix B"
SMALL_SETS = "aanna0701/SPT_LSA_ViT main.py and models/create_model.py, defaults"

_DEIT: list[Row] = [
    ("model.drop_path.rate", 0.1, DEIT),
    ("batch.global", 1024, DEIT_PAGE),
    ("length", "300ep", DEIT),
    ("data.repeats", 3, DEIT),
    ("optimizer.name", "adamw", DEIT),
    ("optimizer.lr", 5e-4, DEIT),
    ("optimizer.lr_per", 512, DEIT),
    ("optimizer.lr_rule", "linear", DEIT),
    ("optimizer.weight_decay", 0.05, DEIT),
    ("optimizer.betas", [0.9, 0.999], DEIT),
    ("optimizer.eps", 1e-8, DEIT),
    ("schedule.name", "cosine", DEIT),
    ("schedule.warmup", "5ep", DEIT),
    ("schedule.warmup_from", 1e-6 / 1e-3, DEIT),  # of the rate at a batch of 1024
    ("schedule.final", 1e-5 / 1e-3, DEIT),
    ("mix.mixup", 0.8, DEIT),
    ("mix.cutmix", 1.0, DEIT),
    ("loss.smoothing", 0.1, DEIT),
    ("resolution.train", 224, DEIT),
    ("resolution.eval_resize", int(256 / 224 * 224), "facebookresearch/deit datasets.py"),
]

_DEIT3: list[Row] = [
    ("batch.global", 2048, REVENGE),
    ("batch.group", 256, REVENGE),
    ("length", "800ep", REVENGE),
    ("data.repeats", 3, REVENGE),
    ("model.drop_path.decay", "constant", "facebookresearch/deit models_v2.py"),
    ("optimizer.name", "lamb", REVENGE),
    ("optimizer.lr_rule", "none", REVENGE),
    ("optimizer.weight_decay", 0.05, REVENGE),
    ("schedule.name", "cosine", REVENGE),
    ("schedule.warmup", "5ep", REVENGE),
    ("mix.mixup", 0.8, REVENGE),
    ("mix.cutmix", 1.0, REVENGE),
    ("loss.name", "bce", REVENGE),
    ("loss.smoothing", 0.0, REVENGE),
    ("loss.threshold", 0.0, "facebookresearch/deit engine.py"),
    ("resolution.eval", 224, REVENGE),
]

SOURCES: dict[str, list[Row]] = {
    "imagenet_vit_s16": [
        ("batch.global", 1024, BIG_VISION),
        ("length", "90ep", BIG_VISION),
        ("optimizer.lr", 1e-3, BIG_VISION),
        ("optimizer.weight_decay", 1e-4 / 1e-3, BIG_VISION),  # theirs is not multiplied by the learning rate
        ("schedule.name", "cosine", BIG_VISION),
        ("schedule.warmup", "10000st", BIG_VISION),
        ("clip", 1.0, BIG_VISION),
        ("mix.mixup", 0.2, BIG_VISION),
        ("mix.cutmix", 0.0, BIG_VISION),
        ("model.transformer.position", "sincos", BIG_VISION),
        ("model.transformer.pool", "avg", BIG_VISION),
        ("resolution.train", 224, BIG_VISION),
        ("resolution.eval_resize", 256, BIG_VISION),
        ("expect.value", 76.5, BIG_VISION),
    ],
    "imagenet_deit_s": [*_DEIT, ("batch.group", 256, DEIT_PAGE), ("expect.value", 79.9, DEIT_PAGE)],
    "imagenet_deit_b": [*_DEIT, ("batch.group", 64, DEIT_PAGE), ("expect.value", 81.8, DEIT_PAGE)],
    "imagenet_deit3_s": [
        *_DEIT3,
        ("model.drop_path.rate", 0.05, REVENGE),
        ("optimizer.lr", 4e-3, REVENGE),
        ("schedule.warmup_from", 1e-6 / 4e-3, REVENGE),
        ("schedule.final", 1e-5 / 4e-3, DEIT),
        ("resolution.train", 224, REVENGE),
        ("expect.value", 81.4, REVENGE),
    ],
    "imagenet_deit3_b": [
        *_DEIT3,
        ("model.drop_path.rate", 0.2, REVENGE),
        ("optimizer.lr", 3e-3, REVENGE),
        ("schedule.warmup_from", 1e-6 / 3e-3, REVENGE),
        ("schedule.final", 1e-5 / 3e-3, DEIT),
        ("resolution.train", 192, REVENGE),
    ],
    "imagenet_deit3_b_224": [
        ("model.drop_path.rate", 0.2, REVENGE),
        ("batch.global", 512, REVENGE),
        ("length", "20ep", REVENGE),
        ("data.repeats", 1, REVENGE),
        ("optimizer.name", "adamw", REVENGE),
        ("optimizer.lr", 1e-5, REVENGE),
        ("optimizer.lr_rule", "none", REVENGE),
        ("optimizer.weight_decay", 0.1, REVENGE),
        ("schedule.warmup", "5ep", REVENGE),
        ("schedule.warmup_from", 1e-6 / 1e-5, REVENGE),
        ("loss.smoothing", 0.1, REVENGE),
        ("resolution.train", 224, REVENGE),
        ("expect.value", 83.8, REVENGE),
    ],
    "gpt2_124m": [
        ("model.name", "gpt2", NANOGPT),
        ("model.transformer.bias", False, NANOGPT),
        ("data.context", 1024, NANOGPT),
        ("batch.global", 12 * 5 * 8, NANOGPT),
        ("length", "600000st", NANOGPT),
        ("optimizer.name", "adamw", NANOGPT),
        ("optimizer.lr", 6e-4, NANOGPT),
        ("optimizer.betas", [0.9, 0.95], NANOGPT),
        ("optimizer.weight_decay", 0.1, NANOGPT),
        ("optimizer.no_decay", "norm_and_bias", NANOGPT),
        ("schedule.name", "cosine", NANOGPT),
        ("schedule.warmup", "2000st", NANOGPT),
        ("schedule.final", 6e-5 / 6e-4, NANOGPT),
        ("clip", 1.0, NANOGPT),
        ("evaluate.every", "1000st", NANOGPT),
        ("expect.value", 2.85, NANOGPT),
    ],
    "gpt3_175b": [
        ("model.name", "gpt3_175b", GPT3),
        ("data.context", 2048, GPT3),
        ("batch.global", pytest.approx(3.2e6 / 2048, rel=0.03), GPT3),
        ("length", f"{round(300e9 / (1600 * 2048))}st", GPT3),
        ("optimizer.name", "adamw", GPT3),
        ("optimizer.lr", 0.6e-4, GPT3),
        ("optimizer.betas", [0.9, 0.95], GPT3),
        ("optimizer.eps", 1e-8, GPT3),
        ("optimizer.weight_decay", 0.1, GPT3),
        ("schedule.name", "cosine", GPT3),
        ("schedule.warmup", f"{round(375e6 / (1600 * 2048))}st", GPT3),
        ("schedule.final", 0.1, GPT3),
        ("clip", 1.0, GPT3),
    ],
    "cifar10_vit_tiny": [
        ("model.shape.depth", 9, SMALL_SETS),
        ("model.shape.width", 192, SMALL_SETS),
        ("model.shape.heads", 12, SMALL_SETS),
        ("model.shape.mlp", 2, SMALL_SETS),
        ("model.shape.patch", 4, SMALL_SETS),
        ("model.drop_path.rate", 0.1, SMALL_SETS),
        ("batch.global", 128, SMALL_SETS),
        ("length", "100ep", SMALL_SETS),
        ("data.repeats", 3, SMALL_SETS),
        ("optimizer.name", "adamw", SMALL_SETS),
        ("optimizer.lr", 1e-3, SMALL_SETS),
        ("optimizer.weight_decay", 0.05, SMALL_SETS),
        ("schedule.warmup", "10ep", SMALL_SETS),
        ("mix.mixup", 1.0, SMALL_SETS),
        ("mix.cutmix", 1.0, SMALL_SETS),
        ("loss.smoothing", 0.1, SMALL_SETS),
    ],
}
