"""Shards read as webdataset reads them, and every cut noticed."""

import io
import tarfile
import warnings

import pytest

from restrain.data import tars
from restrain.errors import WorldError
from tests.data.making import jpeg, write_tar

LONG = "a/very/" + "long/" * 30 + "name"

ZOO = {
    "plain": [("a.jpg", b"1"), ("a.cls", b"2"), ("b.jpg", b"3" * 513), ("b.cls", b"")],
    "nested": [("x/a.jpg", b"1"), ("x/a.cls", b"2"), ("y/a.jpg", b"3"), ("./z.jpg", b"4")],
    "dotted": [("a.seg.png", b"1"), ("a.JPG", b"2"), ("v1.2/b.tar.gz", b"3"), ("v1.2/c.jpg", b"4")],
    "meta": [("__meta__", b"m"), ("a.jpg", b"1"), ("__info__/x.json", b"{}"), ("b.jpg", b"2"), ("__end__.txt", b"z")],
    "no extension": [("README", b"r"), ("a.jpg", b"1"), (".hidden", b"h"), ("a.cls", b"2")],
    "unicode": [("größe.jpg", b"1"), ("größe.cls", b"2"), ("日本.jpg", b"3")],
    "blocks": [("a.jpg", bytes(512)), ("a.cls", bytes(1024)), ("b.jpg", b"")],
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def by_webdataset(path):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    with warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")
        files = ({**one, "__url__": str(path)} for one in tar_file_iterator(file))
        return [dict(sample) for sample in group_by_keys(files)]


def by_index(path):
    data, found = path.read_bytes(), tars.scan(str(path))
    ranges = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    parsed = [tars.parse(data[a:b]) for a, b in ranges]
    return [
        {"__key__": key, "__url__": str(path), **{name: bytes(content) for name, content in fields.items()}}
        for key, fields in parsed
    ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("animal", ZOO)
def test_equal_to_webdataset(tmp_path, animal, format):
    path = write_tar(tmp_path / "x.tar", ZOO[animal], FORMATS[format])
    assert by_index(path) == by_webdataset(path)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_long_names_equal_to_webdataset(tmp_path, format):
    members = [("a.jpg", b"0"), (f"{LONG}.jpg", b"1"), (f"{LONG}.cls", b"2"), (f"{LONG}2.jpg", b"3"), ("z.jpg", b"4")]
    path = write_tar(tmp_path / "x.tar", members, FORMATS[format])
    assert by_index(path) == by_webdataset(path)
    assert len(by_index(path)) == 4


def test_ustar_prefix_and_directories_equal_to_webdataset(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("d", "p" * 90, "p" * 90 + "/" + "q" * 60):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            for ext in ("jpg", "cls"):
                info = tarfile.TarInfo(f"{name}/n.{ext}")
                info.size = 3
                archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("d/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "d/n.jpg"
        archive.addfile(link)
    assert by_index(path) == by_webdataset(path)
    assert len(by_index(path)) == 3


def test_real_shards_equal_to_webdataset(shared_data):
    path = shared_data / "imagenet-sample" / "train-000001.tar"
    assert by_index(path) == by_webdataset(path)


def small_shard(tmp_path):
    members = [m for n in range(3) for m in ((f"k{n}.cls", b"1"), (f"k{n}.jpg", jpeg(n)))]
    return write_tar(tmp_path / "x.tar", members)


def test_each_cut_at_a_block_border_is_an_error(tmp_path):
    """Webdataset loses samples silently at most of these."""
    path = small_shard(tmp_path)
    data = path.read_bytes()
    end = int(tars.scan(str(path)).offsets[-1])
    for cut in range(0, end + 1024, 512):
        path.write_bytes(data[:cut])
        with pytest.raises(WorldError, match=r"x\.tar") as caught:
            tars.scan(str(path))
        assert cut == 0 or "member k" in str(caught.value) or cut < 512
    path.write_bytes(data[: end + 1024])  # two blocks of zeros: whole, though not padded to 10 KiB
    assert len(tars.scan(str(path)).crcs) == 3


def test_each_cut_anywhere_is_an_error(tmp_path):
    path = small_shard(tmp_path)
    data = path.read_bytes()
    end = int(tars.scan(str(path)).offsets[-1])
    for cut in range(1, end + 1024, 37):
        path.write_bytes(data[:cut])
        with pytest.raises(WorldError, match=r"x\.tar"):
            tars.scan(str(path))


def test_the_member_is_named(tmp_path):
    path = small_shard(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(tars.scan(str(path)).offsets[1]) + 1600])
    with pytest.raises(WorldError, match=r"x\.tar ends inside member k1\.jpg\. The shard is cut short"):
        tars.scan(str(path))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"")], "sample 'a' do not stand together"),
        ([("a.jpg", b""), ("a.JPG", b"")], "member a.JPG stands twice"),
        ([("README", b"")], "holds no samples"),
    ],
)
def test_keys_contiguous_and_unique(tmp_path, members, message):
    with pytest.raises(WorldError, match=message):
        tars.scan(str(write_tar(tmp_path / "x.tar", members)))


def test_archives_end_to_end_are_refused(tmp_path):
    one, two = (write_tar(tmp_path / f"{k}.tar", [(f"{k}.jpg", b"1")]) for k in "ab")
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(WorldError, match="goes on after its end-of-archive mark"):
        tars.scan(str(one))


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compression_is_refused(tmp_path, mode, name):
    with tarfile.open(tmp_path / "x.tar", mode) as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(WorldError, match=rf"x\.tar is compressed \({name}\)"):
        tars.scan(str(tmp_path / "x.tar"))


def test_no_tar_at_all(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(WorldError, match=r"x\.tar"):
        tars.scan(str(tmp_path / "x.tar"))
