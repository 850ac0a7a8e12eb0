"""Still a WebDataset: its reader on our shards, its stages on our samples, our order in its pipelines."""

import gc
import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

import restrain
from restrain.cli.main import run
from restrain.data import IndexedSource, augment, sets
from restrain.data.loader import EvalLoader
from restrain.data.wds.stages import apply, check_stages, name_of, script_names
from restrain.errors import UserError, WorldError
from tests.bad_input.harness import AUGMENT, RECIPE, flip
from tests.data.making import contents, jpeg, section, train_loader, write_shards, write_tar


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), 3, 11)


def opened(root, *stages, split="train", classes=5):
    named = {"stages": script_names(stages)} if stages else {}
    return sets.open_source(section("webdataset", root, **named), split, classes=classes, stages=stages)


def theirs_of(urls, *stages):
    """Webdataset's own samples; it leaves the shards open, which is its affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = wds.WebDataset(urls, shardshuffle=False).compose(*stages)
        found = list(data)
        del data
        gc.collect()
    return found


# ------------------------------------------------------------------------------------------------- webdataset's reader


def test_webdataset_reads_the_same_samples_from_our_shards(root):
    source = opened(root)
    urls = [str(root / name) for name in source.names]
    theirs = [{k: v for k, v in one.items() if k != "__local_path__"} for one in theirs_of(urls)]
    assert [source.sample(s, j) for s, n in enumerate(source.counts) for j in range(n)] == theirs
    assert len(theirs) == 33


# ---------------------------------------------------------------------------------------------------------- the stages


def test_stages_that_change_nothing_change_nothing(root):
    straight = contents(train_loader(opened(root)))
    for stages in (
        [wds.decode("pil")],
        [wds.decode("rgb8")],
        [wds.map(lambda sample: sample)],
        [wds.rename(image="jpg", cls="cls"), wds.rename(jpg="image", cls="cls")],
        [wds.decode("pil"), wds.to_tuple("jpg", "cls")],
    ):
        assert contents(train_loader(opened(root, *stages), threads=3)) == straight


def test_stages_see_webdatasets_dict_and_what_they_make_is_trained_on(root):
    seen = []

    def invert(sample):
        seen.append(sample)
        image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        return {**sample, "jpg": Image.fromarray(255 - np.asarray(image)), "cls": (int(sample["cls"]) + 1) % 5}

    plain, staged = opened(root), opened(root, wds.map(invert))
    one, other = plain.read(1, 3), staged.read(1, 3)
    assert seen == [plain.sample(1, 3)]
    assert (other.key, other.crc, other.label) == (one.key, one.crc, (one.label + 1) % 5)
    assert np.array_equal(other.data, 255 - np.asarray(Image.open(io.BytesIO(one.data))))
    assert staged.fingerprint == plain.fingerprint


def test_a_stage_that_drops_doubles_or_raises_makes_a_bad_sample(root):
    def doubled(samples):
        for sample in samples:
            yield sample
            if sample["__key__"] == "s00004":
                yield sample

    def raising(sample):
        if sample["__key__"] == "s00017":
            raise ValueError("no  face in\nit")
        return sample

    def dropping(samples):
        return (sample for sample in samples if sample["__key__"] != "s00010")

    source = opened(root, doubled, wds.map(raising), dropping)
    replaced = {r for batch in train_loader(source) for r in batch.replaced}
    assert {(r.shard, r.j, r.key, r.reason, r.used_j) for r in replaced} == {
        (0, 4, "s00004", "the stages gave 2 samples for it, not one", 5),
        (0, 10, "s00010", "the stages gave 0 samples for it, not one", 0),
        (1, 6, "s00017", "the stages raised ValueError: no face in it", 7),
    }
    quiet = opened(root, wds.map(raising, handler=wds.ignore_and_continue))  # webdataset's own way to lose a sample
    assert {r.reason for b in train_loader(quiet) for r in b.replaced} == {"the stages gave 0 samples for it, not one"}


def test_in_evaluation_such_a_sample_is_not_valid(tmp_path):
    write_shards(tmp_path, 2, 9, prefix="val")
    source = opened(tmp_path, lambda samples: (s for s in samples if s["__key__"] != "s00010"), split="eval")
    loader = EvalLoader(source, augment.eval_pipeline(12, 14), rank=0, world=1, batch=5, threads=2)
    batches = list(loader)
    assert sum(int(b.valid.sum()) for b in batches) == 17
    assert [(b.shard, b.j, b.key) for one in batches for b in one.bad] == [(1, 1, "s00010")]


def test_bad_images_and_labels_after_stages(root):
    cases = {
        "no image among its files after the stages (.cls)": wds.map(lambda s: {"__key__": "k", "cls": s["cls"]}),
        "label missing: neither .cls nor .json among its files (.jpg)": wds.map(lambda s: {"jpg": s["jpg"]}),
        "label missing: its .cls is float after the stages": wds.map(lambda s: {**s, "cls": 0.5}),
        "the stages gave tuple, neither a sample nor (image, label)": wds.to_tuple("jpg", "cls", "__key__"),
    }
    for reason, stage in cases.items():
        with pytest.raises(WorldError) as told:
            list(train_loader(opened(root, stage)))
        assert reason in str(told.value)
    for stage, kind in ((wds.decode("rgb"), "float32"), (wds.decode("torchrgb8"), "Tensor")):
        with pytest.raises(UserError, match=r"after them.*wds\.decode\('rgb8'\)") as told:
            opened(root, stage).read(0, 0)
        assert kind in str(told.value)
    with pytest.raises(UserError, match=r"has label 7, and model\.classes=5"):
        opened(root, wds.map(lambda s: {**s, "cls": 7})).read(0, 0)


def test_a_function_of_one_sample_is_told_from_a_stage(root):
    with pytest.raises(UserError, match=r"gave str, not samples.*wds\.map"):
        opened(root, lambda sample: "x").read(0, 0)


def test_nothing_is_unpickled(tmp_path):
    """Webdataset's decoder would run what is in these."""
    bomb = b"cbuiltins\nexec\n(S'raise SystemError(\"run\")'\ntR."
    write_tar(tmp_path / "train-0.tar", [("a.cls", b"1"), ("a.jpg", jpeg(1)), ("a.pyd", bomb), ("a.x.pickle", bomb)])
    with pytest.raises(wds.DecodingError) as ran:
        list(wds.decode()([{"__key__": "a", "pyd": bomb}]))
    assert str(ran.value.__cause__) == "run"
    assert opened(tmp_path, wds.decode()).read(0, 0).label == 1
    assert set(opened(tmp_path, wds.decode()).sample(0, 0)) == {"__key__", "__url__", "cls", "jpg"}


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (wds.shuffle(1000), r"shuffle \(shuffle\) cannot be a stage here: it would change the order"),
        (wds.detshuffle(10), "would change the order"),
        (wds.select(bool), "would change the number of samples"),
        (wds.slice(10), "would change the number of samples"),
        (wds.batched(8), "would change the number of samples"),
        (wds.unbatched(), "would change the number of samples"),
        (wds.rsample(0.5), "would change the number of samples"),
        (wds.Cached(), "would change the number of samples"),
        (wds.split_by_node, "would split the samples once more"),
        (wds.split_by_worker, "would split the samples once more"),
        (wds.tarfile_to_samples(), "makes samples, it does not take them"),
        (wds.map, "is not called yet"),
        (3, "is int, not a webdataset stage"),
    ],
)
def test_what_cannot_be_one_to_one_is_refused(stage, said):
    with pytest.raises(UserError, match=said):
        check_stages([stage])


