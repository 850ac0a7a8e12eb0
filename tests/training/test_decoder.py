"""Which decoder a run uses: settled when it begins, kept by it, changed only on purpose."""

from pathlib import Path

import pytest

import restrain
from restrain.data import images, nvimgcodec
from restrain.errors import UserError
from restrain.recipe import Recipe, load
from restrain.training import build
from restrain.training import fit as fitting
from tests.data.making import write_shards


@pytest.fixture
def values(tmp_path: Path) -> list[str]:
    write_shards(tmp_path / "set", 2, 11, classes=5)
    data = f"{{name: webdataset, root: {tmp_path / 'set'}, eval: null}}"
    model = "model={name: cifar_resnet20, classes: 5, in_chans: 3}"
    return [model, f"data={data}", "resolution={train: 16, eval: 16}", "batch.global=4", "batch.group=2", "expect=null"]


def train(values: list[str], run: Path, *more: str, allow: tuple[str, ...] = ()) -> Recipe:
    restrain.fit("digits_resnet20", [*values, *more], run=run, allow=["length", *allow])
    return load(str(run / "recipe.lock.yaml")).recipe


def test_a_run_keeps_the_decoder_that_it_began_with(
    values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    settle = build.use_decoder

    def spied(data: build.Data, recipe: Recipe) -> str:
        found = settle(data, recipe)
        used.append(data.train_pipeline.decoder)
        return found

    monkeypatch.setattr(fitting.build, "use_decoder", spied)
    run = tmp_path / "run"
    assert train(values, run, "length=1st", "data.decode=pil").data.decode == "pil"
    assert train(values, run, "length=2st").data.decode == "pil"
    assert used == ["pil", "pil"]
    with pytest.raises(UserError, match=r"data\.decode is nvimgcodec, the run has pil; lock\.decoder .*--allow KEY"):
        train(values, run, "length=3st", "data.decode=nvimgcodec")
    changed = train(values, run, "length=3st", "data.decode=nvimgcodec", allow=("data.decode",))
    assert (changed.data.decode, used[-1]) == ("nvimgcodec", "nvimgcodec")
    assert train(values, tmp_path / "other", "length=1st").data.decode == images.DECODERS[0] == used[-1]


def test_a_run_is_not_continued_with_another_decoder_because_its_own_is_gone(
    values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(values, run, "length=1st", "data.decode=nvimgcodec")

    def gone() -> str:
        raise ImportError("no module")

    monkeypatch.setattr(nvimgcodec, "version", gone)
    with pytest.raises(UserError, match="is not installed here, or cannot decode JPEGs here"):
        train(values, run, "length=2st")
    assert restrain.open_run(run).recipe.data.decode == "nvimgcodec"
