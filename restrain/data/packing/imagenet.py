"""ImageNet-1k from the archives of 2012, read in place: nothing is unpacked.

``ILSVRC2012_img_train.tar`` is a tar of one tar a class (``n01440764.tar``), ``ILSVRC2012_img_val.tar`` a flat one;
the labels of the validation images stand in the devkit, as ILSVRC ids that ``meta.mat`` maps to WNIDs. Classes are the
WNIDs in byte order, as torchvision and timm number them (Russakovsky et al. 2015, arXiv:1409.0575).
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from restrain.data.packing.archive import members
from restrain.data.packing.items import Item, Listing, Part, Span, image_part, label_part, number_classes, safe_key
from restrain.errors import UserError, WorldError

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
WNID = re.compile(r"(?:\./)?(n\d{8})\.tar")
NUMBERED = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.\w+")
MOST = 1 << 26  # bytes of a file of the devkit


def list_imagenet(source: Path) -> Listing:
    """What of the three archives the folder holds: train, val (with the devkit), or both."""
    train, val, devkit = source / TRAIN, source / VAL, source / DEVKIT
    if val.is_file() and not devkit.is_file():
        raise UserError(
            f"{devkit} is missing: it holds the labels of {VAL}. Put it there, or move the validation archive away."
        )
    splits: dict[str, list[Item]] = {}
    notes = []
    classes: list[str] = []
    if train.is_file():
        splits["train"], classes = _train(train)
    if val.is_file():
        truth, wnids = read_devkit(devkit)
        if classes and classes != sorted(wnids.values()):
            odd = sorted(set(classes) ^ set(wnids.values()))
            raise WorldError(
                f"{TRAIN} and {DEVKIT} have not the same classes: {', '.join(odd[:5])}"
                f"{f' and {len(odd) - 5} more' if odd[5:] else ''} in one only. Fetch them again."
            )
        classes = classes or sorted(wnids.values())
        splits["val"] = _val(val, truth, wnids, classes)
    notes += [f"{name} is not there: no {split} shards" for split, name in (("train", TRAIN), ("val", VAL))
              if split not in splits]  # fmt: skip
    return Listing(splits, classes, notes)


def _train(path: Path) -> tuple[list[Item], list[str]]:
    inner: dict[str, Span] = {}
    for name, span in members(path):
        found = WNID.fullmatch(name)
        if found is None or found[1] in inner:
            raise WorldError(
                f"{path}: member {name} {'stands there twice' if found else 'is no class archive (n01440764.tar)'}. "
                f"It is not the original: fetch it again."
            )
        inner[found[1]] = span
    if not inner:
        raise WorldError(f"{path} holds no class archives (n01440764.tar). Fetch it again.")
    numbers = number_classes(inner)
    items = []
    for wnid, number in numbers.items():
        label, before = label_part(number), len(items)
        items += [_item(name, span, label, wnid) for name, span in members(path, inner[wnid], f"{wnid}.tar in {path}")]
        if len(items) == before:
            raise WorldError(f"{path}: {wnid}.tar holds no images. Fetch it again.")
    return items, list(numbers)


def _val(path: Path, truth: list[int], wnids: dict[int, str], classes: list[str]) -> list[Item]:
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    labels = [label_part(number) for number in range(len(classes))]
    found: dict[int, Item] = {}
    for name, span in members(path):
        match = NUMBERED.fullmatch(name)
        number = int(match[1]) if match else 0
        if not 0 < number <= len(truth) or number in found:
            raise WorldError(
                f"{path}: member {name} is not one of ILSVRC2012_val_00000001 to {len(truth):08d}, each once. "
                f"It is not the original: fetch it again."
            )
        found[number] = _item(name, span, labels[numbers[wnids[truth[number - 1]]]], VAL)
    if len(found) != len(truth):
        raise WorldError(f"{path} has {len(found):,} images, the devkit labels {len(truth):,}. Fetch them again.")
    return [found[number] for number in sorted(found)]


def _item(name: str, span: Span, label: Part, place: str) -> Item:
    stem = name.rpartition("/")[2].rpartition(".")[0] or name
    return Item(safe_key(stem), (image_part(name, span), label), f"{place}: {name}")


def read_devkit(path: Path) -> tuple[list[int], dict[int, str]]:
    """(ILSVRC id of each validation image, id -> WNID) of the leaves of the hierarchy."""
    truth, meta = _devkit_files(path)
    try:
        ids = [int(line) for line in truth.decode("ascii").split()]
    except ValueError as error:
        raise WorldError(f"{path}: {TRUTH} holds something else than numbers ({error}). Fetch it again.") from error
    wnids = _leaves(meta, path)
    if unknown := set(ids) - set(wnids):
        raise WorldError(f"{path}: {TRUTH} has the id {min(unknown)}, which {META} does not know. Fetch it again.")
    return ids, wnids


def _devkit_files(path: Path) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = next((one for one in (TRUTH, META) if member.name.endswith(f"/{one}")), None)
                if name and member.isreg():
                    if member.size > MOST:
                        raise WorldError(f"{path}: {name} claims {member.size:,} bytes. Fetch it again.")
                    found[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise WorldError(f"{path} is no readable .tar.gz ({error}). Fetch it again.") from error
    for name in (TRUTH, META):
        if name not in found:
            raise WorldError(f"{path} holds no {name}. It is not the devkit of tasks 1 and 2: fetch it again.")
    return found[TRUTH], found[META]


def _leaves(meta: bytes, path: Path) -> dict[int, str]:
    """ILSVRC id -> WNID of the synsets without children. scipy reads numbers and texts alone, and runs nothing."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        rows = [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), int(s["num_children"])) for s in synsets]
    except Exception as error:  # scipy raises what it stumbles over: KeyError, TypeError, zlib.error ...
        raise WorldError(f"{path}: {META} cannot be read ({error}). Fetch it again.") from error
    leaves = {number: wnid for number, wnid, children in rows if children == 0}
    if len(set(leaves.values())) != sum(children == 0 for *_, children in rows):
        raise WorldError(f"{path}: {META} has an id or a WNID twice. Fetch it again.")
    if odd := [wnid for wnid in leaves.values() if not re.fullmatch(r"n\d{8}", wnid)]:
        raise WorldError(f"{path}: {META} has the WNID {odd[0]!r}, which is none. Fetch it again.")
    return leaves
