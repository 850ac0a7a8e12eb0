"""``restrain sweep``: many recipes from one, resolved before the first starts, run one after another."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

ASK_ABOVE = 100  # points
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY={A,B}|KEY={0..4}|KEY=VALUE]...", help="Axes of the sweep, and values for all points."),
]


def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A recipe; not needed to go on with --out.")
    ] = None,
    words: Words = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the sweep; one that exists is gone on with.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help=f"Do not ask, even for more than {ASK_ABOVE} points.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Freeze the recipes and stop.")] = False,
) -> int:
    """Train a recipe for every combination of some values, and put the results together."""
    from restrain.errors import UserError

    if name is None and out is None:
        raise UserError("sweep takes a recipe and axes: restrain sweep digits_resnet20 'optimizer.lr={0.05,0.1}'.")
    folder = out
    if folder is not None and (folder / "sweep.json").exists():
        plan = read_plan(folder)
        _refuse_another(folder, plan, name, words or [])
    else:
        if name is None:
            raise UserError(f"{folder} holds no sweep (no sweep.json). Name a recipe and axes to begin one there.")
        folder, plan = _begin(folder, name, words or [], yes)
    if dry_run:
        typer.echo(f"{len(plan['points'])} recipes in {folder / 'recipes'}; restrain sweep --out {folder} runs them")
        return 0
    return _go(folder, plan)


def _begin(folder: Path | None, name: str, words: list[str], yes: bool) -> tuple[Path, dict[str, Any]]:
    """Resolve every point, then write the folder: nothing is there unless all of them are sound."""
    from restrain.errors import UserError
    from restrain.recipe import load, to_yaml
    from restrain.run import sweep as sweeps
    from restrain.run.files import write_atomic

    axes, fixed = sweeps.parse(words)
    if not axes:
        raise UserError("Nothing to sweep: give a key several values, such as 'seed={0..4}' (quoted for the shell).")
    number = sweeps.count(axes)
    first = load(name, [*fixed, *next(sweeps.points(axes))])
    if number > ASK_ABOVE and not yes:
        raise UserError(
            f"{' x '.join(f'{len(axis.values):,} of {axis.key}' for axis in axes)} are {number:,} points, "
            f"{_how_long(first.name, number)}. Say --yes to run them all, or take fewer values."
        )
    found = []
    for at, overrides in enumerate(sweeps.points(axes)):
        found.append((sweeps.label(overrides, at), overrides, load(name, [*fixed, *overrides]).recipe))
    if folder is None:
        folder = Path("sweeps") / first.name / f"{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other things and no sweep. Name an empty or a new folder with --out.")
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    for label, overrides, recipe in found:
        kept = recipe if _comparable(fixed, overrides) else recipe.model_copy(update={"expect": None})
        text = f"# {first.name} {' '.join([*fixed, *overrides])}\n# A point of the sweep in {folder}.\n{to_yaml(kept)}"
        write_atomic(folder / "recipes" / f"{label}.yaml", text)
    expect = first.recipe.expect
    plan = {
        "recipe": first.name,
        "words": words,
        "metric": expect.metric if expect else first.recipe.checkpoint.best or "eval/top1",
        "better": expect.better if expect else "higher",
        "points": [{"name": label, "overrides": list(overrides)} for label, overrides, _ in found],
    }
    write_atomic(folder / "sweep.json", json.dumps(plan, indent=2) + "\n")
    return folder, plan


def _comparable(fixed: list[str], overrides: tuple[str, ...]) -> bool:
    """Whether what the recipe expects may be expected of a point as well."""
    from restrain.recipe.verdict import defines

    return not any(defines(word.partition("=")[0]) for word in [*fixed, *overrides])


def _how_long(recipe: str, number: int) -> str:
    """An estimate from the newest finished run of that recipe, where there is one."""
    from restrain.run.history import columns
    from restrain.run.summary import find_runs, summarise

    for path in sorted(find_runs(Path("runs") / recipe), reverse=True) if Path("runs", recipe).is_dir() else ():
        if summarise(path).state == "finished":
            wall = columns(path / "metrics.jsonl")["wall"].values
            hours = number * float(wall[-1] - wall[0]) / 3600
            return f"about {hours:,.1f} hours by {path}"
    return f"and how long one takes is not known: there is no finished run of {recipe} in runs/"


def read_plan(folder: Path) -> dict[str, Any]:
    """What is swept in ``folder``. Raises UserError for a damaged sweep.json."""
    from restrain.errors import UserError

    try:
        plan = json.loads((folder / "sweep.json").read_text())
        [(point["name"], point["overrides"]) for point in plan["points"]]
        return plan
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'sweep.json'} is damaged ({error}). Restore it, or begin anew elsewhere.") from None


def _refuse_another(folder: Path, plan: dict[str, Any], name: str | None, words: list[str]) -> None:
    from restrain.errors import UserError

    if name is not None and (Path(name).stem, words) != (plan["recipe"], plan["words"]):
        raise UserError(
            f"{folder} holds another sweep: {plan['recipe']} {' '.join(plan['words'])}. Leave the arguments out to go "
            f"on with it, or name another folder with --out."
        )


def _go(folder: Path, plan: dict[str, Any]) -> int:
    """Run what is not finished; the exit code of the whole: 0, that of a signal, or 1 where a point failed."""
    from restrain.run.summary import summarise

    failed = []
    for number, point in enumerate(plan["points"], 1):
        run = folder / "runs" / point["name"]
        if summarise(run).state == "finished":
            continue
        typer.echo(f"[{number}/{len(plan['points'])}] {' '.join(point['overrides'])}", err=True)
        code = _child(folder / "recipes" / f"{point['name']}.yaml", run)
        if code in (75, 130):
            typer.echo(f"stopped; go on with: restrain sweep --out {folder}", err=True)
            return code
        if code:
            failed.append(point["name"])
    _table(folder, plan)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}; try again with: restrain sweep --out {folder}", err=True)
    return 1 if failed else 0


def _child(recipe: Path, run: Path) -> int:
    """One point, in a process of its own; signals are its to handle: it saves and leaves."""
    command = [sys.executable, "-m", "restrain", "train", str(recipe), "--run", str(run)]
    process = subprocess.Popen(command, start_new_session=True, env=dict(os.environ))

    def forward(number: int, _frame: Any) -> None:
        process.send_signal(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, forward) for number in wanted}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _table(folder: Path, plan: dict[str, Any]) -> None:
    """Mean and standard deviation over seeds, printed and written."""
    from restrain.cli.tables import show_table
    from restrain.run.files import write_atomic
    from restrain.run.numbers import strict
    from restrain.run.summary import summarise
    from restrain.run.sweep import over_seeds

    metric, higher = plan["metric"], plan["better"] == "higher"
    values = {}
    for point in plan["points"]:
        one = summarise(folder / "runs" / point["name"])
        values[tuple(point["overrides"])] = one.metrics.get(metric) if one.state == "finished" else None
    cells = over_seeds(values)
    ranked = [cell.mean for cell in cells if cell.values]
    best = (max if higher else min)(ranked) if ranked else None
    rows = []
    for cell in cells:
        spread = f"± {cell.std:.3g}" if cell.std is not None else ""
        mean = f"{cell.mean:.5g}" if cell.values else "-"
        note = "best" if cell.mean == best else ""
        count = f"{len(cell.values)}" + (f", {cell.missing} missing" if cell.missing else "")
        rows.append((" ".join(cell.overrides) or plan["recipe"], mean, spread, count, note))
    show_table(("setting", metric, "std", "n", ""), rows)
    write_atomic(folder / "results.json", json.dumps([strict(cell.as_dict()) for cell in cells], indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["point", *[word.partition("=")[0] for word in plan["points"][0]["overrides"]], metric])
        for point in plan["points"]:
            settings = [word.partition("=")[2] for word in point["overrides"]]
            value = values[tuple(point["overrides"])]
            writer.writerow([point["name"], *settings, "" if value is None else value])
    typer.echo(f"sweep folder: {folder}")
