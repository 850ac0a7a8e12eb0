"""ImageNet's and CIFAR's archives in their original formats, of other images."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.making import jpeg

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
IDS = {"n02000003": 1, "n01000001": 2, "n03000005": 3, "n01000002": 4, "n02000004": 5}  # of `small_imagenet`
SYNSET = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")]


def tar(path: Path, members: dict[str, bytes], mode: str = "w", format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, mode, format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def in_tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def meta_mat(ids: dict[str, int]) -> bytes:
    """``meta.mat`` of WNID -> ILSVRC id, with an inner node of the hierarchy, which is no class."""
    rows = [(number, wnid, f"the {wnid}", "a gloss", 0, np.zeros((0,))) for wnid, number in ids.items()]
    rows.append((len(ids) + 1, "n99999999", "an inner node", "", len(ids), np.arange(1, len(ids) + 1)))
    synsets = np.array([tuple(row) for row in rows], SYNSET).reshape(-1, 1)
    out = io.BytesIO()
    savemat(out, {"synsets": synsets}, do_compression=True)
    return out.getvalue()


def devkit(path: Path, truth: list[int], mat: bytes) -> Path:
    lines = "".join(f"{number}\n" for number in truth).encode()
    top = "ILSVRC2012_devkit_t12"
    members = {
        f"{top}/readme.txt": b"read me",
        f"{top}/data/ILSVRC2012_validation_ground_truth.txt": lines,
        f"{top}/data/meta.mat": mat,
    }
    return tar(path, members, "w:gz")


def imagenet(folder: Path, images: list[bytes], ids: dict[str, int], validation: list[int]) -> dict[str, tuple]:
    """The three archives; key -> (image, class number) of what is in them. Images are dealt out to classes in turn.

    ids: WNID -> ILSVRC id, in the order in which the class archives stand in the outer one. validation: ILSVRC ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wnids, numbers = list(ids), {wnid: n for n, wnid in enumerate(sorted(ids))}
    by_id = {number: wnid for wnid, number in ids.items()}
    expected: dict[str, tuple] = {}
    train, rest = images[: -len(validation)], images[-len(validation) :]
    classes: dict[str, dict[str, bytes]] = {wnid: {} for wnid in wnids}
    for n, image in enumerate(train):
        wnid = wnids[n % len(wnids)]
        classes[wnid][f"{wnid}_{n}.JPEG"] = image
        expected[f"{wnid}_{n}"] = (image, numbers[wnid])
    tar(folder / TRAIN, {f"{wnid}.tar": in_tar(members) for wnid, members in classes.items()})
    val = {}
    for n, (image, number) in enumerate(zip(rest, validation, strict=True), 1):
        val[f"ILSVRC2012_val_{n:08d}.JPEG"] = image
        expected[f"ILSVRC2012_val_{n:08d}"] = (image, numbers[by_id[number]])
    tar(folder / VAL, dict(reversed(val.items())))
    devkit(folder / DEVKIT, validation, meta_mat(ids))
    return expected


def small_imagenet(folder: Path, count: int = 40) -> dict[str, tuple]:
    """Of 5 classes whose ILSVRC ids are in another order than their WNIDs."""
    return imagenet(folder, [jpeg(n) for n in range(count)], IDS, [3, 1, 4, 1, 5, 2, 5, 3])


def python2(found: dict) -> bytes:
    """A pickle of protocol 2 as Python 2 writes it: texts are byte strings, an array is numpy's of then."""
    out = [b"\x80\x02", _python2(found), b"."]
    return b"".join(out)


def _python2(value) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode("latin-1")
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    content = value.tobytes()
    shape = b"".join(b"J" + struct.pack("<i", n) for n in value.shape)
    dtype = (
        b"cnumpy\ndtype\n"
        + b"U\x02u1"
        + b"K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return made + b"(K\x01(" + shape + b"t" + dtype + b"\x89T" + struct.pack("<i", len(content)) + content + b"tb"


def cifar(folder: Path, dump=python2, per_batch: int = 12) -> dict[str, list[tuple[np.ndarray, int]]]:
    """``cifar-10-python.tar.gz``; split -> (pixels [32, 32, 3], label) in the order of the batches."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.PCG64(5))
    names = [f"class{n}" for n in range(10)]
    files = {"cifar-10-batches-py/batches.meta": dump({"label_names": names, "num_vis": 3072})}
    expected: dict[str, list] = {"train": [], "test": []}
    for batch in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (per_batch, 3072), np.uint8)
        labels = rng.integers(0, 10, per_batch).tolist()
        content = {"batch_label": batch, "labels": labels, "data": data, "filenames": [f"{n}.png" for n in labels]}
        files[f"cifar-10-batches-py/{batch}"] = dump(content)
        pixels = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        expected["test" if batch == "test_batch" else "train"] += list(zip(pixels, labels, strict=True))
    tar(folder / "cifar-10-python.tar.gz", files, "w:gz")
    return expected


def cifar100(folder: Path, per_split: int = 20) -> dict[str, list[tuple[np.ndarray, int]]]:
    """The folder of CIFAR-100, pickled by this Python."""
    folder.mkdir(parents=True)
    rng = np.random.Generator(np.random.PCG64(6))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"f{n:02d}" for n in range(100)]}, 2))
    expected = {}
    for split in "train", "test":
        data = rng.integers(0, 256, (per_split, 3072), np.uint8)
        labels = rng.integers(0, 100, per_split).tolist()
        content = {"fine_labels": labels, "coarse_labels": [0] * per_split, "data": data}
        (folder / split).write_bytes(pickle.dumps(content, 2))
        expected[split] = list(zip(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, strict=True))
    return expected
