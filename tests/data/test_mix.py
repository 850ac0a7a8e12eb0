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


def drawn_as(batch: int, partner: torch.Tensor, share: float, box: tuple[int, int, int, int] | None) -> MixDraw:
    """One group that is mixed at the given parameters; box: (top, left, bottom, right) of cutmix."""
    rows = torch.ones(batch)
    boxes = torch.tensor([box or (0, 0, 0, 0)] * batch)
    return MixDraw(partner, rows * (1.0 if box else share), rows * share, boxes, box is None, box is not None)


@pytest.mark.parametrize("cut", [False, True])
def test_arithmetic_is_timms_and_torchvisions(cut, monkeypatch):
    """At their coefficient, box and partners: timm mixes row i with the i-th last, torchvision with the one before."""
    from timm.data import mixup
    from torchvision.transforms import v2

    images, targets = random_images(8)
    labels, share, box = targets.argmax(1), 0.3, (2, 3, 9, 11) if cut else None
    if box is not None:
        top, left, bottom, right = box
        share = 1 - (bottom - top) * (right - left) / 144
        monkeypatch.setattr(mixup, "rand_bbox", lambda *_, **__: (top, bottom, left, right))
    theirs = mixup.Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=7, label_smoothing=0.0)
    assert (theirs.mix_prob, theirs.switch_prob, theirs.mode) == (1.0, 0.5, "batch")
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (share, cut))
    wanted = theirs(images.clone(), labels)
    found = mix.apply(images, targets, drawn_as(8, torch.arange(7, -1, -1), share, box))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-6

    transform = (v2.CutMix if cut else v2.MixUp)(num_classes=7)
    params = {"labels": labels, "batch_size": 8, "lam": share, "lam_adjusted": share}
    if box is not None:
        params["box"] = (left, top, right, bottom)
    found = mix.apply(images, targets, drawn_as(8, torch.arange(8).roll(1), share, box))
    for a, b in zip(found, (transform.transform(images, params), transform.transform(labels, params)), strict=True):
        assert (a - b).abs().max() <= 1e-6


def test_boxes_are_drawn_as_torchvisions():
    """timm's, which round up a box of odd sides, are a pixel larger now and then."""
    from timm.data.mixup import Mixup, cutmix_bbox_and_lam
    from torchvision.transforms import v2

    draws_ = [mix.draw(Mix(5, cutmix=1.0), step, 0, 1, 2, (24, 32)) for step in range(3000)]
    mine = np.array([d.box[0].tolist() for d in draws_])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform, batch = v2.CutMix(alpha=1.0, num_classes=2), [torch.zeros(2, 3, 24, 32)]
        theirs = np.array([transform.make_params(batch)["box"] for _ in range(3000)])[:, [1, 0, 3, 2]]
    for a, b in zip(mine.T, theirs.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    own = [float(d.own[0]) for d in draws_]
    assert own == pytest.approx((1 - (mine[:, 2] - mine[:, 0]) * (mine[:, 3] - mine[:, 1]) / 768).tolist())

    before = np.random.get_state()
    np.random.seed(0)
    mixer = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=2)
    drawn = [mixer._params_per_batch() for _ in range(3000)]
    cut = [cutmix_bbox_and_lam((2, 3, 24, 32), lam)[1] for lam, cutting in drawn if cutting]
    np.random.set_state(before)
    both = [mix.draw(Mix(6, mixup=0.2, cutmix=1.0), step, 0, 1, 2, (24, 32)) for step in range(3000)]
    assert stats.binomtest(sum(d.boxes for d in both), 3000).pvalue > 1e-3
    assert stats.binomtest(len(cut), 3000).pvalue > 1e-3
    blended = [float(d.own[0]) for d in both if d.blends]
    assert stats.ks_2samp(blended, [lam for lam, cutting in drawn if not cutting]).pvalue > 1e-3
    shares = [float(d.own[0]) for d in both if d.boxes]
    assert abs(np.mean(shares) - np.mean(cut)) < 0.04
