"""Augmentations, a module a family; see `restrain.data.augment.base` for what one is."""

from restrain.data.augment.base import Frame, Op, Params
from restrain.data.augment.colour import ColorJitter, Lighting
from restrain.data.augment.erasing import RandomErasing
from restrain.data.augment.geometry import (
    CentreCrop,
    Flip,
    PadCrop,
    RandomCrop,
    RandomResizedCrop,
    RandomShortSide,
    Resize,
)
from restrain.data.augment.pipeline import Pipeline, eval_pipeline, train_pipeline
from restrain.data.augment.policies import AutoAugment, RandAugment, ThreeAugment, TimmRandAugment, TrivialAugment

__all__ = [
    "AutoAugment",
    "CentreCrop",
    "ColorJitter",
    "Flip",
    "Frame",
    "Lighting",
    "Op",
    "PadCrop",
    "Params",
    "Pipeline",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomResizedCrop",
    "RandomShortSide",
    "Resize",
    "ThreeAugment",
    "TimmRandAugment",
    "TrivialAugment",
    "eval_pipeline",
    "train_pipeline",
]
