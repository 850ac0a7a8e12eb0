# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad sources, targets and options of ``restrain data pack``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.harness import Case, Outcome, Place, folder_set, members, shard
from tests.data import originals
from tests.data.making import jpeg


def _pack(place: Place, *argv: str, source: str = "set", target: str = "out") -> Outcome:
    return place.cli("data", "pack", f"{{dir}}/{source}", f"{{dir}}/{target}", *argv)


def _folder(*argv: str, before: Callable[[Place], object] = lambda place: None, **names: str):
    def do(place: Place) -> Outcome:
        folder_set(place)
        before(place)
        return _pack(place, *argv, **names)

    return do


def _twice(*argv: str):
    def do(place: Place) -> Outcome:
        folder_set(place)
        _pack(place)
        place.keep(place.folder / "out")
        return _pack(place, *argv)

    return do


def _lost(place: Place) -> Outcome:
    folder_set(place)
    _pack(place)
    (place.folder / "out/train-000000.tar").unlink()
    return _pack(place)


def _no_image(place: Place) -> None:
    (place.folder / "set/train/cat/3.jpg").write_bytes(b"this is no image")


def _same_key(place: Place) -> None:
    (place.folder / "set/train/cat/3.png").write_bytes(jpeg(3, format="PNG"))


def _other_shards(place: Place) -> None:
    (place.folder / "out").mkdir()
    (place.folder / "out/train-000.tar").write_bytes(b"")


def _list(text: str) -> Callable[[Place], Outcome]:
    def do(place: Place) -> Outcome:
        folder_set(place)
        (place.folder / "set/list.csv").write_text(text)
        return _pack(place, source="set/list.csv")

    return do


