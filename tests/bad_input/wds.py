# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad stages, and sets without an index."""

from __future__ import annotations

import gzip

from tests.bad_input.harness import Case, Outcome, Place, members, shard


def _shards(*words: str):
    def do(place: Place) -> Outcome:
        shard(place, members(12))
        return place.shards(*words)

    return do


def _zipped(*words: str, cut: int | None = None):
    def do(place: Place) -> Outcome:
        path = shard(place, members(12))
        path.with_name("train-000.tar.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0)[:cut])
        path.unlink()
        return place.shards("data.train=train-*.tar.gz", "data.eval=null", *words)

    return do


STREAM = ("data.mode=stream", "data.samples_per_epoch=12")

WDS = [
    Case(
        "A stream without the length of an epoch",
        "data.mode=stream needs data.samples_per_epoch: without an index nobody knows how many samples there are. Give their number, or what is to count as an epoch.",
        2,
        "Give data.samples_per_epoch=12.",
        _zipped("data.mode=stream"),
    ),
    Case(
        "A stream with an order that is not exact",
        "data.mode=stream: the order of samples is not exact. Shards are drawn with replacement, so an epoch is data.samples_per_epoch samples of which some come twice and some not at all; going on after a kill or on other processes draws anew; a shard that was cut is not noticed; and the ledger of this run cannot be audited. Plain tars with an index (data.mode=shards) have none of this.",
        0,
        "Nothing, or pack the set into plain tars and leave out data.mode.",
        _zipped(*STREAM),
    ),
    Case(
        "A stream whose archive is cut",
        "set/train-000.tar.gz cannot be read to its end: ReadError: unexpected end of data. Restore it from its origin.",
        1,
        "Restore the archive.",
        _zipped(*STREAM, cut=900),
    ),
    Case(
        "A shell command for data",
        "data.train='pipe:...' is a command that a shell would run. Restrain runs none unless data.allow_pipe=true says so: look at the command first.",
        2,
        "Read the command; if it is yours, add data.allow_pipe=true.",
        _shards(*STREAM, "data.train=pipe:cat set/train-000.tar"),
    ),
    Case(
        "A shell command that fails",
        "pipe:... failed with exit code 1. Try the command in a shell.",
        1,
        "Correct the command.",
        _shards(*STREAM, "data.train=pipe:cat no-such-file", "data.allow_pipe=true", "data.eval=null"),
    ),
    Case(
        "A stream over http",
        "The pattern 'train-*.tar': a web server does not list what it has. Name the shards by numbers, such as train-{000000..000146}.tar.",
        2,
        "Write the numbers out in braces.",
        _shards(*STREAM, "data.root=https://example.org/set"),
    ),
    Case(
        "A stage of no installed package",
        "data.stages: there is no my-package/clean. PACKAGE/NAME is an entry point of the group restrain.stages. No installed package has any.",
        2,
        "Install the package, or correct the name.",
        _shards("data.stages=[my-package/clean]"),
    ),
    Case(
        "A stage of a script, without it",
        "data.stages has script/map: its code is in the script that started the run, and nowhere else. Run that script again, with the same run=, to go on with it.",
        2,
        "Run the script.",
        _shards("data.stages=[script/map]"),
    ),
    Case(
        "Stages for a folder of images",
        "command line: data.stages does nothing with data.name = folder: it belongs to data.name = webdataset.",
        2,
        "Pack the folder into shards, or leave the stages out.",
        lambda place: place.pictures("data.stages=[script/map]"),
    ),
]
