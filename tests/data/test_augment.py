"""Augmentations: torchvision's distributions, from keys."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms

from restrain import draws
from restrain.data import augment, images
from restrain.errors import UserError
from tests.data.making import CROP, jpeg, op

KEYS = [draws.key(7, 4, n) for n in range(3000)]


def pixels(n=1, h=9, w=9, c=1):
    return np.random.Generator(np.random.PCG64(5)).integers(1, 256, (n, h, w, c), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(100, 150), (300, 40), (20, 400)])
def test_random_resized_crop_has_torchvisions_distribution(height, width):
    crop = augment.RandomResizedCrop(10)
    ours = np.array([crop.params(key, height, width) for key in KEYS])
    image, theirs = torch.empty(3, height, width), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in KEYS:
            theirs.append(transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]))
    for mine, reference in zip(ours.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(mine, reference).pvalue > 1e-3
    top, left, h, w = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_random_resized_crop_falls_back_to_the_centre():
    for height, width in ((1000, 10), (10, 1000)):
        params = augment.RandomResizedCrop(5, scale=(1.0, 1.0)).params(1, height, width)
        with torch.random.fork_rng():
            theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        assert params == theirs


def test_resized_crop_of_photographs_is_torchvisions(photographs):
    """Never more than one grey level from PIL's, 0.02 on average."""
    crop, differences = augment.RandomResizedCrop(224), []
    for key, data in zip(KEYS, photographs[:30], strict=False):
        image = images.decode(data)
        params = crop.params(key, *image.shape[:2])
        theirs = transforms.functional.resized_crop(Image.fromarray(image), *params, [224, 224])
        differences.append(np.abs(crop.apply(image, params).astype(int) - np.asarray(theirs)))
    assert np.max(differences) <= 1
    assert np.mean(differences) < 0.05


def test_evaluation_is_bit_equal_to_torchvisions_on_pil(photographs):
    pipeline = augment.eval_pipeline(224, 256)
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    out = np.empty(pipeline.shape, np.uint8)
    for data in photographs[:30]:
        pipeline(data, 0, out)
        assert np.array_equal(out, np.asarray(reference(Image.open(io.BytesIO(data)).convert("RGB"))))


