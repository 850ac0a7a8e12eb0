"""From a name or a file and overrides to one checked recipe that knows where each of its values came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from restrain.errors import UserError, nearest
from restrain.recipe.building import build
from restrain.recipe.layers import command_line, lay
from restrain.recipe.nodes import Mapping, Origin, Scalar, read_file, relative
from restrain.recipe.schema import Recipe
from restrain.recipe.site import Site, find_site, read_site, site_layer
from restrain.recipe.writing import leaves

MAX_BASES = 2
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Resolved:
    """A recipe, what it is called, and where everything in it came from."""

    recipe: Recipe
    name: str
    path: Path
    origins: dict[str, Origin]
    """Dotted key of every leaf to the layer, file and line that set it."""
    site: Site
    layers: tuple[Mapping, ...] = ()
    """What was laid over one another, the lowest first: bases, the recipe, the site file, the command line."""


def folder() -> Path:
    """The folder of shipped recipes: inside the installed package, else beside it in the repository."""
    inside = PACKAGE / "recipes"
    beside = PACKAGE.parent / "recipes"
    if not inside.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        return beside
    return inside


def available() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a shipped recipe; UserError names the nearest."""
    names = available()
    if name in names:
        return folder() / f"{name}.yaml"
    raise UserError(
        f"There is no recipe {name!r}.{nearest(name, names)} Shipped recipes: {', '.join(names) or 'none'}; "
        f"a file of your own is named by its path, such as ./{name or 'mine'}.yaml."
    )


def load(name_or_file: str, overrides: Sequence[str] = (), *, site: Path | None = None) -> Resolved:
    """The checked recipe of a shipped name or a file, under the site file and ``key=value`` overrides.

    Raises UserError, one paragraph that names key, value, place and cure.
    """
    path = _locate(name_or_file)
    files, names = _with_bases(path)
    typed = command_line(overrides)
    settings, site_nodes = read_site(find_site(site))
    place = site_layer(site_nodes, names, lay(_written(files, path), typed))
    return _resolve(names[0], path, settings, (*files, place, typed))


def override(loaded: Resolved, overrides: Sequence[str]) -> Resolved:
    """The recipe under further ``key=value`` overrides, laid on those that it was loaded with."""
    *lower, typed = loaded.layers
    return _resolve(loaded.name, loaded.path, loaded.site, (*lower, lay(typed, command_line(overrides))))


def _resolve(name: str, path: Path, site: Site, layers: tuple[Mapping, ...]) -> Resolved:
    *files, place, typed = layers
    recipe, origins = build(lay(lay(_written(files, path), place), typed), Recipe, name)
    default = Origin("default")
    by_key = {key: origins.get(key, default) for key in leaves(recipe)}
    return Resolved(recipe, name, path, by_key, site, layers)


def _written(files: Sequence[Mapping], path: Path) -> Mapping:
    merged = reduce(lay, files)
    return Mapping(merged.entries, Origin("recipe", path), merged.keys)


def _locate(name_or_file: str) -> Path:
    if name_or_file.endswith((".yaml", ".yml")) or "/" in name_or_file:
        path = Path(name_or_file)
        if path.is_dir():
            raise UserError(f"{name_or_file} is a folder. Name a recipe file in it, or a shipped recipe.")
        if not path.is_file():
            near = nearest(path.stem, available())
            raise UserError(f"There is no file {name_or_file}.{near}")
        return path
    return find(name_or_file)


def _with_bases(path: Path) -> tuple[list[Mapping], list[str]]:
    """What stands in the file and in its bases, the lowest first, and the names of all of them, its own first."""
    chain = [path]
    layers: list[Mapping] = []
    names: list[str] = []
    while len(layers) < len(chain):
        current = chain[-1]
        top = read_file(current, "base" if layers else "recipe")
        entries = dict(top.entries)
        names.append(_name(current, entries))
        base = entries.pop("base", None)
        layers.append(Mapping(entries, top.origin, top.keys))
        if base is None:
            continue
        if not isinstance(base, Scalar) or not base.text:
            raise UserError(f"{base.origin}: base takes the name or the file of another recipe.")
        below = _base(base, current)
        if below.resolve() in [one.resolve() for one in chain]:
            circle = " -> ".join(one.stem for one in [*chain, below])
            raise UserError(f"{base.origin}: base goes round in a circle: {circle}.")
        if len(chain) > MAX_BASES:
            names_so_far = " -> ".join(one.stem for one in [*chain, below])
            raise UserError(f"{base.origin}: a recipe stands on at most {MAX_BASES} bases, not {names_so_far}.")
        chain.append(below)
    return layers[::-1], names


def _base(base: Scalar, current: Path) -> Path:
    """A base is a file beside the recipe that names it, else a shipped recipe."""
    if base.text.endswith((".yaml", ".yml")):
        beside = current.parent / base.text
        if beside.is_file():
            return beside
        raise UserError(f"{base.origin}: base {base.text!r}: there is no file {relative(beside)}.")
    beside = current.parent / f"{base.text}.yaml"
    if beside.is_file():
        return beside
    try:
        return find(base.text)
    except UserError as error:
        raise UserError(f"{base.origin}: base: {str(error)[0].lower()}{str(error)[1:]}") from None


def _name(path: Path, entries: dict) -> str:
    """The recipe's name. A run's lock says it in its ``lock`` section, which is no part of the recipe."""
    if not path.name.endswith(".lock.yaml"):
        return path.stem
    lock = entries.pop("lock", None)
    name = lock.entries.get("recipe") if isinstance(lock, Mapping) else None
    return name.text if isinstance(name, Scalar) and name.text else path.name.removesuffix(".lock.yaml")