def test_names_of_a_scripts_stages():
    assert name_of(wds.shuffle(3)) == "shuffle"
    assert script_names([wds.map(abs), wds.map(len), wds.decode(), lambda s: s]) == [
        "script/map",
        "script/map-2",
        "script/decode",
        "script/-lambda-",
    ]
    assert apply([wds.map(lambda s: len(s))], {"a": b"1", "b.pth": b"2"}) == 1


# -------------------------------------------------------------------------------------- our order in their pipelines


def piped(root, *stages, **fields):
    source = IndexedSource(root, "train-*.tar", **{"seed": 3, "batch": 8, "group": 2, **fields})
    return list(wds.WebLoader(wds.DataPipeline(source, *stages), batch_size=None, num_workers=0))


def test_the_order_is_that_of_a_run(root):
    """Which sample, at which row of which step and rank: read off the ledger's prefix of the loader."""
    source = opened(root)
    trained = [(batch.step, row) for batch in train_loader(source) for row in batch.micros[0].labels.tolist()]
    steps = train_loader(source).stop
    rows = piped(root, wds.decode(), wds.to_tuple("jpg", "cls", "__key__"), stop=steps)
    assert [label for _, label, _ in rows] == [label for _, label in trained]
    order = train_loader(source)
    expected = []
    for step in range(steps):
        epoch, positions = order.plan.rows(step)
        shard, j = order.order(epoch, positions[0])
        expected += [source.sample(s, k)["__key__"] for s, k in zip(shard.tolist(), j.tolist(), strict=True)]
    assert [key for _, _, key in rows] == expected


