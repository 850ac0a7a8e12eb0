"""``restrain data plan``: how a recipe's data will be read. No torch at the top."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restrain.cli.show import Overrides

if TYPE_CHECKING:
    from restrain.data.index import Index
    from restrain.data.order import Order, Plan

Size = Annotated[
    int | None, typer.Option(min=1, max=10**9, help="As in a recipe.", show_default="of the recipe, or 256 in 32")
]


def plan(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE|RUN|DIR", help="A recipe, a run, or an indexed set.")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="Ranks of a node.")] = 8,
    batch: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="batch.global", show_default="of the recipe")
    ] = None,
    group: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="batch.group", show_default="of the recipe")
    ] = None,
    labels: Annotated[bool, typer.Option(help="Read some labels, to see whether classes lie together.")] = True,
) -> None:
    """Say how a set will be read: steps, worlds that work, what nodes read and hold, how well batches are mixed.

    It takes the set's index and no data, but for some labels.
    """
    from restrain.data.order import Order, Plan, resolve_shuffle

    data, sizes, found = _settings(name, overrides or [], batch, group)
    samples = int(found.counts.sum())
    lanes, window = resolve_shuffle(samples, data["lanes"], data["window"])
    order = Order(found.counts, data["seed"], lanes, window, data["shuffle"], data["repeats"])
    planned = Plan(samples, *sizes, lanes, repeats=data["repeats"])
    for line in _lines(found, order, planned, nodes, gpus):
        typer.echo(line)
    if labels and data["source"] is not None:
        source = data["source"]()
        for line in _clustered(source, order, planned):
            typer.echo(line)
        source.close()


def _settings(
    name: str, overrides: list[str], batch: int | None, group: int | None
) -> tuple[dict[str, Any], tuple[int, int], Index]:
    """(what the order is made of, (batch, group), index)."""
    from restrain.data.sets import open_source
    from restrain.data.sources import FolderSource, ShardSource
    from restrain.data.survey.opening import indexed
    from restrain.errors import UserError

    folder = Path(name)
    if folder.is_dir() and not (folder / "recipe.lock.yaml").exists():
        found = indexed(folder, "train-*.tar" if any(folder.glob("train-*.tar")) else "*.tar")
        made = (ShardSource if found.kind == "shards" else FolderSource)(found, folder)
        there = any((folder / name).exists() for name in found.names[:1])
        data = {"lanes": "auto", "window": "auto", "seed": 0, "shuffle": True, "repeats": 1}
        return {**data, "source": (lambda: made) if there else None}, (batch or 256, group or 32), found
    from restrain.cli.named import resolve

    recipe = resolve(name, overrides)[0].recipe
    section = recipe.data
    source: Any = open_source(section, "train", classes=None)
    if not hasattr(source, "index"):
        raise UserError(f"data.name={section.name} has no index, so there is nothing to plan: it lies in memory.")
    data = {key: getattr(section, key) for key in ("lanes", "window", "shuffle", "repeats")}
    sizes = (batch or recipe.batch.global_, group or recipe.batch.group)
    return {**data, "seed": recipe.seed, "source": lambda: source}, sizes, source.index


def _lines(found: Index, order: Order, planned: Plan, nodes: int, gpus: int) -> list[str]:
    from restrain.data.order import allowed_worlds, check_world, spanning_worlds
    from restrain.data.survey import plan as survey

    world, (batch, group) = nodes * gpus, (planned.batch, planned.group)
    sizes = found.entries.numbers["size"]
    total, steps = int(sizes.sum()), planned.steps_per_epoch
    worlds, spanning = allowed_worlds(batch, group), spanning_worlds(batch, group)
    mixed = survey.mixing(order, planned)
    what = "shards" if found.kind == "shards" else "classes"
    lines = [
        f"set: {order.samples:,} samples in {len(found.names):,} {what}, {_size(total)}",
        f"epoch: {steps:,} steps of {batch:,} in groups of {group}; {order.samples - steps * batch:,} samples are left "
        f"out, other ones each epoch",
        f"worlds that work: {', '.join(map(str, worlds))}"
        + (f"; with groups that span ranks, up to {spanning[-1]}" if spanning else ""),
        f"order: {order.lanes} lane(s), windows of {order.window:,}"
        + (": a full shuffle" if order.lanes == 1 and order.window >= order.samples else ""),
        f"a batch is of {mixed.shards:,.0f} {what}, at most {mixed.most:,.0f} samples of one "
        f"(a full shuffle: {survey.full_mixing(found.counts, batch):,.0f})",
    ]
    if world in worlds or world in spanning:
        read = survey.reading(order, planned, sizes, nodes, gpus)
        lines.append(
            f"{nodes} node(s) of {gpus}: an epoch reads {read.amplification:.2f} x the set; {_size(read.live_bytes)} "
            f"are shuffled together; a node's cache wants {_size(read.node_bytes)} (all of its part: "
            f"{_size(int(total * read.amplification / nodes))})"
        )
        if nodes > order.lanes and order.lanes > 1:
            lines.append(
                f"data.lanes={order.lanes} is below the {nodes} nodes: they read the same shards. Give it more."
            )
        if order.lanes == 1 and nodes > 1:
            lines.append(
                "with one lane each node reads the whole set; data.lanes=64 divides it, where a cache is small"
            )
    else:
        try:
            check_world(batch, group, world)
        except Exception as error:
            lines.append(str(error))
    return lines


def _clustered(source: Any, order: Order, planned: Plan) -> list[str]:
    from restrain.data.survey.clustering import clustering

    found = clustering(source, order, planned)
    if found is None:
        return []
    lines = [f"labels: {found.group:.1%} of the pairs of a group are of one class ({found.chance:.1%} by chance)"]
    if found.clustered:
        lines.append(
            "classes lie together: groups see few of them. Mix the samples (restrain data pack SRC DST), or give "
            "data.window more."
        )
    return lines


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else f"{count / 1e6:,.1f} MB"
