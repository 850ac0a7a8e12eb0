"""Image operations at given arguments: bit-equal to torchvision's and timm's on PIL images."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from restrain.data.augment import colour, erasing, geometry, operations, policies
from restrain.data.augment.base import Frame
from restrain.data.augment.operations import Step
from tests.data.making import jpeg

IMAGENET = Frame(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILL = (124, 116, 104)
TORCHVISION = {
    "Identity": [0.0],
    "ShearX": [0.09, -0.297, 0.99],
    "ShearY": [-0.09, 0.297, -0.99],
    "TranslateX": [13.7, -32.0, 101.0],
    "TranslateY": [-13.7, 32.0, -101.0],
    "Rotate": [9.0, -30.0, 135.0],
    "Brightness": [0.27, -0.9, 0.99],
    "Color": [-0.27, 0.9, -0.99],
    "Contrast": [0.27, -0.9, 0.99],
    "Sharpness": [-0.27, 0.9, -0.99],
    "Posterize": [8, 6, 2],
    "Solarize": [255.0, 178.5, 0.0],
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
}
TIMM = {  # timm's name: levels
    name: [0.0, 3.3, 7.0, 9.0, 10.0]
    for name in timm_ops._RAND_TRANSFORMS + timm_ops._RAND_INCREASING_TRANSFORMS + timm_ops._RAND_3A
}


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Noise, a ramp, and flat grey: what is there without photographs. RGB, uint8."""
    ramp = np.linspace(0, 255, 97 * 61 * 3).reshape(61, 97, 3).astype(np.uint8)
    noise = np.asarray(Image.open(io.BytesIO(jpeg(3, 50, 40))))
    return [noise, ramp, np.full((30, 30, 3), 77, np.uint8)]


@pytest.fixture
def photos(photographs) -> list[np.ndarray]:
    return [np.array(Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224))) for data in photographs[:12]]


def largest(ours: np.ndarray, theirs: Image.Image) -> int:
    theirs = np.asarray(theirs)
    return int(np.abs(ours.astype(int) - theirs.reshape(ours.shape).astype(int)).max())


def torchvision_difference(images: list[np.ndarray], name: str) -> int:
    found = []
    for magnitude in TORCHVISION[name]:
        step = policies.tabled(name, magnitude)
        for image in images:
            theirs = _apply_op(operations.to_pil(image), name, magnitude, InterpolationMode.NEAREST, None)
            found.append(largest(operations.run(image, [step], (0,) * image.shape[2]), theirs))
    return max(found)


def timm_difference(images: list[np.ndarray], name: str) -> int:
    found = []
    plain = name.removesuffix("Increasing")
    for level in TIMM[name]:
        for sign in (1, -1) if name in policies.LEVELS else (1,):
            argument = policies.LEVELS[name](level, sign) if name in policies.LEVELS else 0.0
            for kernel in ("bilinear", "bicubic") if plain in operations.MOVING else ("nearest",):
                settings = {"resample": operations.KERNELS[kernel], "fillcolor": FILL}
                for image in images:
                    if plain == "Posterize" and argument < 1:  # which PIL made black once, and now refuses
                        assert not operations.run(image, [Step(plain, argument)], FILL).any()
                        continue
                    arguments = (argument,) if name in policies.LEVELS else ()
                    theirs = timm_ops.NAME_TO_OP[name](operations.to_pil(image), *arguments, **settings)
                    found.append(largest(operations.run(image, [Step(plain, argument, kernel)], FILL), theirs))
    return max(found)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions(name, pictures):
    assert torchvision_difference(pictures, name) == 0
    grey = [picture[..., :1] for picture in pictures]
    assert torchvision_difference(grey, name) == 0


@pytest.mark.parametrize("name", TIMM)
def test_timms(name, pictures):
    assert timm_difference(pictures, name) == 0


def test_on_photographs(photos):
    assert {torchvision_difference(photos, name) for name in TORCHVISION} == {0}
    assert {timm_difference(photos[:2], name) for name in TIMM} == {0}


@pytest.mark.parametrize("name", policies.LEVELS)
def test_arguments_of_levels_are_timms(name, monkeypatch):
    for sign in (1, -1):
        monkeypatch.setattr(random, "random", lambda sign=sign: 0.9 if sign < 0 else 0.1)  # timm negates above 1/2
        for level in np.linspace(0, 15, 61):
            (theirs,) = timm_ops.LEVEL_TO_ARG[name](float(level), {})
            assert policies.LEVELS[name](float(level), sign) == theirs


@pytest.mark.parametrize(("height", "width"), [(8, 8), (224, 224), (200, 331), (160, 97)])
def test_magnitudes_are_torchvisions(height, width):
    tables = {
        (31, False): transforms.RandAugment()._augmentation_space(31, (height, width)),
        (31, True): transforms.TrivialAugmentWide()._augmentation_space(31),
        (10, False): transforms.AutoAugment()._augmentation_space(10, (height, width)),
    }
    for (bins, wide), theirs in tables.items():
        ours = policies.magnitudes(bins, height, width, wide)
        assert set(ours) == {name for name, (values, _) in theirs.items() if values.ndim}
        for name, values in ours.items():
            np.testing.assert_allclose(values, theirs[name][0].numpy(), rtol=3e-7, atol=1e-30, err_msg=name)
            if name.startswith("Translate"):
                assert values.astype(int).tolist() == theirs[name][0].int().tolist()
        signed = {name for name, (_, sign) in theirs.items() if sign}
        assert signed == set(ours) - set(policies.UNSIGNED)


