"""``restrain data tokens``: text to shards of tokens. No torch here."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="A text file, or a folder of .txt, .jsonl, .jsonl.gz and .jsonl.zst.")
]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder for the shards and restrain-tokens.json.")]
TokenizerName = Annotated[str, typer.Option("--tokenizer", help="bytes, chars, or a local tokenizer.json.")]
Share = Annotated[
    str | None, typer.Option(help="Hold out the last share, such as 10%: of one text's characters, else of documents.")
]
Evaluation = Annotated[Path | None, typer.Option("--eval", metavar="SRC2", help="Text that is held out whole.")]
Size = Annotated[str, typer.Option(help="Tokens of a shard: 500k, 100M, 1G. A document is in one shard.")]
FieldName = Annotated[str, typer.Option("--field", help="Of a JSON line that holds its text.")]
SplitOn = Annotated[str | None, typer.Option(help="What separates the documents of a .txt file; \\n is a line end.")]
End = Annotated[
    str | None, typer.Option(help="Token after each document: one of the tokenizer's, new (one token more), or none.")
]
Shuffle = Annotated[bool, typer.Option(help="Documents in a keyed order, or in that of the text.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of that order.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="the cores, at most 8")]
Raw = Annotated[str | None, typer.Option(help="u16 or u32: SRC holds raw .bin files; only write a manifest to them.")]
Vocabulary = Annotated[int | None, typer.Option(min=1, help="With --raw: how many tokens there are.")]


def tokens(
    source: Source,
    target: Target,
    tokenizer: TokenizerName = "bytes",
    eval_share: Share = None,
    evaluation: Evaluation = None,
    shard_size: Size = "100M",
    field: FieldName = "text",
    split_on: SplitOn = None,
    end: End = None,
    shuffle: Shuffle = True,
    seed: Seed = 0,
    workers: Workers = None,
    raw: Raw = None,
    vocab_size: Vocabulary = None,
) -> None:
    """Pack text into shards of tokens for language models: train-000000.bin, val-000000.bin, ...

    A shard is raw little-endian u16 or u32 tokens. The same text and options give the same bytes, whatever the
    workers; after a kill the same command goes on.
    """
    from restrain.data.progress import console_reporter
    from restrain.data.text.documents import Reading
    from restrain.data.text.packing import Settings, pack
    from restrain.errors import UserError

    if raw is not None:
        return _describe(source, target, raw, vocab_size, end)
    if vocab_size is not None:
        raise UserError("--vocab-size is for --raw: a tokenizer knows its own.")
    if eval_share is not None and evaluation is not None:
        raise UserError("--eval-share and --eval exclude each other: hold out a share of SRC, or another text.")
    separator = None if split_on is None else split_on.replace("\\n", "\n").replace("\\t", "\t")
    if separator == "":
        raise UserError("--split-on is empty. Name what stands between two documents, such as '\\n\\n'.")
    share = None if eval_share is None else _share(eval_share)
    reading = Reading(field, separator)
    settings = Settings(tokenizer, end, share, _size(shard_size), shuffle, seed, reading)
    with console_reporter("packing") as reporter:
        pack(source, target, settings, evaluation=evaluation, workers=workers, reporter=reporter)


def _describe(source: Path, target: Path, raw: str, vocab_size: int | None, end: str | None) -> None:
    from restrain.data.progress import console_reporter
    from restrain.data.text.raw import describe
    from restrain.errors import UserError

    if source.resolve() != target.resolve():
        raise UserError(f"--raw writes a manifest beside the files: give the same folder twice ({source} {source}).")
    if end not in (None, "none") and not end.isdigit():
        raise UserError(f"--end {end}: with --raw it is the number of the token after each document.")
    with console_reporter() as reporter:
        describe(source, raw, vocab_size, None if end in (None, "none") else int(end), reporter)


def _share(text: str) -> Fraction:
    """``10%`` or ``0.1`` as a fraction. Raises UserError outside (0, 1)."""
    from restrain.errors import UserError

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", text)
    share = Fraction(found[1]) / (100 if found[2] else 1) if found else Fraction(0)
    if not 0 < share < 1:
        raise UserError(f"--eval-share {text}: a share between 0 and 1 is meant, such as 10% or 0.1.")
    return share


def _size(text: str) -> int:
    """``100M`` as a number of tokens."""
    from restrain.errors import UserError

    found = re.fullmatch(r"([1-9][0-9]*)([kMG]?)", text)
    if not found:
        raise UserError(f"--shard-size {text}: a number of tokens is meant, such as 500k, 100M or 1G.")
    return int(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]]
