"""Weights that a run begins with (``model.init``): where they are, that they fit, and what the run's lock says of them.

They are read once, at step 0 of a fresh run; from then on its checkpoints hold the weights. To go on from another run
whole, with its optimizer and its step, is something else: ``restrain train NAME --from RUN``. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from restrain.errors import UserError, WorldError
from restrain.models.build import build_model
from restrain.models.foreign.contract import Build
from restrain.models.foreign.zoo import timm_name
from restrain.models.weights import Fitted, fit_weights
from restrain.parallel.engine import Engine
from restrain.parallel.held import index_of
from restrain.recipe import Recipe
from restrain.run import checkpoint, lockfile
from restrain.run.folder import RunFolder
from restrain.run.manifest import MANIFEST, Damaged, digest, verify
from restrain.training.build import Data, check_tokens
from restrain.training.same_function import check_function
from restrain.training.stored import Stored, of_checkpoint, of_file

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
LOCKED = ("init", "init_sha256")  # what the lock's identity says of them


@dataclass(frozen=True)
class Source:
    """Where weights come from. ``what``: for a person; ``path``: what is read; ``sha256``: of its bytes; ``opened``: to
    read from; ``run``: the folder of the run that trained them, where it is known."""

    what: str
    path: Path
    sha256: str
    opened: Callable[[], AbstractContextManager[Stored]]
    run: RunFolder | None = None


def find(recipe: Recipe) -> Source:
    """The source that ``model.init`` names.

    Raises:
        UserError: there is none, or it is of a kind that is not read.
        WorldError: it cannot be read, is damaged, or the network is away.
    """
    init = recipe.model.init
    assert init is not None
    if init.from_ == "timm":
        return _of_timm(recipe)
    path = Path(init.from_)
    if path.is_dir():
        return _of_run(path, init.ema)
    if path.suffix in PICKLES:
        raise UserError(
            f"model.init.from: {path} is a pickle, which can run any code when it is read, so it is not. Convert it "
            f'once, where you trust it: python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.contiguous() for k, v in torch.load('{path}', weights_only=True).items()}}, "
            f"'{path.stem}.safetensors')\"."
        )
    if not path.exists():
        raise UserError(
            f"model.init.from: there is no {path}. It takes a .safetensors file, a run folder, one of its checkpoints "
            f"(runs/.../checkpoints/step-N), or timm."
        )
    return _of_file(path, str(path))


def _of_file(path: Path, what: str) -> Source:
    try:
        return Source(what, path.absolute(), digest(path)[1], partial(of_file, path))
    except (OSError, Damaged) as error:
        raise WorldError(f"model.init.from: {error}.") from None


def _of_run(path: Path, ema: bool) -> Source:
    """A run's BEST, else its newest checkpoint; or the one that is named. Every byte of it is verified."""
    at = path
    if not (path / MANIFEST).is_file():
        folder = path / "checkpoints"
        if not folder.is_dir():
            raise UserError(f"model.init.from: {path} is neither a run folder nor one of its checkpoints.")
        found = checkpoint.pointed(folder, "BEST") or checkpoint.newest(folder).path
        if found is None:
            raise WorldError(f"model.init.from: {path} has no whole checkpoint.")
        at = found
    try:
        verify(at)
    except Damaged as error:
        raise WorldError(f"model.init.from: {error}. Name another checkpoint of that run.") from None
    with checkpoint.Reader(at) as reader:
        averaged = ema and any(name.endswith("|ema") for name in reader.names())
    kinds = ("ema",) if averaged else ("param", "buffer")
    sha256 = hashlib.sha256((at / MANIFEST).read_bytes()).hexdigest()
    what = f"{at} ({'EMA weights' if averaged else 'weights'})"
    run = RunFolder(at.absolute().parent.parent)
    opened = partial(of_checkpoint, at, kinds)
    return Source(what, at.absolute(), sha256, opened, run if run.lock_file.is_file() else None)


def _of_timm(recipe: Recipe) -> Source:
    """timm's weights of the model, from its hub in the safetensors form, or from the cache of an earlier time."""
    import timm
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = timm_name(recipe.model.model_dump())
    if name is None:
        raise UserError(
            f"model.init.from: timm has no weights for {recipe.model.name} with these options. It has them for our "
            f"networks that bear its names (docs/models.md), for ResNets with stem=deep and downsample=avgpool, and "
            f"for its own models (timm/NAME)."
        )
    entry = timm.get_pretrained_cfg(name)
    if entry is None or not entry.hf_hub_id:
        raise UserError(f"model.init.from: timm has no weights of {name}. Leave model.init out, or name a file.")
    try:
        path = _fetched(entry.hf_hub_id)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WorldError(
            f"model.init.from: timm's weights {entry.hf_hub_id} are not in the cache and cannot be fetched "
            f"({_reason(error)}). Fetch them where there is a network, or name a .safetensors file."
        ) from None
    return _of_file(Path(path).resolve(), f"timm's {entry.hf_hub_id}")


