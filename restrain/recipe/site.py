"""The site file: what belongs to this place and not to a run. Its own small closed schema, nothing numerical.

``$RESTRAIN_SITE``, else ``~/.config/restrain/site.yaml``::

    data: {imagenet: /data/imagenet, cifar10_resnet20: /scratch/cifar10, folder: /data/pictures}
    wandb: {entity: our-team}
    slurm: {partition: gpu, account: vision, gpus: 4, cpus: 16, time: "24:00:00", sbatch: ["--exclusive"]}
    modules: [cuda/13.0]
    interface: ib0
    nccl: {NCCL_IB_HCA: mlx5}
    start_timeout: 45s
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from restrain.errors import UserError
from restrain.recipe.base import AsTuple, Positive, Section
from restrain.recipe.building import build
from restrain.recipe.durations import Duration, Units
from restrain.recipe.layers import name_of
from restrain.recipe.nodes import Mapping, Node, Origin, Scalar, read_file, relative
from restrain.recipe.schema_data import WITHOUT_ROOT

Word = Annotated[str, Field(pattern=r"^[^\s'\"]+$")]
"""Without spaces: it stands on an #SBATCH line, which Slurm cuts there."""
Option = Annotated[str, Field(pattern=r"^-[^\n\r]+$")]
Clock = Annotated[Duration, Units(("s", "min", "h"))]


def time_limit(text: str) -> str:
    """``text`` as it is; ValueError where sbatch would not take it for ``--time``."""
    if not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-5]?[0-9]){0,2}", text):
        raise ValueError("is no time limit of Slurm's; write HH:MM:SS or D-HH:MM:SS")
    return text


def seconds_of(limit: str) -> int:
    """A time limit of Slurm's in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S (sbatch(1), ``--time``)."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _of_nccl(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not re.fullmatch(r"NCCL_[A-Z0-9_]+", name):
            raise ValueError(f"has {name!r}, which is not the name of a variable of NCCL, such as NCCL_IB_HCA")
    return value


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
    """Slurm at this place: what ``restrain slurm`` writes into a batch script. Options of sbatch are its own words."""

    partition: Word | None = Field(default=None, description="Partition.")
    account: Word | None = Field(default=None, description="Account.")
    qos: Word | None = Field(default=None, description="Quality of service.")
    constraint: Word | None = Field(default=None, description="Features that nodes must have, such as a100.")
    gpus: Positive | None = Field(default=None, description="GPUs of a node, each with a task of its own; null: 8.")
    gpu_type: Word | None = Field(default=None, description="Type of GPU, where --gpus-per-node needs one, as a100.")
    cpus: Positive | None = Field(default=None, description="Processors for each task; null: 12.")
    memory: Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$")] | None = Field(
        default=None, description="Memory of a node, such as 500G; null or 0: all of it."
    )
    time: Annotated[str, AfterValidator(time_limit)] | None = Field(
        default=None, description="Time limit of a job, as HH:MM:SS or D-HH:MM:SS."
    )
    notice: Positive | None = Field(
        default=None, description="Seconds before the time limit at which a job is told to save and leave; null: 120."
    )
    sbatch: Annotated[tuple[Option, ...], AsTuple] = Field(
        default=(), description="Further options, one #SBATCH line each, such as --exclusive."
    )
    venv: Annotated[str, Field(pattern=r"^[^\n\r]+$")] | None = Field(
        default=None, description="Folder of the Python environment; null: .venv of the folder one submits from."
    )


class Site(Section):
    """What a place says of itself."""

    data: dict[str, str] = Field(
        default={}, description="Folder of a set, by recipe, by the first words of recipes' names, or by kind of set."
    )
    wandb: SiteWandb = Field(default=SiteWandb(), description="Weights & Biases.")
    slurm: SiteSlurm = Field(default=SiteSlurm(), description="Slurm.")
    modules: Annotated[tuple[Word, ...], AsTuple] = Field(default=(), description="Environment modules that jobs load.")
    interface: Annotated[str, Field(pattern=r"^[\w.:@-]+(,[\w.:@-]+)*$")] | None = Field(
        default=None, description="Network interface between nodes, such as ib0; several with commas."
    )
    nccl: Annotated[dict[str, str], AfterValidator(_of_nccl)] = Field(
        default={}, description="Variables of NCCL, such as NCCL_IB_HCA. What stands in the environment goes before."
    )
    start_timeout: Clock = Field(
        default=Duration(45, "s"), description="How long the processes of a run wait for the last one to come."
    )


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
