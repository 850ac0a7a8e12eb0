"""Shards cut at every border and odd images, through the command line; what is no fault must work."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.harness import Place, folder_set, members, shard

CUT = "The shard is cut short or damaged: restore it from its origin."


@pytest.mark.parametrize("indexed", [False, True])
def test_a_shard_cut_at_every_border(place: Place, indexed: bool) -> None:
    """As ``restrain data index`` and ``train`` see it: one paragraph that names the file, and never a shorter set."""
    from restrain.data.indexing import index_shards
    from restrain.errors import WorldError

    path = shard(place, members(3))
    whole = path.read_bytes()
    end = max(n for n in range(0, len(whole), 512) if any(whole[n : n + 512])) + 512 + 1024  # with the end's mark
    assert end > 10 * 512
    for size in range(0, end, 512):
        path.write_bytes(whole)
        for made in path.parent.glob("restrain-index*"):
            made.unlink()
        if indexed:
            index_shards(path.parent, [path.name])
        os.truncate(path, size)
        with pytest.raises(WorldError) as caught:
            index_shards(path.parent, [path.name])
        told = str(caught.value)
        assert "\n" not in told
        assert str(path) in told
        expected = f"has {size} bytes, its index says {len(whole)}" if indexed else CUT if size else "is empty"
        assert expected in told
    for size in (512, end - 512):  # and two of them end to end
        path.write_bytes(whole[:size])
        for made in path.parent.glob("restrain-index*"):
            made.unlink()
        outcome = place.shards()
        assert outcome.codes == [1]
        assert CUT in outcome.errors[0]
        assert not (place.folder / "run").exists()


def encoded(mode: str, format: str = "PNG", size: tuple[int, int] = (20, 20)) -> bytes:
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    out, extra = io.BytesIO(), {}
    if mode == "P with transparency":
        image, extra = image.convert("P"), {"transparency": 3}
    elif mode == "16 bit":
        image = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[1], size[0]) * 100)
    else:
        image = image.convert(mode)
    image.save(out, format, **extra)
    return out.getvalue()


def test_odd_images_are_no_fault(place: Place) -> None:
    """Grey, palette, alpha, CMYK, 16 bits, one pixel, a line, another format than the name says: all become RGB."""
    train: Path = folder_set(place, count=1)
    for number, mode in enumerate(("L", "1", "LA", "P", "P with transparency", "RGBA", "16 bit")):
        (train / "cat" / f"m{number}.png").write_bytes(encoded(mode))
    (train / "dog" / "cmyk.jpg").write_bytes(encoded("CMYK", "JPEG"))
    (train / "dog" / "grey.JPEG").write_bytes(encoded("L", "JPEG"))
    (train / "dog" / "really-a.gif.png").write_bytes(encoded("P", "GIF"))
    (train / "dog" / "pixel.png").write_bytes(encoded("RGB", size=(1, 1)))
    (train / "dog" / "line.png").write_bytes(encoded("RGB", size=(300, 1)))
    (train / "dog" / "größe 1;\n.png").write_bytes(encoded("RGB"))
    outcome = place.pictures("length=6st")
    assert outcome.codes == [0], outcome.said
    assert not (place.folder / "run" / "bad_samples.jsonl").exists()


def test_odd_shards_are_no_fault(place: Place) -> None:
    """Sub-folders, labels with spaces and line ends, ``cls`` in a JSON, files that nobody asked for."""
    names = dict(members(12))
    found = [("a/b/" + name, b" %s\n" % data if name.endswith("cls") else data) for name, data in names.items()]
    found += [("c/s000.json", b'{"cls": 1, "label": 0}'), ("c/s000.jpg", names["s000.jpg"]), ("c/s000.txt", b"\xff")]
    shard(place, found)
    outcome = place.shards("length=6st")
    assert outcome.codes == [0], outcome.said
    assert not (place.folder / "run" / "bad_samples.jsonl").exists()