def test_any_world_and_any_start_give_the_same_rows(root):
    keys = [one["__key__"] for one in piped(root, stop=8)]
    assert len(keys) == 64
    steps = np.array(keys).reshape(8, 8)
    for world in (2, 4):
        parts = [np.array([one["__key__"] for one in piped(root, stop=8, rank=r, world=world)]) for r in range(world)]
        assert np.array_equal(np.concatenate([p.reshape(8, -1) for p in parts], axis=1), steps)
    assert [one["__key__"] for one in piped(root, start=5, stop=8)] == keys[40:]
    assert [one["__key__"] for one in piped(root, start=5)] == keys[40:]  # to the end of its epoch, 4 steps each
    assert len(IndexedSource(root, "train-*.tar", seed=3, batch=8, rank=1, world=4, stop=8)) == 16


def test_workers(root):
    def pipeline():
        return wds.DataPipeline(IndexedSource(root, "train-*.tar", seed=3, batch=8, group=2, stop=4), wds.map(key))

    straight = list(wds.WebLoader(pipeline(), batch_size=None, num_workers=0))
    assert list(wds.WebLoader(pipeline(), batch_size=None, num_workers=1)) == straight
    with pytest.raises(UserError, match="runs in 2 workers"):
        list(wds.WebLoader(pipeline(), batch_size=None, num_workers=2))


def key(sample):
    return sample["__key__"]


def test_bit_rot_is_replaced_and_noted(tmp_path):
    write_shards(tmp_path, 1, 8)
    source = IndexedSource(tmp_path, "train-*.tar", seed=0, batch=8)
    flip(tmp_path / "train-000.tar", source.source.index.span(0, 7)[0] + 700)
    assert sorted(one["__key__"] for one in source) == ["s00000", *(f"s{n:05d}" for n in range(7))]
    assert [(name, j, used) for name, j, _, used in source.replaced] == [("train-000.tar", 7, 0)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": 7, "world": 2, "group": None}, "cannot be shared by world=2"),
        ({"world": 3}, "3 processes cannot share"),
        ({"rank": 2, "world": 2}, "rank is to be 0 to world - 1"),
        ({"start": 3, "stop": 2}, "steps count from 0"),
        ({"batch": 64, "group": 2}, "more than the 33 training samples"),
    ],
)
def test_sizes_that_do_not_fit(root, fields, said):
    with pytest.raises(UserError, match=said):
        IndexedSource(root, "train-*.tar", **{"seed": 3, "batch": 8, "group": 2, **fields})


def test_no_torch_is_needed():
    code = "import sys; from restrain.data import IndexedSource; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------------- whole runs

STAGES = """
import webdataset as wds

clean = wds.map(lambda sample: {**sample, "cls": b"0"})
mixed = wds.shuffle(100)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    info = tmp_path / "site" / "my_stages-1.3.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "my_stages_of_tests.py").write_text(STAGES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-stages\nVersion: 1.3\n")
    points = "[restrain.stages]\nclean = my_stages_of_tests:clean\nmixed = my_stages_of_tests:mixed\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def recipe_of(folder):
    write_shards(folder / "set", 1, 12, classes=2)
    (folder / "mine.yaml").write_text(RECIPE)
    return str(folder / "mine.yaml"), ["data.name=webdataset", AUGMENT, f"data.root={folder / 'set'}", "data.eval=null"]


def test_stages_of_a_package_are_trained_with_and_locked(package, tmp_path, capsys):
    recipe, words = recipe_of(tmp_path)
    argv = ["train", recipe, *words, "--run", str(tmp_path / "run")]
    assert run([*argv, "data.stages=[my-stages/clean]"]) == 0, capsys.readouterr().err
    lock = (tmp_path / "run" / "recipe.lock.yaml").read_text()
    assert 'stages_package: "my-stages 1.3"' in lock
    assert "my-stages/clean" in lock
    assert run([*argv[:-1], str(tmp_path / "other"), "data.stages=[my-stages/mixed]"]) == 2
    assert "my-stages/mixed (shuffle) cannot be a stage here" in capsys.readouterr().err


def test_stages_of_a_script_are_in_the_lock_by_their_source(tmp_path):
    recipe, words = recipe_of(tmp_path)

    def fitted(*stages, more=(), **fields):
        return restrain.fit(recipe, [*words, *more], stages=list(stages), run=tmp_path / "run", **fields)

    assert fitted(wds.map(key_kept)).step == 3
    assert fitted(wds.map(key_kept)).already
    with pytest.raises(UserError, match="the source of the stages"):
        fitted(wds.map(key_kept, handler=wds.warn_and_continue), more=["length=4st"], allow=["length"])
    with pytest.raises(UserError, match=r"data\.stages"):
        restrain.fit(recipe, [*words, "length=4st"], run=tmp_path / "run", allow=["length"])
    with pytest.raises(UserError, match=r"would do nothing\. Stages need data\.name=webdataset"):
        fitted(wds.map(key_kept), more=["data.stages=[]"])


def key_kept(sample):
    return {**sample, "seen": b"1"}