def _fetched(repository: str) -> str:
    """The file from the cache of an earlier time, else from the hub, which is asked once whether it is there: its own
    client would try for most of a minute."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return hf_hub_download(repository, filename="model.safetensors", local_files_only=True)
    except LocalEntryNotFoundError:
        hub = urlsplit(constants.ENDPOINT)
        if not getproxies():
            socket.create_connection((hub.hostname or "", hub.port or 443), timeout=10).close()
        return hf_hub_download(repository, filename="model.safetensors", etag_timeout=10)


def _reason(error: Exception) -> str:
    said = " ".join(str(error.__cause__ or error).split())
    return said[:120] or type(error).__name__


# ---------------------------------------------------------------------------------------------------- at a run's start


def check(
    recipe: Recipe,
    folder: RunFolder,
    fork: Path | None,
    sides: tuple[int, ...],
    own: Build | None,
    data: Data | None = None,
) -> None:
    """Raises what :func:`begin` would, before a folder is made; nothing where the run has weights of its own.

    The weights of a run must also mean what they meant there: the same join and attention, the same tokens.
    """
    if recipe.model.init is None:
        return
    if fork is not None:
        raise UserError(
            f"--from {fork} goes on with that run's weights, optimizer and step, so model.init would do nothing. "
            f"Set model.init=null, or leave --from out to begin at step 1 with the weights alone."
        )
    if folder.exists():
        return
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump(), sides=sides, own=own)
    source = find(recipe)
    if source.run is not None and data is not None:  # a head that is reset leaves the embedding, whose rows are tokens
        check_tokens(recipe, data, source.run.read_info().get("tokenizer"), source.run.path)
    _fit(recipe, model, source)


def identity(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What the run's lock says of them: what is there already, else the source and its SHA-256."""
    if recipe.model.init is None:
        return {}
    text = folder.read_lock()
    if text is not None:
        return {key: value for key, value in lockfile.identity(text).items() if key in LOCKED}
    source = find(recipe)
    return {"init": str(source.path), "init_sha256": source.sha256}


def begin(recipe: Recipe, model: nn.Module | Engine, folder: RunFolder) -> list[str]:
    """Load the weights into ``model``; returns what to announce. On every rank: each reads the same bytes.

    Raises:
        WorldError: they are not those that the run's lock names: the source has changed since.
    """
    if recipe.model.init is None:
        return []
    source = find(recipe)
    locked = lockfile.identity(folder.read_lock() or "").get("init_sha256")
    if locked not in (None, source.sha256):
        raise WorldError(
            f"model.init.from: {source.path} has changed since this run was set up (SHA-256 {source.sha256[:12]}, the "
            f"run's lock has {locked[:12]}). Restore it, or begin a new run."
        )
    return load_into(recipe, model, source)


def load_into(recipe: Recipe, model: nn.Module | Engine, source: Source | None = None) -> list[str]:
    """Load what ``model.init`` names into ``model``; returns what to announce.

    Of a model that is cut over ranks this one reads what it holds, a tensor at a time, unless the weights must be
    converted or resized first: then all of them are here for a moment.
    """
    source, engine = source or find(recipe), model if isinstance(model, Engine) else Engine(model)
    with source.opened() as stored:
        fitted, converted = _fitted(recipe, engine.whole(), source, stored)
        count, elements = len(fitted.tensors), sum(tensor.numel() for tensor in fitted.tensors.values())
        if converted:
            given = fitted.tensors
            stored = Stored(given, lambda name, offset, shape: given[name][index_of(offset, shape)])
        _load(engine, stored, _origins(fitted, stored))
    return [f"begins with {source.what}: {count} tensors, {elements:,} numbers", *fitted.notices]


@torch.no_grad()
def _load(engine: Engine, stored: Stored, origins: dict[str, str]) -> None:
    """Copy into the engine's tensors, which keep dtype, device and memory format. ``origins``: name -> name there."""
    cut = {name for name, _ in engine.whole().named_parameters()} if engine.is_cut else set()
    for name, tensor in engine.model.state_dict(keep_vars=True).items():
        if name in origins and name not in cut:
            tensor.copy_(stored.whole(origins[name]))
    for name, leaf in engine.leaves() if engine.is_cut else ():  # a rank may have nothing of a small parameter
        if name in origins:
            engine.held(name, leaf).fill(
                leaf.detach(),
                lambda part, offset, n=origins[name]: part.copy_(stored.part(n, offset, tuple(part.shape))),
            )


def _fit(recipe: Recipe, model: nn.Module, source: Source) -> Fitted:
    with source.opened() as stored:
        return _fitted(recipe, model, source, stored)[0]


def _fitted(recipe: Recipe, model: nn.Module, source: Source, stored: Stored) -> tuple[Fitted, bool]:
    """What fits, and whether it was converted: if not, it is as described, and nothing was read.

    Raises:
        UserError: the weights do not fit, or the network would compute something else with them.
    """
    init = recipe.model.init
    assert init is not None
    notices = check_function(recipe, model, source, stored.described)
    fit = partial(fit_weights, model, source=source.what, reset_head="head" in init.reset)
    try:
        fitted = fit(stored.described, interpolate=False)
    except UserError:
        if not init.interpolate:
            raise
        fitted = None  # resized they may fit; if not, that is told
    converted = fitted is None or len(_origins(fitted, stored)) < len(fitted.tensors)
    if fitted is None or converted:
        fitted = fit(stored.all(), interpolate=init.interpolate)
    return replace(fitted, notices=[*notices, *fitted.notices]), converted


def _origins(fitted: Fitted, stored: Stored) -> dict[str, str]:
    """Name -> the stored name of what fits as it is there, under that name or another one."""
    names = {id(tensor): name for name, tensor in stored.described.items()}
    return {name: names[id(tensor)] for name, tensor in fitted.tensors.items() if id(tensor) in names}
