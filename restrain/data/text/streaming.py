"""Text that is written while its tokens are still being drawn. No torch here."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from restrain.data.text.codes import Bytes, Characters, FileTokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a character decodes to, some of whose bytes are still to come


def pieces(tokenizer: Bytes | Characters | FileTokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of some tokens, each piece as soon as it is certain; together they are ``tokenizer.decode`` of all."""
    if isinstance(tokenizer, Characters):
        return (tokenizer.decode(np.array([token])) for token in tokens)
    return _of_bytes(tokens) if isinstance(tokenizer, Bytes) else _of_file(tokenizer, tokens)


def _of_bytes(tokens: Iterable[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if token < Bytes.size:
            yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", True)


def _of_file(tokenizer: FileTokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The last word is kept back: a decoder may still change the spaces about it."""
    seen: list[int] = []
    whole = written = ""
    for token in tokens:
        seen.append(token)
        whole = tokenizer.decode(np.array(seen))
        certain = whole[: max(whole.rfind(" "), whole.rfind("\n"), 0)]
        if certain.startswith(written) and not certain.endswith(UNFINISHED):
            yield certain[len(written) :]
            written = certain
    yield whole[len(written) :]
