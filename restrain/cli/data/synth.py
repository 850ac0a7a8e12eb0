"""``restrain data synth``: a set that is made up. No torch at the top."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer


def synth(
    samples: Annotated[int, typer.Argument(min=1, max=10**11, metavar="N", help="Samples.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the shards.")],
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "500x375",
    classes: Annotated[int, typer.Option(min=1)] = 1000,
    shard_size: Annotated[str, typer.Option(help="What a shard is filled up to.")] = "128MB",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    index_only: Annotated[bool, typer.Option("--index-only", help="No shards: an index of any size.")] = False,
) -> None:
    """Write a made-up set of any size, to time what reads it: pictures as large as photographs, with labels.

    With --index-only there are no shards, but the index of as many samples as wanted, for `data plan`.
    """
    from restrain.cli.data.pack import bytes_of
    from restrain.data import synthetic
    from restrain.data.progress import console_reporter
    from restrain.errors import UserError

    sides = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", size)
    if sides is None:
        raise UserError(f"--size {size}: WIDTHxHEIGHT in pixels, such as 500x375.")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty. Name a new folder.")
    if index_only:
        made = synthetic.write_index(target, samples)
    else:
        with console_reporter("writing") as reporter:
            made = synthetic.write_shards(
                target,
                samples,
                width=int(sides[1]),
                height=int(sides[2]),
                classes=classes,
                shard_bytes=bytes_of(shard_size),
                seed=seed,
                progress=reporter.progress,
            )
    size_text = "an index alone" if index_only else f"{sum(entry.size for entry in made.entries) / 1e9:.2f} GB"
    typer.echo(f"{int(made.counts.sum()):,} samples in {len(made.names):,} shard(s), {size_text}")
