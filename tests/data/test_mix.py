"""Mixup and cutmix inside a group."""

import numpy as np
import pytest
import torch
from scipy import stats

from restrain.data import mix
from restrain.data.mix import Mix, MixDraw


def random_images(b, size=12):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(b, 3, size, size, generator=generator), torch.eye(7)[torch.randint(7, (b,), generator=generator)]


def test_partners_stay_in_their_group_and_are_others():
    draw = mix.draw(Mix(1, mixup=0.2), 5, 3, 6, 4, (12, 12))
    rows = torch.arange(24)
    assert (draw.partner // 4 == rows // 4).all()
    assert (draw.partner != rows).all()
    assert sorted(draw.partner.tolist()) == list(range(24))


@pytest.mark.parametrize("which", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_micro_batches_mix_as_the_whole(which):
    """Groups drawn together or apart: the same images and targets."""
    images, targets = random_images(24)
    whole = mix.apply(images, targets, mix.draw(Mix(9, **which), 3, 10, 6, 4, (12, 12)))
    for g in range(6):
        part = slice(4 * g, 4 * g + 4)
        alone = mix.apply(images[part], targets[part], mix.draw(Mix(9, **which), 3, 10 + g, 1, 4, (12, 12)))
        assert torch.equal(alone[0], whole[0][part])
        assert torch.equal(alone[1], whole[1][part])


def test_mixup_is_the_papers():
    images, targets = random_images(8)
    draw = mix.draw(Mix(2, mixup=0.5), 0, 0, 2, 4, (12, 12))
    assert draw.blends
    assert not draw.boxes
    mixed, soft = mix.apply(images, targets, draw)
    for i in range(8):
        share, j = float(draw.own[i]), int(draw.partner[i])
        assert torch.allclose(mixed[i], share * images[i] + (1 - share) * images[j], atol=1e-6)
        assert torch.allclose(soft[i], share * targets[i] + (1 - share) * targets[j], atol=1e-6)


def test_cutmix_pastes_a_box_of_the_labels_share():
    images, targets = random_images(40)
    draw = mix.draw(Mix(2, cutmix=1.0), 0, 0, 10, 4, (12, 12))
    assert draw.boxes
    assert not draw.blends
    mixed, soft = mix.apply(images, targets, draw)
    for i in range(40):
        j = int(draw.partner[i])
        theirs = (mixed[i] == images[j]).all(0)
        assert ((mixed[i] == images[i]).all(0) | theirs).all()
        assert 1 - theirs.float().mean() == pytest.approx(float(draw.own[i]))
        top, left, bottom, right = draw.box[i].tolist()
        assert theirs[top:bottom, left:right].all()
        assert torch.allclose(soft[i], draw.own[i] * targets[i] + (1 - draw.own[i]) * targets[j])
    assert torch.allclose(soft.sum(1), torch.ones(40))


def test_coefficients_are_beta_distributed():
    shares = [float(mix.draw(Mix(3, mixup=0.4), step, 0, 1, 2, (8, 8)).own[0]) for step in range(1500)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_both_take_turns():
    cut = [mix.draw(Mix(3, mixup=0.4, cutmix=1.0), step, 0, 1, 2, (8, 8)).boxes for step in range(400)]
    assert np.mean(cut) == pytest.approx(0.5, abs=0.1)


def test_off():
    assert not Mix(0).active(0)
    assert [Mix(0, mixup=1.0, off=5).active(step) for step in (4, 5)] == [True, False]


def test_gradient_free_of_the_input():
    images, targets = random_images(4)
    before = images.clone()
    draw = mix.draw(Mix(2, mixup=0.5, cutmix=1.0), 1, 0, 1, 4, (12, 12))
    assert isinstance(draw.to("cpu"), MixDraw)
    mix.apply(images, targets, draw)
    assert torch.equal(images, before)
