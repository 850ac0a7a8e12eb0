"""Archives in the formats in which ImageNet and CIFAR are given out, made of small images."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from scipy.io import savemat

from .making import jpeg

WNIDS = ["n03000001", "n01000002", "n02000003"]  # ILSVRC numbers 1, 2, 3: not in the order of the classes


def tar_of(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_340_000_000
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_imagenet(root: Path, images: int = 4, seed: int = 0, pictures=None) -> tuple[dict[str, str], dict[str, str]]:
    """The three archives; gives (train key -> WNID, validation key -> WNID)."""
    root.mkdir(parents=True, exist_ok=True)
    picture = pictures or (lambda number: jpeg(seed * 1000 + number))
    train, inner = {}, []
    for c, wnid in enumerate(WNIDS):
        files = [(f"{wnid}_{10 * i}.JPEG", picture(c * images + i)) for i in range(images)]
        train |= {name[:-5]: wnid for name, _ in files}
        inner.append((f"{wnid}.tar", tar_of(files)))
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    numbers = [1 + (5 * i + 1) % 3 for i in range(7)]
    names = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(7)]
    files = [(f"{name}.JPEG", picture(500 + i)) for i, name in enumerate(names)]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(files))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = [(i + 1, wnid, f"word {i}", 0, np.array([])) for i, wnid in enumerate(WNIDS)]
    rows.append((4, "n00001740", "entity", 3, np.array([1, 2, 3])))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    kit = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{number}\n" for number in numbers).encode()
    members = [(f"{kit}/data/ILSVRC2012_validation_ground_truth.txt", truth), (f"{kit}/data/meta.mat", meta.getvalue())]
    (root / f"{kit}.tar.gz").write_bytes(tar_of(members, "w:gz"))
    return train, {name: WNIDS[number - 1] for name, number in zip(names, numbers, strict=True)}


class _Pickler2:
    """Writes what Python 2's cPickle wrote: byte strings as such, arrays through numpy.core.multiarray."""

    def __init__(self) -> None:
        self.out = io.BytesIO()
        self.out.write(b"\x80\x02")

    def dump(self, value) -> bytes:
        self.write(value)
        self.out.write(b".")
        return self.out.getvalue()

    def write(self, value) -> None:
        out = self.out
        if isinstance(value, dict):
            out.write(b"}(")
            for key, item in value.items():
                self.write(key)
                self.write(item)
            out.write(b"u")
        elif isinstance(value, list):
            out.write(b"](")
            for item in value:
                self.write(item)
            out.write(b"e")
        elif isinstance(value, bytes):
            head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
            out.write(head + value)
        elif isinstance(value, int):
            out.write(b"J" + struct.pack("<i", value))
        elif isinstance(value, np.ndarray):
            out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01")
            out.write(b"".join(b"J" + struct.pack("<i", n) for n in value.shape) + b"\x86")
            out.write(
                b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            )
            self.write(value.tobytes())
            out.write(b"tb")
        else:
            raise TypeError(type(value))


def write_cifar(root: Path, per: int = 3, hostile: bytes | None = None) -> np.ndarray:
    """``cifar-10-python.tar.gz`` with 5 x ``per`` training and ``per`` test images; gives all pixels [n, 32, 32, 3]."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (6 * per, 3072), np.uint8)
    members = []
    for b, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = range(b * per, (b + 1) * per)
        batch = {
            b"batch_label": name.encode(),
            b"labels": [i % 10 for i in rows],
            b"data": pixels[rows.start : rows.stop],
            b"filenames": [b"picture_s_%06d.png" % i for i in rows],
        }
        members.append((f"cifar-10-batches-py/{name}", _Pickler2().dump(batch)))
    if hostile is not None:
        members[0] = (members[0][0], hostile)
    names = {b"label_names": [b"class%d" % i for i in range(10)], b"num_vis": 3072}
    members.append(("cifar-10-batches-py/batches.meta", _Pickler2().dump(names)))
    (root / "cifar-10-python.tar.gz").write_bytes(tar_of(members, "w:gz"))
    assert pickle.loads(members[1][1], encoding="bytes")[b"labels"]  # Python's own reader takes them too
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
