# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad text and bad token sets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

from tests.bad_input.harness import Case, Outcome, Place, digits


def _pack(content: bytes | str, *argv: str, name: str = "text.txt") -> Callable[[Place], Outcome]:
    """Pack a file of this content."""

    def do(place: Place) -> Outcome:
        path = place.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.cli("data", "tokens", "{dir}/" + name, "{dir}/set", *argv)

    return do


def _empty(place: Place) -> Outcome:
    (place.folder / "texts").mkdir()
    return place.cli("data", "tokens", "{dir}/texts", "{dir}/set")


def _another(place: Place) -> Outcome:
    _pack("some text")(place)
    return _pack("some text", "--seed", "1")(place)


def _begun(place: Place) -> Outcome:
    work = place.folder / "set" / ".packing"
    work.mkdir(parents=True)
    (work / "request.json").write_text("{}")
    (work / "part-000000.len").write_bytes(b"")
    return _pack("some text")(place)


def _odd_character(place: Place) -> Outcome:
    (place.folder / "held.txt").write_text("tea for two\N{EURO SIGN}")
    return _pack("two for tea", "--tokenizer", "chars", "--eval", "{dir}/held.txt")(place)


def _raw(content: bytes, *argv: str) -> Callable[[Place], Outcome]:
    def do(place: Place) -> Outcome:
        (place.folder / "set").mkdir()
        (place.folder / "set" / "train.bin").write_bytes(content)
        return place.cli("data", "tokens", "{dir}/set", "{dir}/set", *argv)

    return do


LINES = [{"text": "one"}, {"content": "two"}]
JSON = "".join(json.dumps(line) + "\n" for line in LINES)

TOKENS = [
    Case(
        "A recipe names a token set",
        "command line: data.name = tokens, but task = classify trains on images. Use task=language with a language model, or name a set of images.",
        2,
        "Set task: language, as in language.md.",
        digits("data.name=tokens", "data.root=set"),
    ),
    Case(
        "The text is not there",
        "gone.txt does not exist. Name a text file, or a folder of .txt, .jsonl, .jsonl.gz, .jsonl.zst files.",
        2,
        "Correct the path.",
        lambda place: place.cli("data", "tokens", "{dir}/gone.txt", "{dir}/set"),
    ),
    Case(
        "A folder holds no text",
        "texts holds no text: none of its files is named .txt, .jsonl, .jsonl.gz, .jsonl.zst.",
        2,
        "Name a folder that does, or give the files one of these endings.",
        _empty,
    ),
    Case(
        "The text is empty",
        "The text is empty: it has no document with a character in it.",
        2,
        "Name another text.",
        _pack(""),
    ),
    Case(
        "A text is not UTF-8",
        "text.txt is not UTF-8: byte 0xe9 at offset 3 begins no character. Convert the file (iconv -f ENCODING -t UTF-8), or leave it out.",
        1,
        "Convert the file, or leave it out.",
        _pack(b"caf\xe9 au lait"),
    ),
    Case(
        "A JSON line has no text",
        "text.jsonl, line 2 has no text under 'text': its fields are 'content'. Name the field with --field.",
        2,
        "Name the field with --field, or repair the line.",
        _pack(JSON, name="text.jsonl"),
    ),
    Case(
        "A line is no JSON",
        "text.jsonl, line 2 is no JSON (Expecting value). Repair it, or leave it out.",
        1,
        "Repair the line.",
        _pack('{"text": "one"}\n{"text": \n', name="text.jsonl"),
    ),
    Case(
        "A compressed text was cut short",
        "text.jsonl.gz is a damaged archive: Compressed file ended before the end-of-stream marker was reached. Restore it from its origin.",
        1,
        "Restore the file.",
        _pack(gzip.compress(JSON.encode())[:-9], name="text.jsonl.gz"),
    ),
    Case(
        "The folder holds another token set",
        "set holds another token set already. Choose another folder, or remove that one.",
        2,
        "Choose another folder.",
        _another,
    ),
    Case(
        "The folder holds the beginnings of another set",
        "set holds the beginnings of another packing (other settings, or the text has changed). Run the command it was begun with, or remove set/.packing and the shards beside it.",
        2,
        "Finish that one, or remove them.",
        _begun,
    ),
    Case(
        "The tokenizer is no local file",
        "--tokenizer gpt2: No such file or directory. Name bytes, chars, or a local tokenizer.json; nothing is fetched from a hub.",
        2,
        "Download it, and name the file.",
        _pack("some text", "--tokenizer", "gpt2"),
    ),
    Case(
        "The tokenizer file is none",
        "--tokenizer text.txt is no tokenizer.json that `tokenizers` reads: Model missing. at line 1 column 2",
        2,
        "Name a tokenizer.json.",
        _pack("{}", "--tokenizer", "{dir}/text.txt"),
    ),
    Case(
        "A held-out text has other characters",
        "The evaluation text has the character '€' (U+20AC), which the training text, whose characters are the vocabulary, does not have. Use --tokenizer bytes, or another evaluation text.",
        2,
        "Use bytes, or another text.",
        _odd_character,
    ),
    Case(
        "A share of everything is held out",
        "--eval-share 100%: a share between 0 and 1 is meant, such as 10% or 0.1.",
        2,
        "Name a smaller share.",
        _pack("some text", "--eval-share", "100%"),
    ),
    Case(
        "A share and a text are held out",
        "--eval-share and --eval exclude each other: hold out a share of SRC, or another text.",
        2,
        "Give one of the two.",
        _pack("some text", "--eval-share", "10%", "--eval", "{dir}/text.txt"),
    ),
    Case(
        "Raw tokens are of another type",
        "set/train.bin has 3 bytes, which are no whole tokens of 2 bytes. Name the type that it was written in with --raw, or restore it.",
        1,
        "Name the type they were written in.",
        _raw(b"\1\2\3", "--raw", "u16"),
    ),
    Case(
        "Raw tokens are beyond the vocabulary",
        "set/train.bin holds token 3, beyond --vocab-size 3: the vocabulary is larger, or the tokens are not u16.",
        1,
        "Correct --vocab-size, or the type.",
        _raw(b"\1\0\3\0", "--raw", "u16", "--vocab-size", "3"),
    ),
]
