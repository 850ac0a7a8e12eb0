"""``restrain predict``: one row an image, in order, the evaluation's own answer; what cannot be read is listed."""

import csv
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from restrain.cli.main import run
from restrain.training.loaded import load_weights
from restrain.training.predict import predict
from tests import worlds


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a folder of colour images, and the folder."""
    top = tmp_path_factory.mktemp("predict")
    digits = load_digits()
    for n in range(400):
        folder = top / "pictures" / ("val" if n % 5 == 0 else "train") / f"digit-{digits.target[n]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[n] * 15).astype("uint8")).convert("RGB").save(folder / f"{n:04d}.png")
    overrides = [
        *("model.in_chans=3", "data.name=folder", f"data.root={top / 'pictures'}"),
        *("data.augment=[]", "resolution={train: 8, eval: 8}", "length=3ep", "optimizer.lr=0.1", "expect=null"),
        *("data.mean=[0.3, 0.3, 0.3]", "data.std=[0.37, 0.37, 0.37]"),
    ]
    ended = worlds.train(top / "run", overrides)
    assert ended.codes == [0], ended.text
    return top / "run", top / "pictures"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_evaluations_own_answer(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Counted over the evaluation set, the predictions have exactly its accuracy."""
    folder, pictures = trained
    assert run(["predict", str(folder), str(pictures / "val"), "--top", "2", "-o", str(tmp_path / "out.csv")]) == 0
    found = rows(tmp_path / "out.csv")
    assert [row["image"] for row in found] == sorted(row["image"] for row in found)
    right = sum(Path(row["image"]).parent.name == row["class1"] for row in found)
    best = json.loads((folder / "run.json").read_text())["best"]
    assert len(found) == 80
    assert 100.0 * right / len(found) == pytest.approx(best["value"])
    assert all(0 <= float(row["share2"]) <= float(row["share1"]) <= 1 for row in found)


def test_bad_images_are_listed_and_fatal_to_nobody(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pictures = trained
    good = sorted((pictures / "val").rglob("*.png"))[:3]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "b.png").write_bytes(good[0].read_bytes())
    (mine / "a.jpg").write_bytes(b"no picture")
    (mine / "c.png").write_bytes(good[1].read_bytes()[:60])
    Image.new("RGB", (30, 20)).save(mine / "d.png")  # another size, and this recipe does not resize
    (mine / "notes.txt").write_text("not looked at")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(good[2], "x.png")
    (tmp_path / "torn.tar").write_bytes((tmp_path / "shard.tar").read_bytes()[:700])
    out = tmp_path / "out.jsonl"
    paths = [str(mine), str(tmp_path / "shard.tar"), str(tmp_path / "torn.tar"), str(good[2])]
    assert run(["predict", str(folder), *paths, "-o", str(out), "--top", "1"]) == 1
    assert "could not be read" in capsys.readouterr().err
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(one["image"]).name for one in found[:5]] == ["a.jpg", "b.png", "c.png", "d.png", "x.png"]
    assert [one["error"] is None for one in found[:5]] == [False, True, False, False, True]
    assert found[-1]["error"] is None
    assert found[4]["classes"] == found[-1]["classes"]


def test_the_order_and_the_numbers_do_not_depend_on_batches(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pictures = trained
    loaded = load_weights(folder)
    images = sorted((pictures / "val").rglob("*.png"))[:30]
    whole = list(predict(loaded, images, 3))
    monkeypatch.setattr("restrain.training.predict.BATCH", 7)
    parts = list(predict(loaded, images, 3))
    assert [one.image for one in whole] == [one.image for one in parts] == [str(path) for path in images]
    assert [one.classes for one in whole] == [one.classes for one in parts]


def test_what_is_refused(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = trained
    for argv, said in (
        (["nowhere.png"], "There is no nowhere.png"),
        ([str(tmp_path)], "There is no image in"),
        ([str(tmp_path), "-o", "out.xlsx"], "name a .csv or a .jsonl file"),
        ([str(tmp_path), "--top", "11"], "the network has 10 classes"),
    ):
        assert run(["predict", str(folder), *argv]) == 2
        assert said in capsys.readouterr().err
