"""``restrain bench data`` and what it calls the limit, in staged cases; and loaders side by side."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from restrain import draws
from restrain.bench import beside, feeding, peers, photographs
from restrain.cli.main import run
from restrain.data import augment, images, indexing, sets
from restrain.data.augment.geometry import RandomResizedCrop
from restrain.errors import UserError
from restrain.recipe import load
from restrain.training import build
from tests.data.faulty import FaultyServer
from tests.data.making import section, write_shards


@pytest.fixture
def values(tmp_path: Path) -> list[str]:
    write_shards(tmp_path / "set", 3, 40, classes=5)
    data = f"{{name: webdataset, root: {tmp_path / 'set'}, eval: null}}"
    own = [f"data={data}", "resolution={train: 16, eval: 16}", "batch.global=8", "batch.group=4", "expect=null"]
    return ["model={name: cifar_resnet20, classes: 5, in_chans: 3}", *own, "data.threads=1"]


def fed(values: list[str], step: bool = False, delay: float = 0.0) -> feeding.Feeding:
    recipe = load("digits_resnet20", values).recipe
    data = build.open_data(recipe)
    if delay:
        store = data.train._store  # pyright: ignore[reportAttributeAccessIssue]
        read = store.read

        def slowly(shard: int, offset: int, length: int) -> bytes:
            time.sleep(delay)
            return read(shard, offset, length)

        store.read = slowly
    return feeding.of_recipe(recipe, data, 0.4, step)


def test_a_slow_disk_is_the_limit(values: list[str]) -> None:
    found = fed(values, step=True, delay=0.02)
    assert found.limit == "read"
    assert found.stages["read"].wall_ms > 20 > 4 * found.stages["read"].cpu_ms
    assert found.step is not None
    assert found.whole.images_per_s < 50 < found.step


def test_a_slow_network_is_the_limit(values: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each sample by a range request to a server that thinks for 20 ms."""
    indexing.index_shards(tmp_path / "set", indexing.match_shards(tmp_path / "set", "*.tar"))
    server = FaultyServer(tmp_path / "set")
    server.delay = 0.02
    remote = [f"data.root={server.url}", "data.mode=range", f"data.cache={tmp_path / 'cache'}"]
    assert run(["bench", "data", "digits_resnet20", *values, *remote, "--seconds", "0.4"]) == 0
    said = capsys.readouterr().out
    assert "the limit is the network: reading an image takes" in said
    assert "A nearer store, a cache" in said
    server.shutdown()
    server.server_close()


def test_heavy_augmentation_is_the_limit(values: list[str]) -> None:
    ops = "{name: random_resized_crop}, {name: rand_augment, ops: 12}"
    assert fed([*values, f"data.augment=[{ops}]"]).limit == "augment"


def test_a_slow_model_is_the_limit(values: list[str]) -> None:
    found = fed([*values, "model.name=cifar_resnet110", "data.threads=2"], step=True)
    assert found.limit == "step"
    assert found.step is not None
    assert found.step < found.whole.images_per_s


def test_large_photographs_need_the_decoder(values: list[str], tmp_path: Path, shared: Path) -> None:
    recipe = [*values, f"data.root={shared / 'imagenet-sample'}", "model.classes=1000", "resolution.train=64"]
    found = fed(recipe)
    assert found.limit == "decode"
    assert found.stages["decode"].cpu_ms > found.stages["read"].cpu_ms


def test_the_command_says_it_and_writes_it(
    values: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert run(["bench", "data", "digits_resnet20", *values, "--seconds", "0.2", "--json", str(out)]) == 0
    told = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert "1 data thread(s): " in told
    assert f"the limit is {feeding.LIMITS[figures['limit']]}: " in told
    assert set(figures["stages_ms"]) == {"read", "decode", "augment", "collate"}
    assert figures["cpu_ms_per_image"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits_resnet20"], "The digits are arrays in memory, so there is nothing to read or decode"),
        (["digits_resnet20", "--vs", "tim"], r"--vs tim: no such loader. Did you mean 'timm'"),
        (["imagenet_resnet50"], "data.root is not set"),
    ],
)
def test_bad_input_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "data", *words]) != 0
    assert said in capsys.readouterr().err


def unpacked(tmp_path: Path, copies: int = 2) -> photographs.Photographs:
    source = sets.open_source(section("webdataset", write_shards(tmp_path / "set", 2, 20)), "train")
    assert source is not None
    return photographs.unpack(source, tmp_path / "photographs", copies, most=30)


def test_all_loaders_take_the_same_crops(tmp_path: Path) -> None:
    """Ours, and the crop that stands in for timm's and torchvision's own, of each image by its name."""
    chosen = unpacked(tmp_path)
    assert chosen.images == 60 == len(set(chosen.keys.values()))
    source, seen = chosen.source(), {}

    class Recorded(RandomResizedCrop):
        def params(self, key, height, width):
            seen[key] = super().params(key, height, width)
            return seen[key]

    pipeline = augment.train_pipeline(beside.CROP, 8)
    pipeline.ops[0] = Recorded(8)
    assert sum(len(batch.micros[0].labels) for batch in photographs.ours(source, pipeline, 4, 1, epochs=2)) == 120
    crop = photographs.KeyedCrop(chosen, 8)
    boxes = []
    for path in chosen.files.glob("*/*.jpg"):
        crop.name = path.stem
        height, width = images.decode(path.read_bytes()).shape[:2]
        boxes.append(crop(type("Picture", (), {"size": (width, height)}), None, None))
    assert sorted(boxes) == sorted(seen[draws.extend_key(key, 0)][:4] for key in chosen.keys.values())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of theirs
@pytest.mark.parametrize("name", ["timm", "torchvision", "webdataset", "numpy"])
@pytest.mark.parametrize("evaluation", [False, True])
def test_peers_give_every_photograph(name: str, evaluation: bool, tmp_path: Path) -> None:
    chosen = unpacked(tmp_path)
    batches = list(peers.PEERS[name](chosen, 15, 0, evaluation))
    assert sum(len(batch[0]) for batch in batches) == 60
    first = np.asarray(batches[0][0][0])
    assert first.shape in ((3, 224, 224), (224, 224, 3))
    assert first.dtype == np.uint8


def test_nothing_to_compare_is_told(tmp_path: Path) -> None:
    source = sets.open_source(section("digits"), "train")
    assert source is not None
    with pytest.raises(UserError, match="holds no JPEGs"):
        photographs.unpack(source, tmp_path / "none")


@pytest.mark.slow
def test_rows_of_a_comparison(tmp_path: Path) -> None:
    rows = beside.compare(unpacked(tmp_path), ["timm"], [1], rounds=1)
    assert [row.name for row in rows] == ["restrain", "timm"]
    assert rows[1].ratio_to_timm == 1.0
    assert all(row.cpu_ms_per_image > 0 and row.images_per_s > 0 for row in rows)
    assert len(beside.table(rows)) == 3
