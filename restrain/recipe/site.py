"""The site file: what belongs to this place and not to a run. Its own small closed schema, nothing numerical.

``$RESTRAIN_SITE``, else ``~/.config/restrain/site.yaml``::

    data: {imagenet: /data/imagenet, cifar10_resnet20: /scratch/cifar10, folder: /data/pictures}
    wandb: {entity: our-team}
    slurm: {partition: gpu, account: vision}
    modules: [cuda/13.0]
    interface: ib0
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from restrain.errors import UserError
from restrain.recipe.base import AsTuple, Section
from restrain.recipe.building import build
from restrain.recipe.layers import name_of
from restrain.recipe.nodes import Mapping, Node, Origin, Scalar, read_file, relative
from restrain.recipe.schema_data import WITHOUT_ROOT


class SiteWandb(Section):
    """Weights & Biases at this place."""

    entity: str | None = Field(default=None, description="User or team.")
    project: str | None = Field(default=None, description="Project.")
    mode: Literal["disabled", "offline", "online"] | None = Field(
        default=None, description="What this place's network allows: off, to local files, or sent."
    )
    tags: Annotated[tuple[str, ...], AsTuple] | None = Field(
        default=None, description="Tags of all runs of this place."
    )


class SiteSlurm(Section):
    """Slurm at this place."""

    partition: str | None = Field(default=None, description="Partition.")
    account: str | None = Field(default=None, description="Account.")


class Site(Section):
    """What a place says of itself."""

    data: dict[str, str] = Field(
        default={}, description="Folder of a set, by recipe, by the first words of recipes' names, or by kind of set."
    )
    wandb: SiteWandb = Field(default=SiteWandb(), description="Weights & Biases.")
    slurm: SiteSlurm = Field(default=SiteSlurm(), description="Slurm.")
    modules: Annotated[tuple[str, ...], AsTuple] = Field(default=(), description="Environment modules to load.")
    interface: str | None = Field(default=None, description="Network interface between nodes.")


def find_site(given: Path | None) -> Path | None:
    """The site file: ``given``, ``$RESTRAIN_SITE`` (both must exist) or the one in the home folder, if there."""
    named = given or (Path(os.environ["RESTRAIN_SITE"]) if os.environ.get("RESTRAIN_SITE") else None)
    if named is not None:
        if not named.is_file():
            told = "." if given else ": correct or unset $RESTRAIN_SITE."
            raise UserError(f"The site file {relative(named)} is not there{told}")
        return named
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "restrain" / "site.yaml"
    return home if home.is_file() else None


def read_site(path: Path | None) -> tuple[Site, Mapping]:
    """The site file's settings, and its layer source: the nodes as written."""
    if path is None:
        return Site(), Mapping({}, Origin("site"))
    top = read_file(path, "site")
    site, _ = build(top, Site, relative(path), "the site file")
    return site, top


def site_layer(top: Mapping, names: Sequence[str], merged: Mapping) -> Mapping:
    """The part of the site file that a recipe takes.

    ``names`` are the recipe's and its bases' names; ``merged`` is the recipe with its overrides, which says what kind
    of set is read. A data root is looked up by recipe, by the first words of its name, then by kind of set.
    """
    entries: dict[str, Node] = {}
    kind = name_of(merged.entries.get("data"))
    root = _root(top.entries.get("data"), names, kind)
    if root is not None and kind not in (None, *WITHOUT_ROOT):
        data = {"name": merged.entries["data"].entries["name"], "root": root}  # type: ignore[union-attr]
        entries["data"] = Mapping(data, root.origin, {"root": root.origin})
    wandb = top.entries.get("wandb")
    if isinstance(wandb, Mapping):
        # A place says how tracking is done there, never that it is done: that is the recipe's, or the command line's.
        taken = {key: node for key, node in wandb.entries.items() if key != "mode" or _tracks(merged)}
        if taken:
            entries["track"] = Mapping({"wandb": Mapping(taken, wandb.origin, wandb.keys)}, wandb.origin)
    return Mapping(entries, top.origin)


def _tracks(merged: Mapping) -> bool:
    """Whether a recipe asks for wandb."""
    node: Node | None = merged
    for key in ("track", "wandb", "mode"):
        node = node.entries.get(key) if isinstance(node, Mapping) else None
    return isinstance(node, Scalar) and node.text != "disabled"


def _root(roots: Node | None, names: Sequence[str], kind: str | None) -> Node | None:
    if not isinstance(roots, Mapping):
        return None
    for name in names:
        words = name.split("_")
        for count in range(len(words), 0, -1):
            node = roots.entries.get("_".join(words[:count]))
            if node is not None:
                return node
    return roots.entries.get(kind) if kind else None
