"""Decoding and resizing."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restrain.data import images, nvimgcodec
from restrain.errors import UserError
from tests.data.making import jpeg


@pytest.mark.parametrize("decoder", images.DECODERS)
@pytest.mark.parametrize(("mode", "format"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")])
def test_any_image_becomes_rgb(decoder, mode, format):
    data = jpeg(1, 30, 20, mode, format)
    image = images.decode(data, decoder)
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.array(Image.open(io.BytesIO(data)).convert("RGB"))).mean() < 0.1


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "I;16"])
def test_png_modes_become_rgb(mode):
    out = io.BytesIO()
    image = Image.new(mode, (5, 4)) if mode == "I;16" else Image.new("RGB", (5, 4), (200, 100, 50)).convert(mode)
    image.save(out, "PNG", **({"transparency": b"\x10\x20"} if mode == "P" else {}))
    assert images.decode(out.getvalue()).shape == (4, 5, 3)


@pytest.mark.parametrize("decoder", images.DECODERS)
@pytest.mark.parametrize("keep", [0, 4, 30, 300, -2])
def test_truncated_images_are_errors(decoder, keep):
    with pytest.raises(images.DecodeError, match="cannot be decoded"):
        images.decode(jpeg(1)[:keep], decoder)


@pytest.mark.parametrize("decoder", images.DECODERS)
def test_garbage_is_an_error(decoder):
    for data in (b"hello", images.JPEG + b"garbage" * 50):
        with pytest.raises(images.DecodeError):
            images.decode(data, decoder)


def test_resolve_decoder(monkeypatch):
    assert images.resolve_decoder()[0] == "nvimgcodec"
    assert images.resolve_decoder("torchvision")[0] == "torchvision"
    with pytest.raises(UserError, match=r"data.decode=torchvison: .* Did you mean 'torchvision'"):
        images.resolve_decoder("torchvison")

    def broken() -> str:
        raise ImportError("libsomething.so.1: cannot open shared object file")

    monkeypatch.setattr(nvimgcodec, "version", broken)
    assert images.resolve_decoder()[0] == "torchvision"
    assert images.working_decoder("nvimgcodec") == "torchvision"
    with pytest.raises(UserError, match="nvidia-nvimgcodec-cu13 is not installed here, or cannot decode"):
        images.resolve_decoder("nvimgcodec")


def test_resize_close_to_pil():
    smooth = images.resize(images.decode(jpeg(3, 40, 30)), 200, 300, exact=True)
    for size in ((64, 96), (113, 50), (333, 444)):
        exact, fast = (images.resize(smooth, *size, exact=e) for e in (True, False))
        assert exact.shape == fast.shape == (*size, 3)
        assert np.abs(exact.astype(int) - fast).mean() < 0.05
    assert images.resize(smooth, 200, 300) is smooth


def test_decoders_agree_on_photographs(photographs):
    for data in photographs[:20]:
        fast, torchvision, pil = (images.decode(data, decoder).astype(int) for decoder in images.DECODERS)
        assert np.abs(pil - torchvision).mean() < 0.1
        assert np.array_equal(fast, pil)


@pytest.mark.parametrize("save", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"optimize": True},
                                  {"restart_marker_blocks": 2}, {"keep_rgb": True}, {"quality": 30}])  # fmt: skip
@given(spot=st.tuples(*[st.floats(0, 1)] * 4))
@settings(max_examples=25, deadline=None)
def test_a_region_is_decoded_as_the_whole_is(save, spot):
    buffer = io.BytesIO()
    noise = np.random.default_rng(4).integers(0, 255, (47, 83, 3), np.uint8)
    Image.fromarray(noise).resize((83, 47)).save(buffer, "JPEG", **save)
    whole = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    height, width = 1 + int(spot[0] * 46), 1 + int(spot[1] * 82)
    box = (int(spot[2] * (47 - height)), int(spot[3] * (83 - width)), height, width)
    opened = images.opened(buffer.getvalue(), "nvimgcodec")
    assert (opened.height, opened.width) == (47, 83)
    assert np.array_equal(opened.pixels(box), images.crop(whole, box))
    assert np.array_equal(opened.pixels(), whole)


def test_loading_nvimgcodec_says_nothing():
    """It complains about GPU libraries that nothing here needs; what else goes to stderr is kept."""
    script = (
        "import os; from restrain.data import nvimgcodec; os.write(2, b'before'); print(nvimgcodec.version());"
        "print(nvimgcodec._about_gpus('libjpeg: out of memory'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "before"
    assert done.stdout.splitlines()[1] == "False"


@pytest.mark.parametrize("channels", [1, 3])
def test_mirroring(channels):
    image = np.random.default_rng(0).integers(0, 255, (9, 33, channels), np.uint8)
    for one in (image, image[1:, 2:]):
        assert np.array_equal(images.mirrored(one), one[:, ::-1])


def test_sixteen_bit_grey_keeps_its_shades():
    shades = np.array([[0, 8596], [30331, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, "PNG")
    assert np.array_equal(images.decode(buffer.getvalue())[..., 0], (shades >> 8).astype(np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(shades.astype(np.float32)).save(buffer, "TIFF")
    with pytest.raises(images.DecodeError, match="32-bit pixels"):
        images.decode(buffer.getvalue())
