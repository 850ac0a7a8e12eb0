"""What a person names on the command line: a shipped recipe, a file, the folder of a run, or where to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restrain.recipe import Resolved


def resolve(name: str, overrides: Sequence[str] = ()) -> tuple[Resolved, dict[str, Any] | None]:
    """The recipe under its overrides; of a run also what its run.json says, and its lock as ``lock``.

    Raises UserError for a folder that is no run's, and what ``load`` raises; WorldError for an edited lock.
    """
    from restrain.errors import UserError
    from restrain.recipe import available, load

    folder = Path(name)
    if name in available() or not folder.is_dir():
        return load(name, overrides), None
    from restrain.run import lockfile
    from restrain.run.folder import RunFolder

    run = RunFolder(folder)
    if not run.exists():
        raise UserError(
            f"{name} is a folder, but not of a run: it has no recipe.lock.yaml. Name a recipe, a file or a run folder."
        )
    text = lockfile.read(run.lock_file)
    return load(str(run.lock_file), overrides), {**run.read_info(), "lock": lockfile.identity(text)}


def check_out(path: Path | None, option: str) -> None:
    """Raises UserError where no file can be written at ``path``, before the work whose result goes there."""
    from restrain.errors import UserError

    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"{option} {path}: name a file in a folder that exists.")
