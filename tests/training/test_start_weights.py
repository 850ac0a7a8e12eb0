"""Weights that a run begins with: from a file, a run or a checkpoint; what does not fit is said, by name."""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from restrain.errors import UserError, WorldError
from restrain.models.build import build_model
from restrain.models.weights import fit_weights
from restrain.parallel.engine import Engine
from restrain.parallel.held import Held, cut_along
from restrain.recipe import load
from restrain.run.folder import RunFolder
from restrain.training import start_weights
from restrain.training.same_function import check_function
from tests import worlds

SHORT = ["length=4st", "evaluate.every=2st", "checkpoint.every=2st", "precision=fp64"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights others begin with; its BEST may be any step."""
    run = tmp_path_factory.mktemp("before") / "run"
    assert worlds.train(run, [*SHORT, "ema={decay: 0.5}", "checkpoint.best=null"]).codes == [0]
    return run


def loaded(*overrides: str):
    recipe = load("digits_resnet20", list(overrides)).recipe
    model = build_model(recipe.model.model_dump() | {"init": None}, 7)
    notices = start_weights.begin(recipe, model, RunFolder("nowhere"))
    return model.state_dict(), notices


def saved(run: Path, kind: str) -> dict[str, torch.Tensor]:
    return {name.rpartition("|")[0]: t for name, t in worlds.tensors(run, 4).items() if name.endswith(f"|{kind}")}


@pytest.mark.parametrize(("ema", "kind"), [("true", "ema"), ("false", "param")])
def test_a_runs_weights(before: Path, ema: str, kind: str) -> None:
    state, notices = loaded(f"model.init={{from: {before}, ema: {ema}}}")
    wanted = saved(before, kind)
    assert len(wanted) > 50
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name
    assert notices[0].startswith("begins with ")
    of_checkpoint, _ = loaded(f"model.init={{from: {before / 'checkpoints' / 'step-4'}, ema: {ema}}}")
    assert all(torch.equal(of_checkpoint[name], state[name]) for name in state)


def test_a_file_and_another_head(tmp_path: Path) -> None:
    fresh = build_model({"name": "cifar_resnet20", "classes": 7, "in_chans": 1}, 1)
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in fresh.state_dict().items()}, file)
    with pytest.raises(UserError, match=r"fc\.weight \[7, 64\] for \[10, 64\].*model\.init\.reset=\[head\]"):
        loaded(f"model.init.from={file}")
    state, notices = loaded(f"model.init={{from: {file}, reset: [head]}}")
    assert torch.equal(state["layer3.2.conv2.weight"], fresh.state_dict()["layer3.2.conv2.weight"])
    own = build_model({"name": "cifar_resnet20", "classes": 10, "in_chans": 1}, 7).state_dict()
    assert torch.equal(state["fc.weight"], own["fc.weight"])
    assert any("fc" in notice for notice in notices)


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    other = build_model({"name": "resnet18", "classes": 10, "in_chans": 1}, 1)
    file = tmp_path / "other.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in other.state_dict().items()}, file)
    with pytest.raises(UserError) as error:
        loaded(f"model.init.from={file}")
    said = str(error.value)
    assert re.search(r"\d+ missing \(.+, .+, .+, \.\.\.\)", said)
    assert re.search(
        r"\d+ of another shape \(conv1\.weight \[64, 1, 7, 7\] for \[16, 1, 3, 3\], .+, .+, \.\.\.\)", said
    )
    assert "Name the model that the weights are of" in said


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("weights.pth", b"pickle", UserError, "is a pickle, which can run any code when it is read"),
        ("weights.safetensors", b"nonsense", UserError, "is no whole safetensors file"),
        ("nothing.safetensors", None, UserError, "there is no"),
        ("empty", "folder", UserError, "is neither a run folder nor one of its checkpoints"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, name: str, content, kind: type[Exception], said: str) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=said):
        loaded(f"model.init.from={path}")


def test_a_damaged_checkpoint_is_not_taken(before: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(before, copy)
    for file in copy.glob("checkpoints/*/model-*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    with pytest.raises(WorldError, match="checkpoint"):
        loaded(f"model.init.from={copy}")


def test_a_run_begins_with_them_once(before: Path, tmp_path: Path) -> None:
    """The weights are in the first step, in the lock, and of no importance once there is a checkpoint."""
    run, source = tmp_path / "run", tmp_path / "source.safetensors"
    save_file({name: t.float().contiguous() for name, t in (saved(before, "ema")).items()}, source)
    overrides = [*SHORT, f"model.init={{from: {source}, ema: true}}"]
    ended = worlds.train(run, overrides)
    assert ended.codes == [0], ended.text
    assert "begins with " in ended.text
    cold = tmp_path / "cold"
    assert worlds.train(cold, SHORT).codes == [0]
    assert worlds.journal(run)[0]["train/loss"] != worlds.journal(cold)[0]["train/loss"]
    assert "init_sha256" in (run / "recipe.lock.yaml").read_text()
    source.unlink()
    longer = [*overrides[1:], "length=6st"]
    ended = worlds.train(run, longer, options=["--allow", "length"])
    assert ended.codes == [0], ended.text
    assert json.loads((run / "run.json").read_text())["step"] == 6


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is read of the sources of a test: names, and how many numbers at once."""
    found = []

    def watched(opened):
        @contextmanager
        def inner(*given):
            with opened(*given) as stored:

                def part(name, offset, shape):
                    found.append((name, math.prod(shape)))
                    return stored.part(name, offset, shape)

                yield replace(stored, part=part)

        return inner

    for name in ("of_file", "of_checkpoint"):
        monkeypatch.setattr(start_weights, name, watched(getattr(start_weights, name)))
    return found


class Lower(Engine):
    """The lower half of each parameter's rows."""

    is_cut = True

    def __init__(self, model: nn.Module):
        super().__init__(model)
        halves = {name: p.detach()[p.shape[0] // 2 :].clone() for name, p in model.named_parameters()}
        self.halves = {name: nn.Parameter(half) for name, half in halves.items()}

    def leaves(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.halves.items())

    def held(self, name: str, local: torch.Tensor) -> Held:
        shape = tuple(self.model.get_parameter(name).shape)
        return cut_along(shape, None, (), (shape[0] // 2, shape[0]), 1, True)


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_rank_reads_what_it_holds(before: Path, tmp_path: Path, read: list[tuple[str, int]], kind: str) -> None:
    """Once, a tensor at a time; the check before a run folder is made reads nothing."""
    source, theirs = before, {**saved(before, "param"), **saved(before, "buffer")}
    if kind == "file":
        source = tmp_path / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, source)
    words = [f"model.init={{from: {source}, ema: false}}"]
    checked(*words)
    assert read == []
    recipe = load("digits_resnet20", words).recipe
    engine = Lower(build_model(recipe.model.model_dump() | {"init": None}, 7))
    start_weights.begin(recipe, engine, RunFolder("nowhere"))
    held = dict(engine.leaves())
    buffers = dict(engine.model.named_buffers())
    for name, leaf in held.items():
        assert torch.equal(leaf, theirs[name][-len(leaf) :].to(leaf.dtype)), name
    assert all(torch.equal(buffer, theirs[name].to(buffer.dtype)) for name, buffer in buffers.items() if name in theirs)
    sizes = {name: tensor.numel() for name, tensor in {**held, **buffers}.items() if name in theirs}
    assert sorted(read) == sorted(sizes.items())


def test_resized_weights_are_cut_as_well(tmp_path: Path) -> None:
    """Position embeddings of pictures of another size: the rank has its rows of what they become."""
    shape = {"depth": 2, "width": 32, "heads": 4, "patch": 2}
    section = {"name": "vit", "classes": 10, "in_chans": 1, "shape": shape, "transformer": {"position": "learned"}}
    theirs = build_model(section, 1, sides=(16,)).state_dict()
    file = tmp_path / "larger.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, file)
    words = ["model.name=vit", f"model.shape={shape}", "model.transformer={position: learned}"]
    recipe = load("digits_resnet20", [*words, f"model.init.from={file}"]).recipe
    engine = Lower(build_model(section, 7, sides=(8,)))
    wanted = fit_weights(engine.model, theirs, "them").tensors
    assert wanted["pos_embed"].shape != theirs["pos_embed"].shape
    notices = start_weights.begin(recipe, engine, RunFolder("nowhere"))
    assert any("pos_embed resized" in notice for notice in notices)
    assert all(torch.equal(leaf, wanted[name][-len(leaf) :]) for name, leaf in engine.leaves())
    never = load("digits_resnet20", [*words, f"model.init={{from: {file}, interpolate: false}}"])
    with pytest.raises(UserError, match="pos_embed"):
        start_weights.begin(never.recipe, engine, RunFolder("nowhere"))


@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.strategy=fsdp"],
        pytest.param(["parallel.tensor=2"], marks=pytest.mark.slow),
        pytest.param(["parallel.strategy=zero3"], marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["run", pytest.param("file", marks=pytest.mark.slow)])
def test_begins_with_them_in_every_layout(tmp_path: Path, layout: list[str], kind: str) -> None:
    """The checkpoint of a first step that the guard has kept from doing anything."""
    if "zero3" in layout[0] and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed, which is not installed")
    vit = ["model.name=vit", "model.shape={depth: 2, width: 32, heads: 4, patch: 2}", "precision=fp32"]
    words = ["length=1st", "evaluate.every=1st", "checkpoint.every=1st", *vit]
    source = tmp_path / "source"
    assert worlds.train(source, words).codes == [0]
    theirs = {name: t for name, t in worlds.tensors(source, 1).items() if name.endswith("|param")}
    if kind == "file":
        source = tmp_path / "weights.safetensors"
        save_file({name[:-6]: tensor.contiguous() for name, tensor in theirs.items()}, source)
    words.append(f"model.init={{from: {source}, ema: false}}")
    ended = worlds.train(tmp_path / "run", [*words, *layout], 2, {1: [("nan_loss", {"step": 1})]})
    assert ended.codes == [0, 0], ended.text
    ours = worlds.tensors(tmp_path / "run", 1)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def checked(*overrides: str) -> None:
    recipe = load("digits_resnet20", list(overrides)).recipe
    start_weights.check(recipe, RunFolder("nowhere"), None, (8, 8), None)


def test_weights_of_a_run_whose_network_computes_something_else(before: Path) -> None:
    checked(f"model.init.from={before}")
    with pytest.raises(UserError, match=r"model\.join\.name is none, there it is add.*restrain export"):
        checked(f"model.init.from={before}", "model.join={name: none}")


def test_weights_of_another_attention(tmp_path: Path) -> None:
    vit = ["digits_resnet56", "model.name=vit", "model.shape={depth: 2, width: 32, heads: 4, patch: 2}"]
    run = tmp_path / "vit"
    made = worlds.train(run, [*vit[1:], *SHORT], recipe=vit[0])
    assert made.codes == [0]
    recipe = load(vit[0], [*vit[1:], f"model.init.from={run}"]).recipe
    start_weights.check(recipe, RunFolder("nowhere"), None, (8, 8), None)
    shape = "model.shape={depth: 2, width: 32, heads: 2, patch: 2}"
    other = load(vit[0], [vit[1], shape, "model.transformer={norm: layernorm, order: post}", f"model.init.from={run}"])
    with pytest.raises(UserError, match=r"model\.shape\.heads is 2, there it is 4; model\.transformer\.order is post"):
        start_weights.check(other.recipe, RunFolder("nowhere"), None, (8, 8), None)


def saved_file(tmp_path: Path, section: dict) -> Path:
    file = tmp_path / "weights.safetensors"
    state = build_model(section, 1).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("vit_tiny_patch16_224", ["model.join.name=none"], r"model\.join\.name is none, there it is add"),
        ("resnet18", ["model.join={name: scale}"], r"model\.join\.name is scale, there it is add"),
        ("vit_tiny_patch16_224", ["model.shape.heads=6"], r"model\.shape\.heads is 6, there it is 3"),
        (
            "vit_tiny_patch16_224",
            ["model.transformer.activation=relu"],
            r"model\.transformer\.activation is relu, there it is gelu",
        ),
    ],
)
def test_timms_weights_mean_what_they_meant(
    name: str, changes: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fit by name and shape in both, and are of the network by its name alone."""
    file = saved_file(tmp_path, {"name": name, "classes": 10, "in_chans": 1})
    monkeypatch.setattr(start_weights, "_fetched", lambda _repository: str(file))

    def tried(more: list[str], source: str = "timm") -> list[str]:
        """What a run would be told of them at its start."""
        recipe = load("digits_resnet20", [f"model.name={name}", f"model.init.from={source}", *more]).recipe
        start_weights.check(recipe, RunFolder("nowhere"), None, (224,), None)
        with torch.device("meta"):
            model = build_model(recipe.model.model_dump() | {"init": None}, sides=(224,))
        return start_weights._fit(recipe, model, start_weights.find(recipe)).notices

    assert tried([]) == []
    with pytest.raises(UserError, match=f"{said}.*name the .safetensors file"):
        tried(changes)
    (notice,) = tried(changes, str(file))  # bare numbers, on purpose
    assert re.search(f"taken as bare numbers; this network is not {name} as it is named: {said}", notice)
    assert tried([], str(file)) == []


@pytest.mark.parametrize(
    ("transformer", "said"),
    [
        ("position: rotary", r"model\.transformer\.position is rotary, there it is learned"),
        ("order: post", r"model\.transformer\.order is post, there it is pre"),
        ("activation: relu", r"model\.transformer\.activation is relu, there it is gelu_tanh"),
        ("position: none, order: post", r"position is none, .*order is post"),
    ],
)
def test_gpt2s_layout_is_of_gpt2s_function(transformer: str, said: str, tmp_path: Path) -> None:
    section = {"name": "gpt", "classes": 11, "shape": {"depth": 1, "width": 64, "heads": 1, "context": 8}}
    file = tmp_path / "gpt2.safetensors"
    save_file({"wte.weight": torch.zeros(11, 64)}, file)
    recipe = load("shakespeare_gpt", [f"model.init.from={file}"]).recipe
    source = start_weights.find(recipe)

    def notices(more: dict) -> list[str]:
        changed = recipe.model_copy(update={"model": type(recipe.model).model_validate(section | more)})
        with torch.device("meta"):
            model = build_model(changed.model.model_dump())
        init = recipe.model.init
        changed = changed.model_copy(update={"model": changed.model.model_copy(update={"init": init})})
        with source.opened() as stored:
            return check_function(changed, model, source, stored.described)

    assert notices({"transformer": {"activation": "gelu_tanh"}}) == []
    (notice,) = notices({})
    assert "gelu_tanh; this network has gelu" in notice
    options = dict(part.split(": ") for part in transformer.split(", "))
    with pytest.raises(UserError, match=f"layout of GPT-2's published weights.*{said}"):
        notices({"transformer": options})
    with pytest.raises(UserError, match=r"model\.join\.name is none, there it is add"):
        notices({"join": {"name": "none"}})
