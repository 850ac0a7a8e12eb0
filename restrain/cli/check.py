"""``restrain check``: what a recipe builds and needs, and whether one batch goes through it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restrain.cli.show import Name, Overrides

if TYPE_CHECKING:
    from torch import nn

    from restrain.training.build import Data
    from restrain.training.memory import Memory


def check(
    recipe: Name,
    overrides: Overrides = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Leave out the forward and backward pass.")] = False,
) -> None:
    """Look at a recipe before a run: sizes, steps, schedule, memory, data, and one batch through all of it.

    Nothing of the network is allocated but for that batch. Exit code 0: it fits; 2: the recipe or the command must
    change; 1: the data or the machine.
    """
    from restrain.recipe import load

    resolved = load(recipe, overrides or [])
    # Torch comes after the recipe: what is wrong there is said at once.
    from restrain.cli.tables import show_facts
    from restrain.parallel import precision
    from restrain.parallel.layout import layout_of
    from restrain.parallel.world import World
    from restrain.recipe.schema_data import WITHOUT_ROOT
    from restrain.training import build, inspection, network, placement, spans
    from restrain.training.arithmetic import Scale
    from restrain.training.choosing import Choice
    from restrain.training.inputs import image_sides
    from restrain.training.memory import memory_of, needed, offloads, process_memory
    from restrain.training.micro import PIXELS_A_TOKEN

    wanted = resolved.recipe
    device = placement.device_of(wanted, World())
    number_format = precision.resolve(wanted.precision, device)
    world = inspection.world_of(wanted)
    spans.check(wanted, layout_of(wanted.parallel, world).data)
    data, found, problem = _open(wanted)
    if data is None and not isinstance(wanted.model.classes, int):
        found.append(f"model.classes=auto: as if the vocabulary were {build.UNKNOWN_VOCABULARY}")
    wanted = build.with_classes(wanted, data)
    model = inspection.model_without_memory(wanted)
    sides = image_sides(wanted)
    pixels = data.pixels if data else sides[0] ** 2 if sides else wanted.data.context * PIXELS_A_TOKEN
    need = needed(wanted, model, process_memory(device, world)) if world.size > 1 else None
    where = placement.place(wanted, world, device, pixels, trains=True, need=need)
    micro, layout = where.micro, where.layout(world)
    placement.check_layout(wanted, layout, device)
    network.check_layers(wanted, model, layout.tensor, device)
    scale = Scale(wanted, int(data.train.counts.sum()) if data else None, "data.root" if data else _unknown(wanted))
    if data and wanted.data.name in WITHOUT_ROOT:
        scale = Scale(wanted, scale.samples, f"the {wanted.data.name} set")
    memory = memory_of(wanted, model, None, micro, number_format, layout)
    laid = inspection.layout_lines(wanted, model, memory, Choice(layout, where.because), world)
    if offloads(wanted, layout):
        laid += inspection.offload_lines(memory, layout, world, refuse=device.type == "cuda")
    show_facts(
        " ".join([resolved.name, *(overrides or [])]),
        [
            ("model", inspection.model_lines(wanted, model)),
            ("blocks", inspection.block_lines(wanted, model)),
            ("weight decay", inspection.group_lines(wanted, model)),
            ("data", found),
            ("length", inspection.length_lines(scale)),
            ("batch", inspection.batch_lines(wanted, micro, device, layout)),
            ("learning rate", inspection.schedule_lines(scale)),
            ("memory", inspection.memory_lines(memory, number_format)),
            *([("layout", laid)] if laid else []),
        ],
    )
    if problem is not None:
        raise problem
    if not no_run:
        show_facts("", [("dry run".ljust(len("learning rate")), _run(wanted, data, model, memory))])


def _open(recipe: Any) -> tuple[Data | None, list[str], Exception | None]:
    """The data, lines about them, and what is wrong with them, which is told last."""
    from restrain.data.progress import console_reporter
    from restrain.errors import RestrainError
    from restrain.recipe.schema_data import WITHOUT_ROOT
    from restrain.training import build, inspection

    made = recipe.data.name in WITHOUT_ROOT
    if not made and recipe.data.root is None:
        return None, [f"{recipe.data.name}: {_unknown(recipe)} (data.root=FOLDER, or the site file)"], None
    try:
        with nullcontext() if made else console_reporter() as reporter:
            data = build.open_data(recipe, reporter)
    except RestrainError as error:
        return None, ["does not fit; what is wrong stands below"], error
    where = "" if made else f" in {recipe.data.root}"
    first, *rest = inspection.data_lines(data)
    return data, [f"{recipe.data.name}{where}: {first}", *rest], None


def _unknown(recipe: Any) -> str:
    return "data.root is not set" if getattr(recipe.data, "root", "") is None else "the data cannot be used"


def _run(recipe: Any, data: Data | None, model: nn.Module, memory: Memory) -> list[str]:
    from restrain.insight.units import size
    from restrain.training.dry_run import dry_run, held_and_needed

    held, needed = held_and_needed(recipe, model, memory)
    if needed > held:
        return [f"left out: one micro-batch takes about {size(needed)}, and this device has {size(held)}"]
    found = dry_run(recipe, data, memory.micro)
    peak = f", {size(found.peak)} of GPU memory at most" if found.peak is not None else ""
    rows = {"images": "images", "tokens": "windows"}.get(recipe.data.kind, "sequences")
    images = f"{rows} of the training set" if found.real else f"made-up {rows}"
    where = f"on {found.device} in {found.number_format}"
    return [
        f"{found.rows} {images} forward and backward {where}: {found.seconds:.2f} s{peak}",
        f"loss {found.loss:.4g}, norm of the gradient {found.norm:.4g}: finite",
    ]
