"""Tokenizers: UTF-8 bytes, characters, or a `tokenizer.json` file read by the `tokenizers` library. No torch here.

Characters are packed in two steps, since their vocabulary is known only when the training text has been read: parts
hold code points, shards their numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from restrain.data.text.manifest import Manifest
from restrain.errors import UserError

CODE_POINTS = 0x110000
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[SEP]")
FILE = "tokenizer.json"  # the name of the copy beside the manifest


class Tokenizer(Protocol):
    """Text to numbers. width: of the numbers that :meth:`encode` gives, before :meth:`finish`."""

    name: str
    width: np.dtype

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of some tokens; ends of documents are left out, bytes that are no UTF-8 stand as U+FFFD."""
        ...


class Bytes:
    """256 tokens, the bytes of UTF-8."""

    name, width, size = "bytes", np.dtype("<u1"), 256
    sha256 = hashlib.sha256(b"utf-8 bytes").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: np.ndarray) -> str:
        return tokens[tokens < self.size].astype(np.uint8).tobytes().decode(errors="replace")


class Characters:
    """A token a character, numbered in the order of their code points."""

    name, width = "chars", np.dtype("<u4")

    def __init__(self, vocabulary: str = ""):
        """vocabulary: sorted; empty while parts are made, which needs none."""
        self.vocabulary, self.size = vocabulary, len(vocabulary)
        self.sha256 = hashlib.sha256(vocabulary.encode()).hexdigest()
        self._points = np.frombuffer(vocabulary.encode("utf-32-le"), "<u4")
        self._numbers = np.full(CODE_POINTS, -1, np.int64)
        self._numbers[self._points] = np.arange(self.size)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-32-le"), "<u4") for text in texts]

    def finish(self, points: np.ndarray) -> np.ndarray:
        """Code points to tokens, int64. Raises UserError for a character outside the vocabulary."""
        tokens = self._numbers[points]
        if tokens.size and tokens.min() < 0:
            odd = chr(int(points[int(np.argmin(tokens))]))
            raise UserError(
                f"The evaluation text has the character {odd!r} (U+{ord(odd):04X}), which the training text, whose "
                f"characters are the vocabulary, does not have. Use --tokenizer bytes, or another evaluation text."
            )
        return tokens

    def decode(self, tokens: np.ndarray) -> str:
        return self._points[tokens[tokens < self.size]].tobytes().decode("utf-32-le")


class FileTokenizer:
    """A `tokenizer.json`, as `tokenizers.Tokenizer.save` writes it; no special tokens are added to a text."""

    name = "file"

    def __init__(self, path: str | Path):
        """Raises UserError where the file or the library is missing, or the file is no tokenizer."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the threads that pack are the parallelism
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError(
                "A tokenizer file needs the library tokenizers: pip install 'restrain[text]'. Bytes and chars need "
                "nothing."
            ) from None
        self.path = Path(path)
        try:
            self.content = self.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"--tokenizer {path}: {error.strerror}. Name bytes, chars, or a local tokenizer.json; nothing is "
                f"fetched from a hub."
            ) from error
        try:
            self._tokenizer: Any = Tokenizer.from_str(self.content.decode())
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"--tokenizer {path} is no tokenizer.json that `tokenizers` reads: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.width = np.dtype("<u2" if self.size <= 1 << 16 else "<u4")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(one.ids, self.width) for one in found]

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(tokens.tolist())

    def end(self, wanted: str | None) -> int:
        """The number of the token that ends a document. Raises UserError where the tokenizer has none such."""
        for token in ENDS if wanted is None else (wanted,):
            number = self._tokenizer.token_to_id(token)
            if number is not None:
                return number
        if wanted is not None:
            raise UserError(f"--end {wanted}: {self.path} has no such token. Name one of its own, or none.")
        raise UserError(
            f"{self.path} has none of the usual tokens that end a document ({', '.join(ENDS)}). Name it with "
            f"--end TOKEN, or say --end none."
        )


def end_of(tokenizer: Bytes | Characters | FileTokenizer, wanted: str | None) -> int | None:
    """The token after each document. wanted: ``none``, ``new`` (one number more than the tokenizer has), a token of a
    file; None: new for bytes, none for chars, the usual one of a file. Raises UserError where there is no such."""
    if wanted == "none" or (wanted is None and isinstance(tokenizer, Characters)):
        return None
    if isinstance(tokenizer, FileTokenizer) and wanted != "new":
        return tokenizer.end(wanted)
    if wanted not in (None, "new"):
        raise UserError(f"--end {wanted}: with --tokenizer {tokenizer.name} it is new (one token more) or none.")
    return tokenizer.size


def named(name: str) -> Bytes | Characters | FileTokenizer:
    """The tokenizer of ``--tokenizer``: bytes, chars, or the path of a file."""
    if name == "bytes":
        return Bytes()
    return Characters() if name == "chars" else FileTokenizer(name)


def of_set(manifest: Manifest, root: str | Path) -> Bytes | Characters | FileTokenizer:
    """The tokenizer that a set was packed with, to encode a prompt or decode a sample."""
    return described(manifest.tokenizer, root)


def described(known: Mapping[str, str], root: str | Path) -> Bytes | Characters | FileTokenizer:
    """The tokenizer that a manifest describes, a file of which lies in ``root``. UserError where it is not known."""
    if known["name"] == "bytes":
        return Bytes()
    if known["name"] == "chars":
        return Characters(known["vocabulary"])
    if known["name"] == "file":
        return FileTokenizer(Path(root) / known["file"])
    raise UserError(f"{root} was made of raw tokens: its manifest does not know their tokenizer.")
