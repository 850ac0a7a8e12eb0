"""Weights that a run begins with (``model.init``): where they are, that they fit, and what the run's lock says of them.

They are read once, at step 0 of a fresh run; from then on its checkpoints hold the weights. To go on from another run
whole, with its optimizer and its step, is something else: ``restrain train NAME --from RUN``. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from restrain.errors import UserError, WorldError
from restrain.models.build import build_model
from restrain.models.foreign.contract import Build
from restrain.models.foreign.zoo import timm_name
from restrain.models.weights import Fitted, fit_weights, load_weights
from restrain.parallel.engine import Engine
from restrain.recipe import Recipe
from restrain.run import checkpoint, lockfile
from restrain.run.folder import RunFolder
from restrain.run.manifest import MANIFEST, Damaged, digest, verify
from restrain.training.build import Data, check_tokens
from restrain.training.same_function import check_function

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")
LOCKED = ("init", "init_sha256")  # what the lock's identity says of them


@dataclass(frozen=True)
class Source:
    """Where weights come from. ``what``: for a person; ``path``: what is read; ``sha256``: of its bytes; ``run``: the
    folder of the run that trained them, where it is known."""

    what: str
    path: Path
    sha256: str
    read: Callable[[], dict[str, Tensor]]
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
    def read() -> dict[str, Tensor]:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"model.init.from: {path} is no whole safetensors file ({error}).") from None
        except OSError as error:
            raise WorldError(f"model.init.from: {path} cannot be read ({error.strerror}).") from None

    try:
        return Source(what, path.absolute(), digest(path)[1], read)
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

    def read() -> dict[str, Tensor]:
        with checkpoint.Reader(at) as reader:
            names = [name for name in reader.names() if name.rpartition("|")[2] in kinds]
            return {name.rpartition("|")[0]: reader.read(name) for name in names}

    sha256 = hashlib.sha256((at / MANIFEST).read_bytes()).hexdigest()
    what = f"{at} ({'EMA weights' if averaged else 'weights'})"
    run = RunFolder(at.absolute().parent.parent)
    return Source(what, at.absolute(), sha256, read, run if run.lock_file.is_file() else None)


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
    """Load what ``model.init`` names into ``model``; returns what to announce."""
    source, engine = source or find(recipe), model if isinstance(model, Engine) else Engine(model)
    fitted = _fit(recipe, engine.whole(), source)
    count, elements = len(fitted.tensors), sum(tensor.numel() for tensor in fitted.tensors.values())
    if engine.is_cut:
        given, held = fitted.tensors, dict(engine.leaves())
        for name in [name for name, _ in engine.whole().named_parameters() if name in given]:
            tensor, leaf = given.pop(name), held.get(name)  # a rank may have nothing of a small parameter
            if leaf is not None:
                engine.held(name, leaf).cut(tensor, leaf.detach())
    load_weights(engine.model, fitted)
    return [f"begins with {source.what}: {count} tensors, {elements:,} numbers", *fitted.notices]


def _fit(recipe: Recipe, model: nn.Module, source: Source) -> Fitted:
    init = recipe.model.init
    assert init is not None
    tensors = source.read()
    notices = check_function(recipe, model, source, tensors)
    reset = "head" in init.reset
    fitted = fit_weights(model, tensors, source.what, reset_head=reset, interpolate=init.interpolate)
    return replace(fitted, notices=[*notices, *fitted.notices])