def jitter_difference(images: list[np.ndarray]) -> int:
    jitter, found = colour.ColorJitter(0.4, 0.4, 0.4, 0.5), []
    ops = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for key, image in enumerate(images * 3):
        order, factors = jitter.params(key, *image.shape[:2])
        theirs = Image.fromarray(image)
        for which in order:
            theirs = ops[which](theirs, factors[which])
        found.append(largest(jitter.apply(image, (order, factors)), theirs))
    return max(found)


def test_color_jitter_is_torchvisions(pictures):
    assert jitter_difference(pictures) == 0


def test_color_jitter_is_torchvisions_on_photographs(photos):
    assert jitter_difference(photos) == 0


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.001, 0.3, 0.5])
def test_hue(turn, pictures):
    for picture in pictures:
        image = Image.fromarray(picture)
        assert np.array_equal(np.asarray(colour.turn_hue(image, turn)), np.asarray(F.adjust_hue(image, turn)))


def test_three_augment_is_timms(pictures):
    """Its three, as timm's `3a` calls them: solarize at 5, desaturate at 10, blur."""
    for picture in pictures:
        image = Image.fromarray(picture)
        theirs = {
            "Solarize": timm_ops.solarize(image, 128),
            "Desaturate": transforms.Grayscale(3)(image),
            "GaussianBlur": timm_ops.gaussian_blur(image, 1.3),
        }
        for key in range(20):
            (step,) = policies.ThreeAugment().params(key, 9, 9)
            argument = 1.3 if step.name == "GaussianBlur" else step.argument
            ours = operations.run(picture, [Step(step.name, argument)], FILL)
            assert np.array_equal(ours, np.asarray(theirs[step.name])), step


def test_lighting_is_alexnets(pictures):
    """Against the formula in floats: rounded to grey levels, cut at black and white."""
    shares = np.array([0.1, -0.25, 0.3])
    value, vector = np.array([0.2175, 0.0188, 0.0045]), colour.Lighting.COMPONENTS
    assert np.allclose(vector.T @ vector, np.eye(3), atol=1e-3)
    for picture in pictures:
        exact = picture / 255 + sum(shares[i] * value[i] * vector[:, i] for i in range(3))
        ours = colour.Lighting().apply(picture, tuple(shares)) / 255
        assert np.abs(ours - exact.clip(0, 1)).max() <= 0.5 / 255 + 1e-9


def test_erasing_equals_torchvisions_after_normalisation(pictures):
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET.mean, IMAGENET.std))
    erase = erasing.RandomErasing(IMAGENET, 1.0, (0.02, 1 / 3), (0.3, 10 / 3))
    for key, picture in enumerate(pictures):
        box = erase.params(key, *picture.shape[:2])[:4]
        theirs = F.erase(((F.to_tensor(picture.copy())) - mean) / std, *box, torch.zeros(3, 1, 1))
        ours = (F.to_tensor(erase.apply(picture, (*box, 0)).copy()) - mean) / std
        assert (ours - theirs).abs().max() <= 0.5 / 255 / 0.224 + 1e-6


def test_erasing_with_noise():
    erase = erasing.RandomErasing(IMAGENET, 1.0, (0.02, 1 / 3), (0.3, 10 / 3), "noise")
    image = np.zeros((160, 160, 3), np.uint8)
    out = erase.apply(image, (20, 30, 100, 110, 77))
    assert not out[:20].any()
    assert np.array_equal(image, np.zeros_like(image))
    noise = (out[20:120, 30:140] / 255 - IMAGENET.mean) / IMAGENET.std
    reference = np.random.Generator(np.random.PCG64(0)).standard_normal(noise.shape)
    low, high = (0 - np.array(IMAGENET.mean)) / IMAGENET.std, (1 - np.array(IMAGENET.mean)) / IMAGENET.std
    cut = np.clip(reference, low, high)
    assert noise.mean((0, 1)) == pytest.approx(cut.mean((0, 1)), abs=0.04)
    assert noise.std((0, 1)) == pytest.approx(cut.std((0, 1)), abs=0.03)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.04
    assert np.array_equal(erase.apply(image, (20, 30, 100, 110, 77)), out)
    assert not np.array_equal(erase.apply(image, (20, 30, 100, 110, 78)), out)


def test_bicubic_crop_is_near_pils(photos):
    crop = geometry.RandomResizedCrop(96, interpolation="bicubic")
    differences = []
    for key, photo in enumerate(photos):
        top, left, h, w = crop.params(key, 224, 224)
        theirs = F.resized_crop(Image.fromarray(photo), top, left, h, w, [96, 96], InterpolationMode.BICUBIC)
        differences.append(np.abs(crop.apply(photo, (top, left, h, w)).astype(int) - np.asarray(theirs)))
    assert np.max(differences) <= 1
    assert np.mean(differences) < 0.05


def test_an_image_is_never_written_to(pictures):
    """The arrays of the digits are shared by all epochs."""
    for picture in pictures:
        frozen = picture.copy()
        frozen.setflags(write=False)
        for op in (
            policies.RandAugment(ops=4),
            policies.TrivialAugment(),
            policies.AutoAugment("cifar10"),
            policies.ThreeAugment(),
            colour.ColorJitter(0.3, 0.3, 0.3, 0.1),
            colour.Lighting(),
            erasing.RandomErasing(IMAGENET, 1.0, (0.1, 0.3), (0.3, 3.3)),
        ):
            for key in range(5):
                out = op.apply(frozen, op.params(key, *frozen.shape[:2]))
                assert out.shape == picture.shape
                assert out.dtype == np.uint8
