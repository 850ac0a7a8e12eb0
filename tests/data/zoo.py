"""Odd tars: what is in each, and how we differ from webdataset where we do. docs/webdataset.md has the table."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Members = list[tuple[str, bytes]]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "GNU": tarfile.GNU_FORMAT, "PAX": tarfile.PAX_FORMAT}
LONG = "a/very/" + "long/" * 30 + "name"
PAIR: Members = [("a.jpg", b"1"), ("a.cls", b"2"), ("b.jpg", b"3" * 513), ("b.cls", b"")]
SAME = "the same samples"


@dataclass(frozen=True)
class Animal:
    """``make`` writes it. ``ours``: SAME, or the beginning of what we say instead of reading it.

    ``theirs``: what webdataset does where we refuse: a number of samples, or the name of an exception.
    """

    what: str
    make: Callable[[Path], object]
    ours: str = SAME
    theirs: int | str | None = None
    why: str = ""


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def of(members: list, format: str = "ustar", **options: object) -> Callable[[Path], None]:
    """A tar of (name, bytes) pairs and ready-made headers."""

    def make(path: Path) -> None:
        with tarfile.open(path, "w", format=FORMATS[format], **options) as archive:  # type: ignore[call-overload]
            for one in members:
                if isinstance(one, tarfile.TarInfo):
                    archive.addfile(one, io.BytesIO(b"x" * one.size))
                else:
                    archive.addfile(info(one[0], len(one[1])), io.BytesIO(one[1]))

    return make


def then(first: Callable[[Path], object], change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A tar, its bytes changed afterwards."""

    def make(path: Path) -> None:
        first(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def compressed(mode: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.addfile(info("a.jpg", 1), io.BytesIO(b"1"))

    return make


def without_end(data: bytes) -> bytes:
    return data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // 512) * 512, b"\0")


def twice(data: bytes) -> bytes:
    return data + data.replace(b"a.", b"c.").replace(b"b.", b"d.")


def old_v7(path: Path) -> None:
    """Headers of 1979: no magic."""
    out = b""
    for name, data in PAIR:
        head = bytearray(info(name, len(data)).tobuf(tarfile.USTAR_FORMAT))
        head[257:512] = bytes(255)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        out += bytes(head) + data + bytes(-len(data) % 512)
    path.write_bytes(out + bytes(1024))


def bad_checksum(data: bytes) -> bytes:
    return data[:1024] + bytes([data[1024] ^ 1]) + data[1025:]  # the name of the second member


def a_sparse_file(path: Path) -> None:
    """GNU's own sparse format: one byte at an offset of a mebibyte."""
    head = bytearray(info("a.jpg", 1, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (1 << 20, 1)
    head[483:495] = b"%011o\0" % ((1 << 20) + 1)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(bytes(head) + b"x" + bytes(511) + bytes(1024))


LINK = info("a.png", kind=tarfile.SYMTYPE, linkname="a.jpg")
HARD = info("a.png", kind=tarfile.LNKTYPE, linkname="a.jpg")
UNICODE: Members = [("größe.jpg", b"1"), ("größe.cls", b"2"), ("日本.jpg", b"3"), ("a b 'c'.jpg", b"4")]
CUT = "Python's tarfile takes a cut at a block for the end: webdataset gives what comes before, without a word"
STAND = "webdataset makes samples that share a key, or are halves"

ZOO = [
    *(Animal(f"plain pairs, {name}", of(PAIR, name)) for name in FORMATS),
    Animal("long names, GNU", of([*PAIR, (f"{LONG}.jpg", b"1"), (f"{LONG}.cls", b"2")], "GNU")),
    Animal("long names, PAX", of([*PAIR, (f"{LONG}.jpg", b"1"), (f"{LONG}.cls", b"2")], "PAX")),
    Animal("a name split into ustar's prefix", of([("p" * 90 + "/" + "q" * 60 + ".jpg", b"1"), *PAIR])),
    *(Animal(f"unicode names and blanks, {name}", of(UNICODE, name)) for name in FORMATS),
    Animal("folders within names", of([("x/a.jpg", b"1"), ("x/a.cls", b"2"), ("y/z/b.jpg", b"3")])),
    Animal("the same base name in two folders", of([("x/a.jpg", b"1"), ("x/a.cls", b"2"), ("y/a.jpg", b"3")])),
    Animal("names that begin with ./", of([("./a.jpg", b"1"), ("./a.cls", b"2")])),
    Animal("names that begin with /", of([("/a.jpg", b"1"), ("/a.cls", b"2")])),
    Animal("extensions of several dots", of([("a.seg.png", b"1"), ("a.jpg", b"2"), ("a.left.seg.png", b"3")])),
    Animal("dots in folders", of([("v1.2/b.tar.gz", b"3"), ("v1.2/c.jpg", b"4")])),
    Animal("extensions in capitals", of([("a.JPG", b"1"), ("a.Cls", b"2")])),
    Animal("files without an extension", of([("README", b"r"), *PAIR, ("LICENSE", b"l")])),
    Animal("hidden files", of([(".hidden", b"h"), *PAIR, ("x/.a.jpg", b"i")])),
    Animal("a name that ends in a dot", of([("a.", b"1"), ("a.jpg", b"2")])),
    Animal("__meta__ members", of([("__meta__", b"m"), *PAIR, ("__info__/x.json", b"{}"), ("__end__.txt", b"z")])),
    Animal("double underscores inside names", of([("a__b__.jpg", b"1"), ("x__/a.jpg", b"2")])),
    Animal("empty files", of([("a.jpg", b""), ("a.cls", b""), ("b.jpg", b"")])),
    Animal("sizes of whole blocks", of([("a.jpg", bytes(512)), ("a.cls", bytes(1024)), ("b.jpg", b"1" * 10240)])),
    Animal("directories", of([info("d/", kind=tarfile.DIRTYPE), ("d/a.jpg", b"1"), ("d/a.cls", b"2")])),
    Animal("a directory amid a sample", of([("a.jpg", b"1"), info("d", kind=tarfile.DIRTYPE), ("a.cls", b"2")])),
    Animal("a symbolic link", of([("a.jpg", b"1"), LINK, ("a.cls", b"2")])),
    Animal("a hard link", of([("a.jpg", b"1"), HARD, ("a.cls", b"2")])),
    Animal(
        "a FIFO and a device", of([info("f.jpg", kind=tarfile.FIFOTYPE), info("n.jpg", kind=tarfile.CHRTYPE), *PAIR])
    ),
    Animal("headers of 1979 (v7)", old_v7),
    Animal("owners and times of ustar", of([info("a.jpg", 3, uname="größe", uid=7, mtime=2**31), *PAIR[2:]])),
    Animal("times with fractions, PAX", of([info("a.jpg", 3, mtime=1.5), *PAIR[2:]], "PAX")),
    Animal("an owner beyond octal, GNU", of([info("a.jpg", 3, uid=2**40), *PAIR[2:]], "GNU")),
    Animal("a global PAX comment", of(PAIR, "PAX", pax_headers={"comment": "0123abcd"})),
    Animal("end mark of two blocks, no padding", then(of(PAIR), lambda data: without_end(data) + bytes(1024))),
    Animal("zeros after the end mark", then(of(PAIR), lambda data: data + bytes(512 * 33))),
    Animal(
        "a global PAX path",
        of(PAIR, "PAX", pax_headers={"path": "x.jpg"}),
        "global PAX headers",
        "ValueError",
        "one name for all members",
    ),
    Animal("no end mark", then(of(PAIR), without_end), "has no end-of-archive mark after member b.cls", 2, CUT),
    Animal("cut between two samples", then(of(PAIR), lambda d: d[:2048]), "has no end-of-archive mark", 1, CUT),
    Animal("cut between members", then(of(PAIR), lambda d: d[:3584]), "has no end-of-archive mark", 2, CUT),
    Animal(
        "cut inside a member",
        then(of(PAIR), lambda d: d[:2700]),
        "ends inside member b.jpg",
        "ReadError",
        "both say so",
    ),
    Animal("a header with a wrong checksum", then(of(PAIR), bad_checksum), "has no end-of-archive mark", 1, CUT),
    Animal("two archives end to end", then(of(PAIR), twice), "goes on after its end-of-archive mark", 2, CUT),
    Animal(
        "garbage at the end", then(of(PAIR), lambda d: d + b"x" * 700), "goes on after its end-of-archive mark", 2, CUT
    ),
    Animal(
        "zero length", lambda path: path.write_bytes(b""), "is empty, not a tar archive", "ReadError", "both say so"
    ),
    Animal(
        "no tar",
        lambda path: path.write_bytes(b"hello" * 999),
        "is no readable tar archive",
        "ReadError",
        "both say so",
    ),
    Animal("no samples", of([("README", b"r")]), "holds no samples", 0, "an empty shard is a mistake elsewhere"),
    Animal(
        "a member twice",
        of([("a.jpg", b"1"), ("a.jpg", b"2")]),
        "member a.jpg stands twice",
        "ValueError",
        "both say so",
    ),
    Animal(
        "a.jpg and a.JPG",
        of([("a.jpg", b"1"), ("a.JPG", b"2")]),
        "member a.JPG stands twice",
        "ValueError",
        "both say so",
    ),
    Animal(
        "a sample in two pieces",
        of([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"3")]),
        "do not stand together",
        3,
        STAND,
    ),
    Animal("gzip", compressed("w:gz"), "is compressed (gzip)", 1, "no sample can be read at random from it"),
    Animal("xz", compressed("w:xz"), "is compressed (xz)", 1, "no sample can be read at random from it"),
    Animal("a sparse file, GNU", a_sparse_file, "is sparse", 1, "its bytes in the archive are not its content"),
]


def table() -> str:
    """For the page."""
    rows = ["| archive | Restrain | webdataset | why |", "|---|---|---|---|"]
    for one in ZOO:
        theirs = SAME if one.theirs is None else one.theirs if isinstance(one.theirs, str) else f"{one.theirs} samples"
        ours = SAME if one.ours == SAME else f"refused: {one.ours}"
        rows.append(f"| {one.what} | {ours} | {theirs} | {one.why} |".replace("1 samples", "1 sample"))
    return "\n".join(rows)
