"""Taking a run's network away: as safetensors, for timm, as ONNX, as a torch.export program.

Whatever is written is read back and run on the same inputs as the run's own network before it is handed over; beside it
lies a JSON file that says how images become inputs and what outputs mean.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restrain import __version__, draws
from restrain.errors import UserError, WorldError
from restrain.models.build import build_model
from restrain.models.foreign.zoo import timm_name
from restrain.recipe import Recipe
from restrain.recipe.model_names import family_of
from restrain.training.inputs import image_sides
from restrain.training.loaded import Loaded, load_weights
from restrain.training.preprocessing import class_names, preprocessing

ROWS = 4  # images on which a written file is compared
TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit


@dataclass(frozen=True)
class Exported:
    """``difference``: of a logit, on ``ROWS`` inputs, between what was written and the run's own network."""

    path: Path
    sidecar: Path
    difference: float
    weights: str
    checkpoint: Path
    notices: list[str]


def export(path: Path, to: str, out: Path | None, weights: str = "auto", unfinished: bool = False) -> Exported:
    """Write the network of a run or of one of its checkpoints.

    Raises:
        UserError: an unfinished run without ``unfinished``, a form that this network has not, a missing package.
        WorldError: no whole checkpoint, or what was written computes something else (it is removed then).
    """
    loaded = load_weights(path, weights)
    state = loaded.info.get("state")
    if state != "finished" and not unfinished:
        raise UserError(
            f"{loaded.located.run} is not finished ({state or 'it never started'}, checkpoint of step "
            f"{loaded.located.step}). Let it finish (restrain resume), or export what there is with --unfinished."
        )
    ending, write = FORMS[to]
    target = out or Path(f"{loaded.located.run.name}{ending}")
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"-o {target}: name a file in a folder that exists, such as model{ending}.")
    model = loaded.model.float()
    if loaded.recipe.data.kind != "images" and to == "timm":
        raise UserError("timm has models of images alone. Export it with --to safetensors, onnx or torch.export.")
    sides = image_sides(loaded.recipe)
    side = loaded.recipe.resolution.eval or (sides[0] if sides else 0)
    images = inputs(loaded.recipe, side)
    with torch.no_grad():
        wanted = model(images)
    again = write(loaded, images, target)
    difference = float((again(images) - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        target.unlink(missing_ok=True)
        raise WorldError(
            f"What was written to {target} computes other logits than the run's network (difference {difference:.3g}), "
            f"so it was removed. Try another form, and report this with the recipe."
        )
    sidecar = target.with_name(target.name + ".json")
    sidecar.write_text(json.dumps(described(loaded, to, side, difference), indent=2, ensure_ascii=False) + "\n")
    located = loaded.located
    return Exported(target, sidecar, difference, loaded.weights, located.checkpoint, located.notices)


def inputs(recipe: Recipe, side: int) -> Tensor:
    """Normal noise from a key, float32 [ROWS, C, side, side], what a normalised image is like; or tokens from a key,
    int64 [ROWS, T]."""
    if recipe.data.kind == "tokens":
        keys = draws.mix(recipe.seed, np.arange(ROWS * recipe.data.context).reshape(ROWS, -1))
        return torch.from_numpy(draws.integers(keys, recipe.model.classes))
    size = (recipe.data.context, recipe.model.in_chans) if recipe.data.kind == "sequences" else None
    shape = (ROWS, *(size or (recipe.model.in_chans, side, side)))
    keys = draws.mix(recipe.seed, np.arange(int(np.prod(shape))).reshape(shape))
    return torch.from_numpy(draws.normal(keys)).float()


def described(loaded: Loaded, to: str, side: int, difference: float) -> dict[str, Any]:
    """What the sidecar says."""
    recipe, located, info = loaded.recipe, loaded.located, loaded.info
    return {
        "format": to,
        "architecture": recipe.model.name,
        **{"tokens": _of_text, "sequences": _of_sequences}.get(recipe.data.kind, _of_images)(loaded, side),
        "weights": loaded.weights,
        "provenance": {
            "restrain": __version__,
            "run": located.run.resolve().name,
            "recipe": info.get("recipe"),
            "changes": info.get("changes"),
            "step": located.step,
            "state": info.get("state"),
            "best": info.get("best"),
            "metrics": info.get("metrics"),
        },
        "verified": {"inputs": ROWS, "largest_difference": difference},
    }


def _of_images(loaded: Loaded, side: int) -> dict[str, Any]:
    recipe = loaded.recipe
    return {
        "classes": class_names(recipe) or recipe.model.classes,
        "input": {"layout": "NCHW", "dtype": "float32", "shape": ["batch", recipe.model.in_chans, side, side]},
        "output": f"logits of {recipe.model.classes} classes",
        "preprocessing": preprocessing(recipe, side),
    }


def _of_sequences(loaded: Loaded, side: int) -> dict[str, Any]:
    recipe = loaded.recipe
    return {
        "input": {"dtype": "float32", "shape": ["batch", recipe.data.context, recipe.model.in_chans]},
        "output": "one number",
        "preprocessing": None,
    }


def _of_text(loaded: Loaded, side: int) -> dict[str, Any]:
    recipe = loaded.recipe
    return {
        "classes": recipe.model.classes,
        "input": {"dtype": "int64", "shape": ["batch", recipe.data.context]},
        "output": f"logits of {recipe.model.classes} tokens at each place",
        "preprocessing": {"tokenizer": loaded.info.get("tokenizer")},
    }


# ----------------------------------------------------------------------------------------------------------- the forms

Compute = Callable[[Tensor], Tensor]


def _safetensors(loaded: Loaded, images: Tensor, target: Path) -> Compute:
    from safetensors.torch import load_file, save_file

    state = {name: tensor.contiguous().clone() for name, tensor in loaded.model.state_dict().items()}
    save_file(state, target, metadata={"format": "pt"})
    twin = build_model(loaded.recipe.model.model_dump() | {"init": None}, 0, image_sides(loaded.recipe))
    twin.load_state_dict(load_file(target))
    return _computing(twin)


def _timm(loaded: Loaded, images: Tensor, target: Path) -> Compute:
    """Weights under the names of timm, which ``timm.create_model(name, checkpoint_path=...)`` loads strictly."""
    import timm

    name = _timm_name(loaded.recipe)
    _safetensors(loaded, images, target)
    model = loaded.recipe.model
    try:
        twin = timm.create_model(name, checkpoint_path=str(target), num_classes=model.classes, in_chans=model.in_chans)
    except RuntimeError as error:
        target.unlink()
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"timm's {name} does not take the weights of this recipe's network ({said}). Export it with --to "
            f"safetensors, onnx or torch.export."
        ) from None
    return _computing(twin)


def _timm_name(recipe: Recipe) -> str:
    """timm's name of the recipe's architecture; UserError where it has none."""
    model = recipe.model
    name, family = timm_name(model.model_dump()), family_of(model.name)
    own_join = family[1].join if family else "add"
    if name is None or model.join.name != own_join:
        raise UserError(
            f"timm has no {model.name} with join {model.join.name}, stem {model.stem}, downsample {model.downsample}"
            f"{' and blurpool' if model.blurpool else ''}. Export it with --to safetensors, onnx or torch.export."
        )
    return name


def _torch_export(loaded: Loaded, images: Tensor, target: Path) -> Compute:
    program = torch.export.export(loaded.model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with warnings.catch_warnings():
        # The drop factors of joins are empty, and none of several empty tensors is "complete".
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, target)
    module = torch.export.load(target).module()
    # Another number of images than it was made with.
    return lambda x: torch.cat([module(x[:3]), module(x[3:])])


def _onnx(loaded: Loaded, images: Tensor, target: Path) -> Compute:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx needs {', '.join(missing)}. Install them: pip install 'restrain[onnx]'.")
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            loaded.model,
            (images,),
            dynamo=True,
            input_names=["images" if images.is_floating_point() else "tokens"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(target, external_data=False)
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])

    def compute(x: Tensor) -> Tensor:
        parts = [
            np.asarray(session.run(["logits"], {session.get_inputs()[0].name: part.numpy()})[0])
            for part in (x[:3], x[3:])
        ]
        return torch.from_numpy(np.concatenate(parts))

    return compute


def _computing(model: nn.Module) -> Compute:
    model.eval()

    def compute(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x)

    return compute


@contextmanager
def _quiet():
    """Without the exporter's own deprecations and its talk on standard output."""
    import io
    import logging
    from contextlib import redirect_stderr, redirect_stdout

    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with suppress(ValueError):
                logger.setLevel(before)


# Another form is a line here: how its files end, and what writes one and reads it back.
FORMS: dict[str, tuple[str, Callable[[Loaded, Tensor, Path], Compute]]] = {
    "safetensors": (".safetensors", _safetensors),
    "timm": (".timm.safetensors", _timm),
    "onnx": (".onnx", _onnx),
    "torch.export": (".pt2", _torch_export),
}
