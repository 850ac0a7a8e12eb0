"""``restrain why``: where a value comes from, what it means, and what it comes to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from restrain.recipe import Resolved
    from restrain.recipe.explain import Key
    from restrain.training.arithmetic import Scale

BLOCK = re.compile(r"(model\.drop_path)\.block:?([0-9]+)")


def why(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="Such as optimizer.lr; a section such as schedule; or model.drop_path.block:7, one block's drop rate.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE|RUN", help="A shipped recipe, the path of a file, or a run folder."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values to put over the recipe's, such as optimizer.lr=0.2."),
    ] = None,
) -> None:
    """Say why a key has its value.

    Who set it and what that overrode, its meaning, what it may be, and for a derived value the sum: steps of a
    duration, the learning rate after lr_rule, the learning rate at the schedule's moments, what batch.micro=auto gives,
    what parallel.strategy=auto goes by, the drop rate of each block.
    """
    from restrain.errors import UserError

    if recipe is None or "=" in recipe:
        raise UserError(
            f"Name a recipe or a run as well, whose {key} is explained: restrain why {key} digits_resnet20. "
            "restrain recipes lists those that ship."
        )
    from restrain.cli.named import resolve
    from restrain.recipe.explain import explain

    resolved, run = resolve(recipe, overrides or [])
    block = BLOCK.fullmatch(key)
    found = explain(resolved, f"{block[1]}.rate" if block else key)
    scale = _scale(resolved, run)
    if block:
        _one_block(scale, int(block[2]), key)
    elif found.is_section:
        _section(resolved, found, scale)
    else:
        _value(resolved, found, scale, run)


def _scale(resolved: Resolved, run: dict[str, Any] | None) -> Scale:
    from restrain.data.known import known_samples
    from restrain.training.arithmetic import Scale

    if run is not None and isinstance(run["lock"].get("samples"), int):
        return Scale(resolved.recipe, run["lock"]["samples"], "the run's lock")
    return Scale(resolved.recipe, *known_samples(resolved.recipe.data))


def _value(resolved: Resolved, found: Key, scale: Scale, run: dict[str, Any] | None) -> None:
    from restrain.cli.tables import show_facts
    from restrain.recipe import is_placement

    live = next((one for one in found.settings if one.fate is None), None)
    facts = [("set by", [_where(live.origin) if live else "the default; no recipe or option sets it"])]
    if run is not None:
        facts += [("started as", [_command(run)]), ("recipe now", [_now(resolved, found)])]
    lower = [f"{one.value}   {_where(one.origin)}: {one.fate}" for one in found.settings if one.fate is not None]
    facts += [("not used", lower)] if lower else []
    facts += [
        ("means", [(found.field.description or "").removesuffix(" Placement.")]),
        ("takes", [found.takes]),
        ("default", [found.default]),
        ("section", [_about(resolved, found)]),
        ("kind", [_PLACEMENT if is_placement(found.name) else _DEFINING]),
    ]
    sums = derived(found.name, found.value, scale, run)
    show_facts(f"{found.name} = {found.shown}", [*facts, *([("so", sums)] if sums else [])])


_PLACEMENT = "placement: says where or how a run happens, and may change when it goes on"
_DEFINING = "defines the run: another value is another run"


def _section(resolved: Resolved, found: Key, scale: Scale) -> None:
    from restrain.cli.tables import show_facts, show_table
    from restrain.recipe import leaves
    from restrain.recipe.writing import flow

    values = leaves(resolved.recipe)
    inner = [key for key in values if key.startswith(found.name + ".")]
    sums = derived(found.name, found.value, scale, None)
    facts = [("means", [found.field.description or ""]), ("takes", [found.takes])]
    show_facts(found.name, [*facts, *([("so", sums)] if sums else [])])
    typer.echo()
    show_table(("key", "value", "set by"), [(key, flow(values[key]), _where(resolved.origins[key])) for key in inner])


def _one_block(scale: Scale, block: int, key: str) -> None:
    from restrain.cli.tables import show_facts
    from restrain.errors import UserError
    from restrain.training.arithmetic import drop_path_lines, own_blocks

    blocks = own_blocks(scale.recipe.model.name)
    if blocks is not None and block >= blocks:
        has = f"the blocks 0 to {blocks - 1}" if blocks else "no residual blocks"
        raise UserError(f"{key}: {scale.recipe.model.name} has {has}.")
    show_facts(key, [("so", drop_path_lines(scale, block))])


def derived(key: str, value: Any, scale: Scale, run: dict[str, Any] | None) -> list[str]:
    """The sums behind a key; none for a value that is used as written."""
    from restrain.recipe import Duration
    from restrain.training import arithmetic

    if key == "batch.micro":
        return arithmetic.micro_lines(scale, (run or {}).get("placement"))
    if key == "parallel.strategy":
        from restrain.training import inspection

        return inspection.strategy_lines(scale.recipe, (run or {}).get("placement"))
    if key in ("batch.group", "batch.global"):
        return arithmetic.group_lines(scale)
    if key in ("optimizer.lr", "optimizer.lr_per", "optimizer.lr_rule"):
        return arithmetic.learning_rate_lines(scale)
    if key in ("schedule", "schedule.name", "schedule.at"):
        return arithmetic.schedule_lines(scale)
    if key in ("model.drop_path", "model.drop_path.rate"):
        return arithmetic.drop_path_lines(scale) if scale.recipe.model.drop_path.rate else ["0: no branch is dropped"]
    try:
        return arithmetic.duration_lines(scale, Duration.parse(value)) if isinstance(value, str) else []
    except ValueError:
        return []


def _where(origin: Any) -> str:
    if origin.layer == "default":
        return "default"
    if origin.text:
        return f"command line: {origin.text}"
    return f"{origin} ({'site file' if origin.layer == 'site' else origin.layer})"


def _command(run: dict[str, Any]) -> str:
    import shlex

    command = run.get("command") or []
    return shlex.join(["restrain", *command[1:]]) if command else "unknown: its run.json has no command"


def _now(resolved: Resolved, found: Key) -> str:
    """What the shipped recipe that a run was started from says today: a lock keeps the values, not their layers."""
    from restrain.errors import UserError
    from restrain.recipe import load
    from restrain.recipe.explain import explain

    try:
        shipped = load(resolved.name)
        value = explain(shipped, found.name).shown
    except UserError:
        return f"{resolved.name} is no shipped recipe, or has no such key any more"
    return f"{value}   {_where(shipped.origins[found.name])}"


def _about(resolved: Resolved, found: Key) -> str:
    path = found.name.rpartition(".")[0]
    doc = " ".join((found.section.__doc__ or "").split())
    return f"{path or 'the recipe itself'}: {doc}"
