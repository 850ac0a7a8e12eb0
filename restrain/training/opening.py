"""Opening a run folder: is this the same run, may this process write it, and where does it go on?

Everything here happens on rank 0, before a model is built; the other ranks are told the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restrain import __version__
from restrain.errors import UserError, WorldError
from restrain.recipe import Recipe, differences, is_placement, load, to_yaml
from restrain.run import checkpoint, journal, lockfile
from restrain.run.folder import RunFolder


@dataclass
class Opening:
    """What rank 0 found. ``step``: 0 for a fresh run. ``fork``: the checkpoint that a forked run begins from."""

    attempt: int
    step: int
    checkpoint: str | None = None
    finished: bool = False
    notices: list[str] = field(default_factory=list)
    interventions: list[dict[str, Any]] = field(default_factory=list)


def compare(
    recipe: Recipe, identity: Mapping[str, Any], lock_text: str, path: Path, allow: Sequence[str]
) -> list[dict]:
    """What differs from the run's lock and was allowed, as interventions (without their step).

    Raises UserError naming each difference that was not allowed with ``--allow KEY``. Placement may differ freely.
    """
    locked = load(str(path)).recipe
    found = [(key, a, b) for key, a, b in differences(locked, recipe) if not is_placement(key)]
    was = lockfile.identity(lock_text)
    found += [
        (f"lock.{k}", was.get(k), v) for k, v in identity.items() if k not in ("recipe", "from") and was.get(k) != v
    ]
    refused = [(key, a, b) for key, a, b in found if not _covered(key, allow)]
    if refused:
        listed = "; ".join(f"{key} is {_show(b)}, the run has {_show(a)}" for key, a, b in refused)
        raise UserError(
            f"{path.parent} holds a run of another recipe: {listed}. Leave these as they are to go on with it, allow a "
            f"change on purpose with --allow KEY (it is recorded), choose another --run, or branch off with --from "
            f"{path.parent}."
        )
    return [{"kind": "allow", "key": key, "was": _show(a), "now": _show(b)} for key, a, b in found]


def _covered(key: str, allow: Sequence[str]) -> bool:
    return any(key == a or key.startswith(a + ".") for a in allow)


def _show(value: Any) -> str:
    return str(value)


def autos(recipe: Recipe, resolved: Mapping[str, Any], lock: Path) -> dict[str, Any]:
    """What each defining ``auto`` of a recipe becomes: the lock's value where a run exists, else ``resolved``'s."""
    locked = load(str(lock)).recipe if lock.is_file() else None
    mine = {key: value for key, value in resolved.items() if _get(recipe, key) == "auto"}
    return {key: _get(locked, key) if locked is not None else value for key, value in mine.items()}


def settle(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced."""
    for key, value in values.items():
        recipe = _set(recipe, key.split("."), value)
    return recipe


def _get(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = getattr(section, part)
    return section


def _set(section: Any, parts: Sequence[str], value: Any) -> Any:
    inner = value if len(parts) == 1 else _set(getattr(section, parts[0]), parts[1:], value)
    return section.model_copy(update={parts[0]: inner})


def open_run(
    folder: RunFolder,
    recipe: Recipe,
    identity: Mapping[str, Any],
    *,
    allow: Sequence[str] = (),
    fork: Path | None = None,
) -> Opening:
    """Create the run or find where it goes on; afterwards journal and ledger end at the checkpoint. Under the lease."""
    text = folder.read_lock()
    interventions: list[dict] = []
    if text is not None:
        interventions = compare(recipe, identity, text, folder.lock_file, allow)
    lock_identity = dict(identity)
    lock_identity["from"] = str(fork) if fork is not None else lockfile.identity(text or "").get("from")
    if text is not None and folder.state == "finished" and not interventions:
        return Opening(0, folder.read_info()["step"], finished=True)

    found = checkpoint.newest(folder.checkpoints)
    if found.path is None and found.problems:
        raise WorldError(
            f"{folder.checkpoints} has checkpoints, but none that verifies, so nothing was started: "
            f"{' '.join(found.problems)} Restore one from a copy, or move the folder away to begin anew."
        )
    attempt = folder.begin_attempt()
    found = checkpoint.clean(folder.checkpoints, attempt, found) or found
    opening = Opening(attempt, found.step or 0, str(found.path) if found.path else None, notices=list(found.problems))
    held = False
    if found.path is not None:
        held = _scalars(found.path).get("held") is not None
    elif lock_identity["from"]:
        start = Path(lock_identity["from"])
        opening.checkpoint = str(start)
        opening.step = _scalars(start)["step"]
        interventions.append({"kind": "fork", "from": str(start)})
    if text is None or interventions:
        if text is not None:
            (folder.attempt_dir / "recipe.lock.yaml").write_text(text)
        folder.write_lock(lockfile.render(to_yaml(recipe), lock_identity, __version__))
    # A held line is written again, with its evaluation.
    journal.truncate_after(folder.journal, opening.step - 1 if held else opening.step, folder.attempt_dir)
    journal.truncate_after(folder.ledger, opening.step, folder.attempt_dir)
    # In run.json as well: a kill before the next checkpoint must not make them forgotten, the lock has changed already.
    known = folder.read_info().get("interventions", [])
    new = [{"at_step": opening.step, **i} for i in interventions]
    opening.interventions = known + [i for i in new if i not in known]
    folder.update_info({"interventions": opening.interventions})
    return opening


def _scalars(path: Path) -> dict[str, Any]:
    with checkpoint.Reader(path) as reader:
        return reader.scalars


def fork_point(text: str) -> Path:
    """The checkpoint that ``--from RUN[@STEP]`` names; UserError or WorldError where there is none."""
    path, _, step = text.partition("@")
    run = Path(path)
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"--from {text}: {run} is not a run folder (it has no checkpoints folder).")
    if not step:
        found = checkpoint.newest(folder)
        if found.path is None:
            raise WorldError(f"--from {text}: {folder} has no checkpoint that verifies. {' '.join(found.problems)}")
        return found.path
    at = folder / f"step-{step}"
    if not at.is_dir():
        there = ", ".join(p.name[5:] for p in sorted(folder.glob("step-*")) if p.name[5:].isdigit()) or "none"
        raise UserError(f"--from {text}: {run} has no checkpoint of step {step}. Steps there: {there}.")
    return at
