"""Every shipped recipe trains a step and is evaluated at a small size, with its own network and augmentations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restrain.recipe import available, leaves, load
from restrain.recipe.schema_data import WITHOUT_ROOT
from restrain.recipe.writing import flow
from tests import worlds
from tests.training.speech import write_text


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, 40 training and 4 evaluation images of 80 x 72 pixels."""
    top, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 2)):
        for name in ("cat", "dog"):
            (top / split / name).mkdir(parents=True)
            for n in range(count):
                Image.fromarray(noise.integers(0, 256, (72, 80, 3), np.uint8)).save(top / split / name / f"{n}.png")
    return top


def small_text(folder: Path) -> list[str]:
    """The same of a language model, on a text."""
    write_text(folder)
    changes = ["length=1st", "batch.global=4", "expect=null", "model.classes=auto", "parallel.threads=1"]
    changes += [f"data={{name: text, root: {folder}, train: text.txt, context: 16}}"]
    return [*changes, "model.shape={depth: 1, width: 32, heads: 2, context: 16}"]


def small(name: str, pictures: Path) -> list[str]:
    """Overrides that change sizes alone."""
    recipe = load(name, ["model.init=null"] if name == "finetune" else []).recipe
    if recipe.task == "language" and recipe.data.name not in WITHOUT_ROOT:
        return small_text(pictures)
    values = leaves(recipe)
    found = ["length=1st", "batch.global=16", "batch.group=4", "expect=null", "track.wandb.mode=disabled"]
    if recipe.data.name in WITHOUT_ROOT:
        return found
    found += ["data.name=folder", f"data.root={pictures}", "model.classes=2", "parallel.threads=1"]
    found += [f"data.augment={flow(values['data.augment'])}", f"data.repeats={recipe.data.repeats}"]
    if not name.startswith("cifar10"):
        side = 64
        sizes = flow(values["data.augment"]).replace("[256, 480]", "[72, 80]").replace("size: 224", f"size: {side}")
        found += [f"data.augment={sizes}"]  # He et al. 2015 name theirs in the operations
        found += [f"resolution.train={side}", f"resolution.eval={side}", "resolution.eval_resize=72"]
        found += ["resolution.schedule.first=32"] if recipe.resolution.schedule else []
    else:
        fitted = "{name: resize, size: 32}, {name: centre_crop, size: 32}"  # its own images are of that size
        found += ["resolution.eval_resize=32", f"data.augment=[{fitted}, {{name: pad_crop}}, {{name: flip}}]"]
    return found + (["model.init=null"] if name == "finetune" else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", available())
def test_one_step(name: str, pictures: Path, tmp_path: Path) -> None:
    ended = worlds.train(tmp_path / "run", small(name, pictures), recipe=name)
    assert ended.codes == [0], ended.text
    (line,) = worlds.journal(tmp_path / "run")
    assert line["step"] == 1
    assert np.isfinite(line["train/loss"])
    assert "eval/top1" in line
