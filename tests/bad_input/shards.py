# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad shards and labels."""

from __future__ import annotations

import gzip
import os

from tests.bad_input.harness import Case, Outcome, Place, flip, members, shard, with_file


def _shards(found, *argv: str):
    def do(place: Place) -> Outcome:
        shard(place, found(place) if callable(found) else found)
        return place.shards("data.shuffle=false", *argv)

    return do


def _label(name: str, content: bytes):
    return _shards(lambda place: with_file(place, name, content))


def _json(content: bytes):
    def do(place: Place) -> Outcome:
        found = [
            (name.replace(".cls", ".json"), data if name.endswith("jpg") else b'{"label": %s}' % data)
            for name, data in members(12)
        ]
        shard(place, [(name, content if name == "s003.json" else data) for name, data in found])
        return place.shards("data.shuffle=false")

    return do


def _content(data: bytes):
    def do(place: Place) -> Outcome:
        shard(place, members(4)).write_bytes(data)
        return place.shards()

    return do


def _cut_at(size: int, indexed: bool = False):
    def do(place: Place) -> Outcome:
        path = shard(place, members(12))
        if indexed:
            place.cli("data", "index", "{dir}/set")
        os.truncate(path, size)
        return place.shards()

    return do


def _gzipped(place: Place) -> Outcome:
    path = shard(place, members(4))
    path.write_bytes(gzip.compress(path.read_bytes()))
    return place.shards()


def _twice(place: Place) -> Outcome:
    path = shard(place, members(4))
    path.write_bytes(path.read_bytes() * 2)
    return place.shards()


def _folder_as_shard(place: Place) -> Outcome:
    (place.folder / "set" / "train-000.tar").mkdir(parents=True)
    return place.shards()


def _dangling_shard(place: Place) -> Outcome:
    (place.folder / "set").mkdir()
    (place.folder / "set" / "train-000.tar").symlink_to("gone.tar")
    return place.shards()


def _flipped(*argv: str):
    def do(place: Place) -> Outcome:
        path = shard(place, members(12))
        place.cli("data", "index", "{dir}/set")
        flip(path, 700)
        return place.shards("data.shuffle=false", *argv)

    return do


def _gone(place: Place) -> Outcome:
    shard(place, members(12), "train-001.tar")
    path = shard(place, members(12, 12))
    place.cli("data", "index", "{dir}/set")
    path.unlink()
    return place.shards()


def _nowhere_to_write(place: Place) -> Outcome:
    path = shard(place, members(12))
    (place.folder / "cache").write_text("")
    path.parent.chmod(0o555)
    try:
        return place.shards("data.cache={dir}/cache")
    finally:
        path.parent.chmod(0o755)


def _changed_set(place: Place) -> Outcome:
    path = shard(place, members(12))
    place.shards()
    path.unlink()
    (place.folder / "set" / "restrain-index.json").unlink()
    shard(place, members(12, 12))
    return place.shards("length=9st", "--allow", "length")


