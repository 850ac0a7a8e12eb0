"""What installed packages bring, declared as entry points and named ``PACKAGE/NAME``: models, tasks, data, stages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from restrain.errors import UserError, nearest

GROUPS = {
    "model.name": "restrain.models",
    "task": "restrain.tasks",
    "data.set": "restrain.data",
    "data.stages": "restrain.stages",
}


def find(key: str, name: str) -> Any:
    """What ``PACKAGE/NAME``, the value of the recipe's ``key``, stands for.

    Raises UserError where no installed package declares it, or where it cannot be imported.
    """
    point = _point(key, name)
    try:
        return point.load()
    except Exception as error:  # anything may happen in code that is not ours
        raise UserError(
            f"{key}: {name} is {point.value} of {_package(point)}, which cannot be imported: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}."
        ) from error


def version(key: str, name: str) -> str:
    """``PACKAGE VERSION`` of what stands behind a name, for a run's lock."""
    point = _point(key, name)
    return f"{_package(point)} {point.dist.version if point.dist else 'unknown'}"


def _point(key: str, name: str) -> EntryPoint:
    known = {f"{_package(point)}/{point.name}": point for point in entry_points(group=GROUPS[key])}
    found = {_plain(full): point for full, point in known.items()}.get(_plain(name))
    if found is not None:
        return found
    listed = (
        f"Those of installed packages are {', '.join(sorted(known))}." if known else "No installed package has any."
    )
    raise UserError(
        f"{key}: there is no {name}.{nearest(name, known)} PACKAGE/NAME is an entry point of the group {GROUPS[key]}. "
        f"{listed}"
    )


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _plain(name: str) -> str:
    """Packages are found whatever their name's case and dashes, as pip finds them."""
    package, _, rest = name.partition("/")
    return f"{package.lower().replace('-', '_').replace('.', '_')}/{rest}"
