"""``restrain look``: the picture is of what the run's own loader hands over, with its labels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restrain.cli.main import run
from restrain.insight.grid import Tile, grid
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.training import build
from restrain.training.look import look
from restrain.training.placement import Placement


def test_the_tiles_are_the_rows_of_the_step_on_any_world() -> None:
    recipe = load("digits_resnet20", ["mix.mixup=0.4", "mix.cutmix=1.0"]).recipe
    found = look(recipe, 20, step=5)
    assert (len(found.tiles), found.side) == (20, 8)
    data = build.open_data(recipe)
    plan = build.build_plan(recipe, data, [])
    for world in (1, 2):  # rank 0 has the first rows of both
        loader = build.build_train_loader(recipe, data, plan, World(0, world), Placement("cpu", 32, 1, 1), 5, 440)
        batch = next(iter(loader))
        labels = batch.micros[0].labels.tolist()
        loader.close()
        for tile, label in zip(found.tiles, labels[:20], strict=True):
            assert str(label) in tile.caption
            assert tile.images[0].shape == tile.images[1].shape == (8, 8, 1)


def test_without_augmentation_and_mixing_nothing_is_touched() -> None:
    found = look(load("digits_resnet20", ["data.augment=[]"]).recipe, 16)
    for tile in found.tiles:
        assert np.array_equal(tile.images[0], tile.images[1])
        assert tile.caption in {str(n) for n in range(10)}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "look.png"
    assert run(["look", "digits_resnet20", "-o", str(out), "--count", "6", "--step", "3"]) == 0
    assert "6 samples of step 3 (epoch 0), 8 pixels" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.width > 4 * 96
    assert run(["look", "digits_resnet20", "-o", str(tmp_path)]) == 2
    assert run(["look", "digits_resnet20", "-o", str(out), "--step", "440"]) == 2
    assert "has the steps 0 to 439" in capsys.readouterr().err


def test_a_grid_fits_whatever_it_is_given() -> None:
    tall, grey = np.zeros((300, 20, 3), np.uint8), np.full((4, 4, 1), 200, np.uint8)
    png = grid(
        [Tile((tall, grey), "a caption that is much too long for its tile " * 3), Tile((grey,), "b", "c")], 4, 64
    )
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (8 + 2 * (130 + 8), 8 + 64 + 2 * 13 + 4 + 8)
