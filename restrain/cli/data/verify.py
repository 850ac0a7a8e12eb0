"""``restrain data verify``: whether a set is what its index says. No torch at the top."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from restrain.cli.data.index import Folder, Pattern, Workers

MOST = 20  # faults that are printed


def verify(
    folder: Folder,
    pattern: Pattern = "*.tar",
    decode: Annotated[bool, typer.Option("--decode", help="Also every image and label.")] = False,
    exclude: Annotated[bool, typer.Option("--exclude", help="Leave faulty samples out of the index.")] = False,
    workers: Workers = None,
) -> None:
    """Read a whole set and hold it against its index: sizes, checksums, and with --decode images and labels.

    Exit code 1 where something is wrong. With --exclude the faulty samples are left out from then on: the set has
    another fingerprint, and runs that began with the old one go on with it only by --allow.
    """
    import os

    from restrain.data.progress import console_reporter
    from restrain.data.survey import verify as survey
    from restrain.data.survey.opening import indexed
    from restrain.errors import printable

    found = indexed(folder, pattern)
    began = time.perf_counter()
    with console_reporter("verifying") as reporter:
        threads = workers or min(8, len(os.sched_getaffinity(0)))
        verdict = survey.verify(folder, found, decode=decode, workers=threads, reporter=reporter)
    seconds = time.perf_counter() - began
    for fault in verdict.faults[:MOST]:
        typer.echo(printable(str(fault)))
    if len(verdict.faults) > MOST:
        typer.echo(f"... and {len(verdict.faults) - MOST:,} more")
    kept = f" ({len(found.excluded):,} more are excluded)" if found.excluded else ""
    what = "shards" if found.kind == "shards" else "classes"
    how = "read and decoded" if decode else "read"
    typer.echo(
        f"{verdict.samples:,} samples of {len(found.names)} {what} {how}{kept}, "
        f"{len(verdict.faults)} fault(s), {verdict.bytes / 1e6 / seconds:,.0f} MB/s"
    )
    left = verdict.faults
    if exclude and verdict.faults:
        changed = survey.exclude(folder, verdict.faults)
        left = [fault for fault in verdict.faults if fault.j == survey.WHOLE]
        typer.echo(
            f"{len(verdict.faults) - len(left)} sample(s) are left out from now on, {int(changed.counts.sum()):,} "
            f"remain in the index; its fingerprint is {changed.fingerprint[:16]}... Runs that began before are of the "
            f"set with them."
        )
    if left:
        raise typer.Exit(1)