def _cut(place: Place) -> Outcome:
    path = shard(place, members(12))
    os.truncate(path, path.stat().st_size // 1024 * 512)
    return _pack(place)


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def _pickle(place: Place) -> Outcome:
    def dump(found: dict) -> bytes:
        return (
            pickle.dumps({"data": _Evil()}, 2).replace(b"cposix\n", b"cos\n")
            if "data" in found
            else originals.python2(found)
        )

    originals.cifar(place.folder / "set", dump)
    return _pack(place, source="set/cifar-10-python.tar.gz")


def _imagenet(spoil: Callable[[Path], object]):
    def do(place: Place) -> Outcome:
        originals.small_imagenet(place.folder / "set")
        spoil(place.folder / "set")
        return _pack(place)

    return do


PACKING = [
    Case(
        "Nothing that can be packed",
        "set holds nothing that can be packed: folders of images, one a class; a list (.csv, .jsonl, .parquet); metadata.csv beside images; tar shards; ImageNet's archives; CIFAR's.",
        2,
        "Name the folder that holds the classes, the list or the archives.",
        lambda place: (place.folder / "set").mkdir() or _pack(place),
    ),
    Case(
        "--from names a layout that there is not",
        "--from imagnet: unknown layout. Did you mean 'imagenet'? Allowed: folder, list, imagefolder, shards, imagenet, cifar.",
        2,
        "Correct it, or leave it out.",
        _folder("--from", "imagnet"),
    ),
    Case(
        "--from names another layout",
        "set is no source of the kind 'imagenet': it needs ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar in the folder.",
        2,
        "Name the layout that it has, or leave --from out.",
        _folder("--from", "imagenet"),
    ),
    Case(
        "--shard-size is no size",
        "--shard-size 128 apples is no size. Write 128MB, 1GiB or a number of bytes.",
        2,
        "Write a number and a unit.",
        _folder("--shard-size", "128 apples"),
    ),
    Case(
        "--quality without --short-side",
        "--quality is that of images made smaller: give --short-side too, or neither.",
        2,
        "Give both, or neither.",
        _folder("--quality", "90"),
    ),
    Case(
        "Shards into their own source",
        "set/train/cat is in set: the shards would become part of the source. Name another folder.",
        2,
        "Name a folder outside.",
        _folder(target="set/train/cat"),
    ),
    Case(
        "The folder holds other shards",
        "out holds train-000.tar, which `restrain data pack` did not write. Name an empty folder, or move it away.",
        2,
        "Name an empty folder.",
        _folder(before=_other_shards),
    ),
    Case(
        "The set was packed with other options",
        "out holds a set that was packed otherwise: seed 0 there, 3 now. Give the same options to go on with it, or name another folder.",
        2,
        "Give the same options, or name another folder.",
        _twice("--seed", "3"),
    ),
    Case(
        "A finished set is packed once more",
        "out is finished, nothing is to be done:",
        0,
        "Nothing.",
        _twice(),
    ),
    Case(
        "A shard of a finished set is gone",
        "out/train-000000.tar is missing: restrain-pack.json lists it with 51,200 bytes. Restore it, or empty out and pack again.",
        1,
        "Restore it, or pack again.",
        _lost,
    ),
    Case(
        "Two files of one name",
        "set/train/cat/3.jpg and set/train/cat/3.png would both be sample 'cat/3' of train: keys leave extensions out. Rename one of them, or move it away.",
        2,
        "Rename one of them.",
        _folder(before=_same_key),
    ),
    Case(
        "--check finds an image that cannot be decoded",
        "set/train/cat/3.jpg cannot be decoded: no image format that PIL knows. Repair it or move it away, or leave such images out with --skip-bad.",
        2,
        "Repair it, or give --skip-bad.",
        _folder("--check", "--workers", "1", before=_no_image),
    ),
    Case(
        "--skip-bad leaves an image out",
        "1 bad image(s) left out, listed in out/restrain-pack.json; the first: cat/3 (train-000000.tar): cannot be decoded: no image format that PIL knows",
        0,
        "Nothing, or repair it and pack again.",
        _folder("--skip-bad", "--workers", "1", before=_no_image),
    ),
    Case(
        "A list without a column of labels",
        "set/list.csv, row 1 has none of the columns label, class, cls, fine_label, target, category, but path, kind. Say which it is with --label-column.",
        2,
        "Name the column.",
        _list("path,kind\ntrain/cat/0.jpg,cat\n"),
    ),
    Case(
        "A list leads out of its folder",
        "set/list.csv, row 1: '../secret.jpg' leads out of set. Paths are relative to the list's own folder, or to that of --root FOLDER; name one that holds all images.",
        2,
        "Give --root.",
        _list("path,label\n../secret.jpg,cat\n"),
    ),
    Case(
        "A shard that is packed again was cut short",
        "set/train-000.tar has no end-of-archive mark where its members end. It is cut short or damaged: fetch it again.",
        1,
        "Restore it from its origin.",
        _cut,
    ),
    Case(
        "A pickle of CIFAR names code",
        "set/cifar-10-python.tar.gz: data_batch_1 names 'os.mkdir', which has no place in a list of images: unpickling it could run code. It was refused, and nothing was run. Fetch the file from its origin.",
        2,
        "Fetch the archive from its origin.",
        _pickle,
    ),
    Case(
        "ImageNet's devkit is missing",
        "set/ILSVRC2012_devkit_t12.tar.gz is missing: it holds the labels of ILSVRC2012_img_val.tar. Put it there, or move the validation archive away.",
        2,
        "Put it beside the archives.",
        _imagenet(lambda folder: (folder / originals.DEVKIT).unlink()),
    ),
    Case(
        "ImageNet's devkit is of another set",
        "set/ILSVRC2012_img_val.tar: member ILSVRC2012_val_00000008.JPEG is not one of ILSVRC2012_val_00000001 to 00000003, each once. It is not the original: fetch it again.",
        1,
        "Fetch the archives again.",
        _imagenet(lambda folder: originals.devkit(folder / originals.DEVKIT, [1, 2, 3], originals.meta_mat(originals.IDS))),
    ),
]  # fmt: skip
