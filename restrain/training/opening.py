"""Opening a run folder: is this the same run, may this process write it, and where does it go on?

Everything here happens on rank 0, before a model is built; the other ranks are told the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restrain import __version__
from restrain.errors import UserError, WorldError, nearest
from restrain.models.foreign.contract import Build
from restrain.recipe import Recipe, differences, is_placement, leaves, load, to_yaml
from restrain.recipe.checks import show
from restrain.run import checkpoint, journal, lockfile
from restrain.run.folder import RunFolder
from restrain.training import forks


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
    _refuse_unknown(allow, recipe, locked, identity)
    found = [(key, a, b) for key, a, b in differences(locked, recipe) if not is_placement(key)]
    was = lockfile.identity(lock_text)
    found += [
        (f"lock.{k}", was.get(k), v) for k, v in identity.items() if k not in ("recipe", "from") and was.get(k) != v
    ]
    refused = [one for one in found if not any(_covered(key, allow) for key in (one[0], _WITH.get(one[0], "")))]
    if refused:
        listed = "; ".join(
            f"{key}{_MEANING.get(key, '')} is {_short(b)}, the run has {_short(a)}" for key, a, b in refused
        )
        raise UserError(
            f"{path.parent} holds a run of another recipe: {listed}. Leave these as they are to go on with it, allow a "
            f"change on purpose with --allow KEY (it is recorded), choose another --run, or branch off with --from "
            f"{path.parent}."
        )
    return [{"kind": "allow", "key": key, "was": show(a), "now": show(b)} for key, a, b in found]


_WITH = {"lock.decoder": "data.decode"}  # allowed together with this key, since it follows from it
_MEANING = {
    "lock.fingerprint": " (a hash of the training data)",
    "lock.samples": " (the number of training samples)",
    "lock.decoder": " (what decodes images)",
    "lock.model_code": " (the source of the network)",
    "lock.task_code": " (the source of the task)",
    "lock.stages_code": " (the source of the stages)",
    "lock.order_version": " (the rule that orders samples)",
}


def _refuse_unknown(allow: Sequence[str], recipe: Recipe, locked: Recipe, identity: Mapping[str, Any]) -> None:
    """A misspelt ``--allow`` would allow nothing."""
    known = {*leaves(recipe), *leaves(locked), *(f"lock.{key}" for key in identity if key not in ("recipe", "from"))}
    for key in allow:
        if not any(_covered(one, [key]) for one in known):
            raise UserError(
                f"--allow {key}: there is no such key.{nearest(key, known)} Allowed are keys of the recipe."
            )


def _covered(key: str, allow: Sequence[str]) -> bool:
    return any(key == a or key.startswith(a + ".") for a in allow)


def _short(value: Any) -> str:
    """A value for a person: of a hash the beginning."""
    text = show(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text


def autos(recipe: Recipe, resolved: Mapping[str, Any], lock: Path) -> dict[str, Any]:
    """What each defining ``auto`` of a recipe becomes: the lock's value where a run exists, else ``resolved``'s."""
    locked = None
    if lock.is_file():
        lockfile.read(lock)
        locked = load(str(lock)).recipe
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
    own: Build | None = None,
) -> Opening:
    """Create the run or find where it goes on; afterwards journal and ledger end at the checkpoint. Under the lease."""
    text = folder.read_lock()
    interventions: list[dict] = []
    if text is not None:
        interventions = compare(recipe, identity, text, folder.lock_file, allow)
    lock_identity = dict(identity)
    lock_identity["from"] = str(fork) if fork is not None else lockfile.identity(text or "").get("from")
    if text is not None and folder.state == "finished" and not interventions:
        return Opening(0, folder.stopped_at, finished=True)

    found = checkpoint.newest(folder.checkpoints)
    _refuse_gaps(folder, text, found)
    notices = [f"passed over: {problem}; going on from step {found.step}" for problem in found.problems]
    notices += _gaps(folder, found.step, every_step=str(recipe.track.every) == "1st")
    if interventions and found.path is not None:
        forks.check_allowed(recipe, found.path, own)
    attempt = folder.begin_attempt()
    found = checkpoint.clean(folder.checkpoints, attempt, found) or found
    opening = Opening(attempt, found.step or 0, str(found.path) if found.path else None, notices=notices)
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
    for path in (folder.ledger, folder.probes, *folder.path.glob("bad_samples*.jsonl")):
        journal.truncate_after(path, opening.step, folder.attempt_dir)
    # In run.json as well: a kill before the next checkpoint must not make them forgotten, the lock has changed already.
    known = folder.interventions
    new = [{"at_step": opening.step, **i} for i in interventions]
    opening.interventions = known + [i for i in new if i not in known]
    folder.update_info({"interventions": opening.interventions})
    return opening


def _refuse_gaps(folder: RunFolder, text: str | None, found: checkpoint.Found) -> None:
    """Raises WorldError where going on would begin anew, or begin another run, without anybody having said so."""
    if found.path is None and found.problems:
        raise WorldError(
            f"{folder.checkpoints} has checkpoints, but none that is whole, so nothing was started: "
            f"{'; '.join(found.problems)}. Restore one from a copy, or move the run folder away to begin anew."
        )
    if text is None and found.path is not None:
        raise WorldError(
            f"{folder.path} has checkpoints, but its recipe.lock.yaml is gone, so nobody knows what they were trained "
            f"with. Restore that file from a copy, or name another folder with --run."
        )
    if found.path is None and folder.state == "interrupted" and folder.stopped_at:
        raise WorldError(
            f"The run in {folder.path} stopped after step {folder.stopped_at}, and its checkpoints are gone. Restore "
            f"{folder.checkpoints} from a copy, or move the run folder away to begin anew."
        )


def _gaps(folder: RunFolder, step: int | None, every_step: bool) -> list[str]:
    """What is missing from the journals, which are whole up to a checkpoint's step unless somebody removed lines.

    every_step: the journal has a line a step; that of the checkpoint's own may be held back for its evaluation.
    """
    if step is None:
        return []
    last = journal.last_step(folder.ledger)
    found = []
    if last is None or last < step:
        ends = "has no line" if last is None else f"ends at step {last}"
        found.append(
            f"{folder.ledger} {ends}, the checkpoint is of step {step}: lines were removed or cut off. The run goes "
            f"on, but what was trained in them can no longer be audited"
        )
    if not folder.journal.exists():
        found.append(f"{folder.journal} was removed: the metrics up to step {step} are lost, the run goes on")
    elif every_step and (known := journal.last_step(folder.journal) or 0) < step - 1:
        found.append(f"{folder.journal} was cut: the metrics from step {known + 1} to {step} are lost, the run goes on")
    return found


def _scalars(path: Path) -> dict[str, Any]:
    with checkpoint.Reader(path) as reader:
        return reader.scalars