@pytest.mark.parametrize(("size", "resize"), [(224, 235), (224, 256), (160, 168)])
def test_bicubic_evaluation_is_bit_equal_to_timms(photographs, size, resize):
    from timm.data import create_transform

    pipeline = augment.eval_pipeline(size, resize, kernel="bicubic")
    settings = {"interpolation": "bicubic", "crop_pct": size / resize, "use_prefetcher": True}
    reference = create_transform(size, is_training=False, **settings)
    out = np.empty(pipeline.shape, np.uint8)
    for data in photographs[:15]:
        pipeline(data, 0, out)
        theirs = reference(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(out, np.asarray(theirs).transpose(1, 2, 0))


def test_scale_augmentation_has_the_papers_distribution():
    """A side uniform over 256 to 480, and torchvision's random crop of 224 in it (He et al. 2015, section 3.4)."""
    scale, crop = augment.RandomShortSide((256, 480)), augment.RandomCrop(224)
    sizes = np.array([scale.params(key, 300, 500) for key in KEYS])
    sides = sizes.min(1)
    assert (sides.min(), sides.max()) == (256, 480)
    assert stats.chisquare(np.bincount(sides - 256, minlength=225).reshape(25, 9).sum(1)).pvalue > 1e-3
    assert (sizes[:, 1] == (sides * 500) // 300).all()
    ours = np.array([crop.params(key, *size) for key, size in zip(KEYS, sizes.tolist(), strict=True)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [transforms.RandomCrop.get_params(torch.empty(3, *size), (224, 224))[:2] for size in sizes.tolist()]
    for mine, reference in zip(ours.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(mine, reference).pvalue > 1e-3
    assert (ours >= 0).all()
    assert (ours + 224 <= sizes).all()


def test_scale_augmentation_of_photographs_is_torchvisions(photographs):
    scale, crop = augment.RandomShortSide(), augment.RandomCrop(224)
    for key, data in zip(KEYS, photographs[:20], strict=False):
        image = images.decode(data)
        height, width = scale.params(key, *image.shape[:2])
        resized = scale.apply(image, (height, width))
        theirs = transforms.functional.resize(Image.fromarray(image), [min(height, width)])
        assert resized.shape[:2] == (height, width) == theirs.size[::-1]
        assert np.abs(resized.astype(int) - np.asarray(theirs)).max() <= 1
        top, left = crop.params(key, height, width)
        assert np.array_equal(crop.apply(resized, (top, left)), resized[top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [(7, 9), (12, 5), (4, 4), (11, 12)])
def test_centre_crop_equals_torchvisions(size):
    image = pixels(1, *size, 3)[0]
    crop = augment.CentreCrop(8)
    theirs = transforms.CenterCrop(8)(Image.fromarray(image))
    assert np.array_equal(crop.apply(image, crop.params(0, *size)), np.asarray(theirs))


def test_pad_crop_and_shift_reach_every_place_equally():
    crop = augment.PadCrop(2)
    counts = np.zeros((5, 5))
    for key in KEYS:
        top, left = crop.params(key, 9, 9)
        counts[top, left] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    image = pixels()[0]
    assert np.array_equal(crop.apply(image, (2, 2)), image)
    assert np.array_equal(crop.apply(image, (0, 1))[2:, 1:], image[:-2, :-1])
    assert not crop.apply(image, (0, 1))[:2].any()


def test_flip():
    flip = augment.Flip(0.3)
    assert np.mean([flip.params(key, 9, 9)[0] for key in KEYS]) == pytest.approx(0.3, abs=0.03)
    image = pixels()[0]
    assert np.array_equal(flip.apply(image, (True,)), np.fliplr(image))
    assert flip.apply(image, (False,)) is image


@pytest.mark.parametrize("ops", [[], ["shift"], ["flip"], ["pad_crop", "flip"]])
def test_many_at_once_equals_one_by_one(ops):
    sections = {"shift": op("shift", pixels=1), "flip": op("flip", p=0.5), "pad_crop": op("pad_crop", padding=3)}
    pipeline = augment.train_pipeline([sections[name] for name in ops], 9, channels=2)
    stored, keys = pixels(50, c=2), np.array(KEYS[:50], np.uint64)
    assert pipeline.batched
    together, single = np.empty_like(stored), np.empty_like(stored)
    pipeline.batch(stored, keys, together)
    for n in range(50):
        pipeline(stored[n], KEYS[n], single[n])
    assert np.array_equal(together, single)


def test_each_operation_has_its_own_key():
    """Two equal operations in a row do not draw the same."""
    pipeline = augment.train_pipeline([op("flip", p=0.5), op("flip", p=0.5)], 9, channels=1)
    stored = pixels(200)
    out = np.empty_like(stored)
    pipeline.batch(stored, np.array(KEYS[:200], np.uint64), out)
    assert 0.3 < np.mean([np.array_equal(a, b) for a, b in zip(stored, out, strict=True)]) < 0.7


def test_golden_draws():
    """Frozen: other values are another run. The key is that of seed 0, epoch 1, position 2, operation 0."""
    key = draws.key(0, draws.Purpose.AUGMENT, 1, 2, 0, 0)
    assert augment.RandomResizedCrop(224).params(key, 375, 500) == (88, 184, 262, 248)
    assert augment.PadCrop(4).params(key, 32, 32) == (1, 1)
    assert [augment.Flip().params(draws.extend_key(key, n), 8, 8)[0] for n in range(8)] == [
        n % 4 == 0 for n in range(8)
    ]


def test_sizes_that_differ_are_one_clear_error():
    pipeline = augment.train_pipeline([op("pad_crop", padding=2)], 16)
    with pytest.raises(UserError, match=r"An image is 20 x 16 pixels .* resolution is 16: .*random_resized_crop"):
        pipeline(jpeg(0), 0, np.empty(pipeline.shape, np.uint8))
    with pytest.raises(UserError, match=r"1 channel\(s\), but model.in_chans=3"):
        augment.train_pipeline([], 9).batch(pixels(), np.zeros(1, np.uint64), np.empty((1, 9, 9, 3), np.uint8))


def test_pipelines_are_built_from_sections():
    pipeline = augment.train_pipeline([*CROP, op("resize", size=9), op("centre_crop", size=8)], 8)
    out = np.empty(pipeline.shape, np.uint8)
    pipeline(jpeg(1), KEYS[0], out)
    assert not pipeline.batched
    assert pipeline.at(4).shape == (4, 4, 3)
    with pytest.raises(UserError, match=r"unknown operation 'flop'. Did you mean 'flip'"):
        augment.train_pipeline([op("flop")], 8)


def test_every_operation_of_the_schema_can_be_built_and_run():
    """On the digits' grey as well, where the schema's checks let it."""
    from typing import get_args

    from restrain.data.augment.pipeline import BUILDERS
    from restrain.recipe.schema_data import Augmentation

    kinds = get_args(get_args(Augmentation)[0])
    assert {get_args(kind.model_fields["name"].annotation)[0] for kind in kinds} == set(BUILDERS)
    more = {
        "resize": {"size": 9},
        "random_short_side": {"sizes": (9, 9)},
        "random_crop": {"size": 9},
        "centre_crop": {"size": 9},
        "color_jitter": {"brightness": 0.4},
    }
    for kind in kinds:
        (name,) = get_args(kind.model_fields["name"].annotation)
        section = kind(name=name, **more.get(name, {}))
        for channels in (1, 3):
            if name in ("lighting",) and channels == 1:
                continue
            pipeline = augment.train_pipeline([section], 9, channels=channels, mean=(0.4,) * channels)
            out = np.empty(pipeline.shape, np.uint8)
            for key in KEYS[:20]:
                pipeline(pixels(c=channels)[0], key, out)
