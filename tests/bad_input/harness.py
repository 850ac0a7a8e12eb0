"""What a case of bad input is, and where it is tried: small pictures, shards, a stopped run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restrain.cli.main import run as command
from tests import worlds
from tests.data.making import jpeg, write_folder, write_tar
from tests.worlds import Fault

RUN = ["length=8st", "evaluate.every=4st", "checkpoint.every=2st", "precision=fp32"]
RECIPE = """base: digits_resnet20
model: {classes: 2, in_chans: 3}
data: {name: folder, augment: [{name: random_resized_crop}]}
resolution: {train: 8, eval: 8, eval_resize: 8}
batch: {global: 4, group: 2}
length: 3st
evaluate: {every: 3st}
precision: fp32
expect: null
"""


@dataclass
class Outcome:
    """Exit codes of the ranks, and everything that was said, without what differs from machine to machine."""

    codes: list[int]
    said: str

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix("error: ") for line in self.said.splitlines() if line.startswith("error: ")]


@dataclass
class Place:
    """A fresh folder for one case, and the ways to run Restrain in it."""

    folder: Path
    template: Path
    kept: tuple[Path, dict[str, str]] | None = None
    """A folder in which nothing may change, and its content: path -> hash."""

    def plain(self, text: str) -> str:
        """``text`` without the folder, process numbers and hashes of this very test."""
        text = text.replace(f"{self.folder}/", "").replace(str(self.folder), ".")
        text = re.sub(r"x{300}", "x...x", text)
        text = re.sub(r"((?:eval|train)/\w+) [0-9.]+", r"\1 ...", text)
        text = re.sub(r"process \d+ on [^ ,]+, last heard of \d+ s", "process 4711 on node1, last heard of 3 s", text)
        text = re.sub(r"\b[0-9a-f]{16}\b", "0123456789abcdef", text)
        hashes = iter(("0123456789ab", "ba9876543210"))
        return re.sub(r"\b[0-9a-f]{12}\b", lambda found: next(hashes, found[0]), text)

    def show(self, *argv: str) -> Outcome:
        """In this process: nothing of torch is needed."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = command(["show", *argv])
        return Outcome([code], self.plain(said.getvalue()))

    def cli(self, *argv: str, world: int = 1, faults: dict[int, list[Fault]] | None = None) -> Outcome:
        """In processes of its own. ``{dir}`` in an argument is this place's folder."""
        words = [word.replace("{dir}", str(self.folder)) for word in argv]
        ended = worlds.start(words, world, self.folder / "logs", faults).wait()
        return Outcome(ended.codes, self.plain(ended.text))

    def pictures(self, *argv: str, **more) -> Outcome:
        """Train the recipe for small pictures on ``{dir}/set``."""
        recipe = self.folder / "mine.yaml"
        recipe.write_text(RECIPE)
        return self.cli("train", str(recipe), "data.root={dir}/set", *argv, "--run", "{dir}/run", **more)

    def shards(self, *argv: str, **more) -> Outcome:
        return self.pictures("data.name=webdataset", AUGMENT, *argv, **more)

    def digits(self, *argv: str, **more) -> Outcome:
        return self.cli("train", "digits_resnet20", *RUN, *argv, "--run", "{dir}/run", **more)

    def stopped(self) -> Path:
        """A copy of a run that was stopped after step 6 of 8, with checkpoints of the steps 4 and 6."""
        run = self.folder / "run"
        shutil.copytree(self.template, run)
        return run

    def keep(self, folder: Path) -> None:
        """From now on nothing in ``folder`` may change, the lease aside."""
        self.kept = (folder, tree(folder))


AUGMENT = "data.augment=[{name: random_resized_crop}]"


@dataclass(frozen=True)
class Case:
    """``what``: what somebody did; ``said``: the paragraph they see; ``cure``: what they do next.

    ``do`` prepares the place and runs the command. Exit code 0: ``said`` is a line among others, and the work goes on.
    """

    what: str
    said: str
    code: int
    cure: str
    do: Callable[[Place], Outcome]


def show(*argv: str) -> Callable[[Place], Outcome]:
    return lambda place: place.show(*argv)


def digits(*argv: str) -> Callable[[Place], Outcome]:
    return lambda place: place.digits(*argv)


def tree(run: Path) -> dict[str, str]:
    """Every file of a run folder but the lease's, by its hash."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and "lease" not in path.parts)
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(samples: int, first: int = 0) -> list[tuple[str, bytes]]:
    """``samples`` pictures of two classes as members of a shard."""
    numbers = range(first, first + samples)
    return [m for n in numbers for m in ((f"s{n:03d}.cls", b"%d" % (n % 2)), (f"s{n:03d}.jpg", jpeg(n, 8, 8)))]


def shard(place: Place, found: list[tuple[str, bytes]], name: str = "train-000.tar") -> Path:
    (place.folder / "set").mkdir(exist_ok=True)
    return write_tar(place.folder / "set" / name, found)


def with_file(place: Place, name: str, content: bytes) -> list[tuple[str, bytes]]:
    """Twelve samples of which one file is another: ``s003.cls``, say."""
    return [(one, content if one == name else data) for one, data in members(12)]


def folder_set(place: Place, split: str = "train", classes: tuple[str, ...] = ("cat", "dog"), count: int = 8) -> Path:
    return write_folder(place.folder / "set" / split, dict.fromkeys(classes, count))


def flip(path: Path, at: int) -> None:
    """Flip one bit of one byte; of a file on the disk, as a disk would."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    status = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