LABELS = [
    Case(
        "A label is out of range",
        "Label 7 out of range: sample s003 of train-000.tar has label 7, and model.classes=2 allows 0 to 1. Set model.classes to the number of classes of the data, or repair the label.",
        2,
        "Set model.classes, or repair the label.",
        _label("s003.cls", b"7"),
    ),
    Case(
        "A label is negative",
        "Label -1 out of range: sample s003 of train-000.tar has label -1, and model.classes=2 allows 0 to 1. Set model.classes to the number of classes of the data, or repair the label.",
        2,
        "Repair the label.",
        _label("s003.cls", b"-1"),
    ),
    Case(
        "A label is no number",
        "step 1: sample 3 (s003) of train-000.tar replaced by sample 4: label missing: its .cls holds b'cat\\n', no whole number",
        0,
        "Nothing within the budget: the next sample takes its place. Repair the label.",
        _label("s003.cls", b"cat\n"),
    ),
    Case(
        "Labels are missing",
        "No usable sample: sample 0 (s000) of train-000.tar: label missing: neither .cls nor .json among its files (.jpg); and the 8 samples after it are bad too. Restore train-000.tar from its origin, or leave it out of the data set.",
        1,
        "Write the shard again, with labels.",
        _shards([m for m in members(12) if not m[0].endswith("cls")]),
    ),
    Case(
        "Images are missing",
        "No usable sample: sample 0 (s000) of train-000.tar: no image among its files (.cls); and the 8 samples after it are bad too. Restore train-000.tar from its origin, or leave it out of the data set.",
        1,
        "Write the shard again, with images.",
        _shards([m for m in members(12) if m[0].endswith("cls")]),
    ),
    Case(
        "A label's JSON is broken",
        "step 1: sample 3 (s003) of train-000.tar replaced by sample 4: label missing: its .json is not valid JSON",
        0,
        "Nothing within the budget: the next sample takes its place. Repair the label.",
        _json(b'{"label": 1'),
    ),
    Case(
        "A label's JSON has no label",
        'step 1: sample 3 (s003) of train-000.tar replaced by sample 4: label missing: its .json has no whole number under "label" or "cls"',
        0,
        "Nothing within the budget: the next sample takes its place. Repair the label.",
        _json(b'{"label": "1"}'),
    ),
]
SHARDS = [
    Case(
        "A shard is cut inside a file",
        "set/train-000.tar ends inside member s000.jpg. The shard is cut short or damaged: restore it from its origin.",
        1,
        "Restore it.",
        _cut_at(512 * 3),
    ),
    Case(
        "A shard is cut between two files",
        "set/train-000.tar has no end-of-archive mark after member s000.cls. The shard is cut short or damaged: restore it from its origin.",
        1,
        "Restore it.",
        _cut_at(512 * 2),
    ),
    Case(
        "A shard is empty",
        "set/train-000.tar is empty, not a tar archive: it was cut short. Restore it from its origin.",
        1,
        "Restore it.",
        _cut_at(0),
    ),
    Case(
        "A shard is cut after it was indexed",
        "set/train-000.tar has 10240 bytes, its index says 40960: it was cut short or changed. Restore it from its origin, or, if it was changed on purpose, run: restrain data index set",
        1,
        "Restore it, or index it again.",
        _cut_at(10240, indexed=True),
    ),
    Case(
        "A byte of a shard has flipped",
        "step 1: sample 0 (at byte 0) of train-000.tar replaced by sample 1: its bytes are not those that were indexed (checksum)",
        0,
        "Nothing within the budget: the next sample takes its place. Restore the shard.",
        _flipped(),
    ),
    Case(
        "A byte of a shard has flipped, and evaluation reads it",
        "Evaluation stopped: sample 0 (at byte 0) of train-000.tar: its bytes are not those that were indexed (checksum). Restore the file from its origin, or index it again if it was changed on purpose (restrain data index).",
        1,
        "Restore the shard: a number from other data is worth nothing.",
        _flipped("data.eval=train-*.tar"),
    ),
    Case(
        "A shard is compressed",
        "set/train-000.tar is compressed (gzip): samples cannot be read at random from it. Unpack it to a plain .tar; images do not get smaller by compressing them again.",
        1,
        "Unpack it.",
        _gzipped,
    ),
    Case(
        "A shard is no tar archive",
        "set/train-000.tar is no readable tar archive (invalid header). The shard is cut short or damaged: restore it from its origin.",
        1,
        "Restore it, or correct the pattern.",
        _content(b"no tar archive " * 100),
    ),
    Case(
        "Two archives stand in one file",
        "set/train-000.tar goes on after its end-of-archive mark (archives put end to end?): readers stop at the mark and would lose the rest. Write it again as one archive.",
        1,
        "Write them as one archive.",
        _twice,
    ),
    Case(
        "A key stands twice in a shard",
        "set/train-000.tar: the members of sample 's000' do not stand together (s000.cls comes after another sample's). A shard's samples must be contiguous and their keys unique: write it again in order.",
        1,
        "Write the shard again.",
        _shards([*members(4), *members(1)]),
    ),
    Case(
        "A file stands twice in a sample",
        "set/train-000.tar: member s003.jpg stands twice in sample 's003'. Write the shard again.",
        1,
        "Write the shard again.",
        _shards([*members(4), ("s003.jpg", b"x")]),
    ),
    Case(
        "A shard has no samples",
        "set/train-000.tar holds no samples (files named key.extension).",
        1,
        "Write the shard again: files are named KEY.EXTENSION.",
        _shards([("README", b"x")]),
    ),
    Case(
        "A folder is named like a shard",
        "set/train-000.tar is no file, and shards are. Move it away, or correct the pattern.",
        1,
        "Move it away.",
        _folder_as_shard,
    ),
    Case(
        "A shard is a broken link",
        "set/train-000.tar cannot be read: No such file or directory. Restore it from its origin.",
        1,
        "Restore it.",
        _dangling_shard,
    ),
    Case(
        "An indexed shard is gone",
        "set/train-000.tar is missing: the index in set lists it. Restore it, or, if it was removed on purpose, run: restrain data index set",
        1,
        "Restore it, or index again.",
        _gone,
    ),
    Case(
        "Shards have no index, and it can be written nowhere",
        "The index of the data set can be written neither beside the data nor into the cache (set: read-only folder; cache/0123456789abcdef: Not a directory). Make one of them writable, or name a folder that is with data.cache=FOLDER.",
        1,
        "Make a folder writable, or name one with data.cache.",
        _nowhere_to_write,
    ),
    Case(
        "The data are no longer those of the run",
        "run holds a run of another recipe: lock.fingerprint (a hash of the training data) is 0123456789ab, the run has ba9876543210. Leave these as they are to go on with it, allow a change on purpose with --allow KEY (it is recorded), choose another --run, or branch off with --from run.",
        2,
        "Restore the data; or allow it, or begin another run.",
        _changed_set,
    ),
]
