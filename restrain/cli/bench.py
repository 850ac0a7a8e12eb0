"""``restrain bench``: measurements on this machine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restrain.cli.bench_step import step
from restrain.cli.show import Overrides

if TYPE_CHECKING:
    from restrain.bench.feeding import Feeding

app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
MOST = 300  # photographs that loaders are compared on
COPIES = 4


@app.callback()
def _group() -> None:  # with a callback typer keeps a lone command's name
    pass


app.command("step")(step)


@app.command("data")
def data(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE|RUN", help="A recipe, or a run folder.")],
    overrides: Overrides = None,
    vs: Annotated[
        str | None, typer.Option(help="Other loaders beside ours: timm, torchvision, webdataset, numpy, dali.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each part is measured.")] = 5.0,
    no_step: Annotated[bool, typer.Option(help="Do not measure the training step beside the loader.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
) -> None:
    """Say how fast the data of a recipe come, where the time goes, and what limits: storage, decoder, augmentations or
    model.

    With --vs the whole loader beside others', on the same photographs, as one thread or worker process each and as many
    as the recipe has.
    """
    from restrain.bench import feeding, peers
    from restrain.cli.named import check_out, resolve
    from restrain.data.progress import console_reporter
    from restrain.errors import UserError
    from restrain.training import build
    from restrain.training.inputs import refuse_text

    check_out(out, "--json")
    resolved, _ = resolve(name, overrides or [])
    recipe = resolved.recipe
    wanted, absent = peers.choose(vs.split(",")) if vs else ([], [])
    refuse_text(recipe, "bench data", "benchmarks/tokens.py times the loader of tokens.")
    if recipe.data.name == "digits":
        raise UserError("The digits are arrays in memory, so there is nothing to read or decode. Name another recipe.")
    with console_reporter() as reporter:
        opened = build.open_data(recipe, reporter)
    found = feeding.of_recipe(recipe, opened, seconds, not no_step)
    for line in _lines(found):
        typer.echo(line)
    figures: dict[str, Any] = _figures(found)
    if vs:
        for one in absent:
            typer.echo(f"{one} is not installed: left out.")
        figures["rows"] = _beside(opened.train, wanted, found.threads)
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


def _lines(found: Feeding) -> list[str]:
    from restrain.bench.feeding import LIMITS

    lines = [f"{'an image, in one thread':26}{'ms':>8}{'of it CPU':>12}"]
    lines += [f"  {name:24}{stage.wall_ms:8.3f}{stage.cpu_ms:12.3f}" for name, stage in found.stages.items()]
    if found.copy_ms:
        lines.append(f"  {'copy to the device':24}{found.copy_ms:8.3f}")
    whole = found.whole
    lines.append(
        f"{found.threads} data thread(s): {whole.images_per_s:,.0f} images/s, {whole.cpu_ms:.2f} ms of CPU an image "
        f"({found.images:,} images)"
    )
    if found.step is not None:
        lines.append(f"the training step alone: {found.step:,.0f} images/s")
    limit = "the network" if found.remote and found.limit == "read" else LIMITS[found.limit]
    lines.append(f"the limit is {limit}: {_advice(found)}")
    return lines


def _advice(found: Feeding) -> str:
    if found.limit == "step":
        spare = found.whole.images_per_s / (found.step or 1.0)
        return f"the data come {spare:.1f} times as fast as it takes them."
    stage = found.stages[found.limit]
    if found.limit == "read":
        waits = stage.wall_ms - stage.cpu_ms
        if found.remote:
            return (
                f"reading an image takes {stage.wall_ms:.1f} ms, {waits:.1f} of them waiting for what is fetched. A "
                f"nearer store, a cache that keeps the set from one epoch to the next (data.cache, data.cache_bytes), "
                f"smaller photographs (restrain data pack --short-side), or more data.threads."
            )
        return (
            f"reading an image takes {stage.wall_ms:.1f} ms, {waits:.1f} of them waiting. A nearer disk, or more "
            f"data.threads, which wait side by side."
        )
    cure = {
        "decode": "More cores, or photographs stored smaller.",
        "augment": "More cores, or fewer and cheaper operations in data.augment.",
        "collate": "Fewer processes a node, or a smaller batch.",
    }
    return f"it takes {stage.wall_ms:.2f} ms of an image. {cure[found.limit]}"


def _figures(found: Feeding) -> dict[str, Any]:
    return {
        "stages_ms": {name: vars(stage) for name, stage in found.stages.items()},
        "copy_ms": found.copy_ms,
        "threads": found.threads,
        "images_per_s": found.whole.images_per_s,
        "cpu_ms_per_image": found.whole.cpu_ms,
        "step_images_per_s": found.step,
        "limit": found.limit,
    }


def _beside(source: Any, names: list[str], threads: int) -> list[dict[str, Any]]:
    from restrain.bench import beside, photographs

    with tempfile.TemporaryDirectory() as folder:
        chosen = photographs.unpack(source, Path(folder), COPIES, MOST)
        rows = beside.compare(chosen, names, sorted({1, threads}), rounds=3)
    for line in beside.table(rows):
        typer.echo(line)
    return [row.as_dict() for row in rows]
