"""Layers, bases, overrides, the site file, and where each value came from."""

from pathlib import Path

import pytest

from restrain.errors import UserError
from restrain.recipe import Duration, find, load
from restrain.recipe.schema_optim import AdamW, Cosine, Sgd, Step

DELTA = "base: mine\n"


def test_a_minimal_recipe(minimal: str) -> None:
    found = load(minimal)
    recipe = found.recipe
    assert found.name == "mine"
    assert found.path == Path("mine.yaml")
    assert recipe.batch.global_ == 64
    assert recipe.batch.micro == "auto"
    assert recipe.length == Duration(2, "ep")
    assert recipe.checkpoint.every == Duration(10, "min")
    assert recipe.model.join.name == "add"
    assert hash(recipe) == hash(load(minimal).recipe)


def test_scalars_are_read_by_the_type_of_the_field(write) -> None:
    recipe = load(
        write(
            """\
model: {name: resnet18, classes: 0x10, zero_init: false}
data: {name: folder, root: 0123, train: off, max_bad: 1e-4, shuffle: True}
resolution: {train: 0064}
batch: {global: 0o100, group: +16}
length: '2ep'
optimizer: {name: sgd, lr: 1e-1}
schedule: {name: cosine, final: .5}
clip: 1
seed: 010
"""
        )
    ).recipe
    assert recipe.model.classes == 16
    assert recipe.model.zero_init is False
    assert (recipe.data.root, recipe.data.train, recipe.data.max_bad) == ("0123", "off", 1e-4)  # type: ignore[union-attr]
    assert (recipe.batch.global_, recipe.batch.group, recipe.resolution.train) == (64, 16, 64)
    assert (recipe.optimizer.lr, recipe.schedule.final, recipe.clip, recipe.seed) == (0.1, 0.5, 1.0, 10)
    assert isinstance(recipe.clip, float)


def test_overrides_are_read_by_the_type_of_the_field(minimal: str) -> None:
    recipe = load(
        minimal,
        [
            "optimizer.lr=1e-3",
            "track.wandb.name=off",
            "track.wandb.tags=[a, 'b c', 3]",
            "schedule.name=step",
            "schedule.at=[30%,60%]",
            "data.augment=[{name: flip, p: 0.25}, {name: pad_crop}]",
            "data.root=/data/x=y",
            "data.train=[a-c]*",
            'data.eval="null"',
            "clip=2",
            "clip=null",
            "ema={decay: 0.99}",
            "checkpoint.best=null",
        ],
    ).recipe
    assert recipe.optimizer.lr == 1e-3
    assert recipe.track.wandb.name == "off"
    assert recipe.track.wandb.tags == ("a", "b c", "3")
    assert isinstance(recipe.schedule, Step)
    assert recipe.schedule.at == (Duration(30, "%"), Duration(60, "%"))
    assert [operation.name for operation in recipe.data.augment] == ["flip", "pad_crop"]
    assert (recipe.data.root, recipe.data.train, recipe.data.eval) == ("/data/x=y", "[a-c]*", "null")  # type: ignore[union-attr]
    assert recipe.clip is None
    assert recipe.ema is not None
    assert recipe.ema.decay == 0.99
    assert recipe.checkpoint.best is None


@pytest.mark.parametrize("order", [1, -1])
def test_another_name_discards_the_keys_of_lower_layers(write, order: int) -> None:
    file = write(
        """\
model: {name: resnet18, classes: 5}
data: {name: folder}
resolution: {train: 64}
batch: {global: 64, group: 16}
length: 2ep
optimizer: {name: sgd, lr: 0.1, momentum: 0.8, nesterov: true, weight_decay: 0.1}
schedule: {name: step, at: [1ep], factor: 0.5, warmup: 3st}
"""
    )
    overrides = ["optimizer.name=adamw", "optimizer.lr=1e-3", "schedule.name=cosine"][::order]
    recipe = load(file, overrides).recipe
    assert recipe.optimizer == AdamW(name="adamw", lr=1e-3)
    assert recipe.schedule == Cosine(name="cosine")
    same = load(file, ["optimizer.name=sgd", "optimizer.lr=0.2"]).recipe
    assert same.optimizer == Sgd(name="sgd", lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1)


def test_a_discarded_key_that_is_needed_is_missed(minimal: str) -> None:
    with pytest.raises(UserError) as caught:
        load(minimal, ["optimizer.name=adamw"])
    assert str(caught.value).startswith("command line: optimizer.lr is missing: learning rate")


def test_a_default_name_is_discarded_too(write, minimal: str) -> None:
    file = write(DELTA + "loss: {smoothing: 0.1}\n", "delta.yaml")
    assert load(file).recipe.loss.name == "cross_entropy"
    assert load(file, ["loss.name=bce"]).recipe.loss.smoothing == 0.0
    assert load(file, ["loss.name=cross_entropy"]).recipe.loss.smoothing == 0.1


def test_another_network_of_the_same_kind_keeps_its_keys(minimal: str) -> None:
    model = load(minimal, ["model.name=resnet50"]).recipe.model
    assert (model.name, model.classes) == ("resnet50", 5)


def test_bases_and_origins(write, minimal: str) -> None:
    write(DELTA + "seed: 1\noptimizer: {lr: 0.3}\n", "middle.yaml")
    file = write("base: middle\n\nseed: 2\n", "top.yaml")
    found = load(file, ["clip=1.0"])
    origins = {key: str(origin) for key, origin in found.origins.items()}
    assert found.name == "top"
    assert (found.recipe.seed, found.recipe.optimizer.lr) == (2, 0.3)
    assert origins["seed"] == "top.yaml:3"
    assert origins["optimizer.lr"] == "middle.yaml:3"
    assert origins["optimizer.name"] == "mine.yaml:6"
    assert origins["clip"] == "command line"
    assert origins["ema"] == "default"
    assert [found.origins[key].layer for key in ("seed", "optimizer.lr", "optimizer.name", "clip", "ema")] == [
        "recipe",
        "base",
        "base",
        "command line",
        "default",
    ]
    assert found.origins["clip"].text == "clip=1.0"


def test_lists_replace(write) -> None:
    write("base: digits_resnet20\ndata: {augment: [{name: flip}]}\n", "other.yaml")
    assert [operation.name for operation in load("other.yaml").recipe.data.augment] == ["flip"]


def test_null_clears_a_section_and_a_key_fills_it_again(write, minimal: str) -> None:
    write(DELTA + "ema: {decay: 0.9, every: 2st}\n", "averaged.yaml")
    file = write("base: averaged\nema: null\n", "not.yaml")
    assert load(file).recipe.ema is None
    again = load(file, ["ema.decay=0.5"]).recipe.ema
    assert again is not None
    assert (again.decay, again.every) == (0.5, Duration(1, "st"))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a": "base: a\n"}, "a.yaml:1: base goes round in a circle: a -> a."),
        ({"a": "base: b\n", "b": "base: a\n"}, "b.yaml:1: base goes round in a circle: a -> b -> a."),
        (
            {"a": "base: b\n", "b": "base: c\n", "c": "\nbase: digits_resnet20\n"},
            "c.yaml:2: a recipe stands on at most 2 bases, not a -> b -> c -> digits_resnet20.",
        ),
        ({"a": "base: [b]\n"}, "a.yaml:1: base takes the name or the file of another recipe."),
        ({"a": "base: sub/b.yaml\n"}, "a.yaml:1: base 'sub/b.yaml': there is no file sub/b.yaml."),
    ],
)
def test_bad_bases(write, files: dict[str, str], told: str) -> None:
    for name, text in files.items():
        write(text, f"{name}.yaml")
    with pytest.raises(UserError) as caught:
        load("a.yaml")
    assert str(caught.value) == told


def test_a_misspelt_base_gets_the_nearest(write) -> None:
    with pytest.raises(UserError, match=r"a\.yaml:1: base: there is no recipe 'digits_resnet2'\. Did you mean 'digi"):
        load(write("base: digits_resnet2\n", "a.yaml"))


def test_a_lock_is_read_without_its_lock_section(write, minimal: str) -> None:
    text = Path(minimal).read_text()
    file = write(text + "lock: {recipe: imagenet, decode: {name: pil}}\n", "recipe.lock.yaml")
    assert load(file).recipe == load(minimal).recipe
    assert load(file).name == "imagenet"
    assert load(write(text, "other.lock.yaml")).name == "other"
    with pytest.raises(UserError, match=r"mine2\.yaml:8: lock is not a key"):
        load(write(text + "lock: {recipe: x}\n", "mine2.yaml"))


SITE = """\
data: {mine: /data/mine, imagenet: /data/imagenet, folder: /data/any}
wandb: {entity: us}
slurm: {partition: gpu, account: vision}
modules: [cuda/13]
interface: ib0
"""


def test_site_file(write, minimal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / write(SITE, "site.yaml")
    found = load(minimal, site=site)
    assert found.recipe.data.root == "/data/mine"  # type: ignore[union-attr]
    assert found.recipe.track.wandb.entity == "us"
    assert str(found.origins["data.root"]) == "site.yaml:1"
    assert found.origins["data.root"].layer == "site"
    assert found.site.slurm.partition == "gpu"
    assert found.site.modules == ("cuda/13",)
    assert load(minimal, ["data.root=here"], site=site).recipe.data.root == "here"  # type: ignore[union-attr]
    monkeypatch.setenv("RESTRAIN_SITE", str(site))
    assert load("imagenet_resnet152").recipe.data.root == "/data/imagenet"  # type: ignore[union-attr]
    assert load("cifar10_resnet20").recipe.data.root is None  # type: ignore[union-attr]
    changed = load("cifar10_resnet20", ["data.name=folder"]).recipe
    assert changed.data.root == "/data/any"  # type: ignore[union-attr]
    assert load("digits_resnet20").recipe.track.wandb.entity == "us"
    monkeypatch.delenv("RESTRAIN_SITE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "restrain").mkdir()
    site.rename(tmp_path / "restrain" / "site.yaml")
    assert load(minimal).recipe.data.root == "/data/mine"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "optimizer: {lr: 1}\n",
            "site.yaml:1: optimizer is not a key. The keys of the site file are data, wandb, slurm, modules, "
            "interface, nccl, start_timeout.",
        ),
        ("slurm: {partion: x}\n", "site.yaml:1: slurm.partion is not a key. Did you mean 'partition'?"),
        ("data: [a]\n", "site.yaml:1: data is a list, but it takes lines of its own, KEY: VALUE."),
    ],
)
def test_bad_site_files(write, minimal: str, tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load(minimal, site=tmp_path / write(text, "site.yaml"))
    assert str(caught.value).startswith(told)


def test_a_named_site_file_must_be_there(minimal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTRAIN_SITE", "nowhere.yaml")
    with pytest.raises(UserError) as caught:
        load(minimal)
    assert str(caught.value) == "The site file nowhere.yaml is not there: correct or unset $RESTRAIN_SITE."


def test_find() -> None:
    assert find("digits_resnet20").is_file()
    with pytest.raises(UserError, match="Did you mean 'digits_resnet20'"):
        find("digit_resnet20")


def test_recipes_inside_the_package_are_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed wheel."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "shipped.yaml").write_text(find("digits_resnet20").read_text())
    monkeypatch.setattr("restrain.recipe.loading.PACKAGE", tmp_path)
    assert load("shipped").recipe.model.name == "cifar_resnet20"


def test_a_place_says_how_tracking_is_done_and_never_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("wandb: {entity: team, project: vision, mode: online, tags: [here]}\n")
    monkeypatch.setenv("RESTRAIN_SITE", str(site))
    silent = load("digits_resnet20").recipe.track.wandb
    assert (silent.mode, silent.project, silent.entity, silent.tags) == ("disabled", "vision", "team", ("here",))
    assert load("imagenet_resnet50").recipe.track.wandb.mode == "online"
    asked = load("imagenet_resnet50", ["track.wandb.mode=offline", "track.wandb.project=mine"]).recipe.track.wandb
    assert (asked.mode, asked.project) == ("offline", "mine")


def test_a_key_over_a_section_that_was_typed_whole_leaves_the_rest_of_it():
    batch = load("digits_resnet20", ["batch={global: 8, group: 2}", "batch.micro=4"]).recipe.batch
    assert (batch.global_, batch.group, batch.micro) == (8, 2, 4)
    batch = load("digits_resnet20", ["batch.micro=4", "batch={global: 8, group: 2}"]).recipe.batch
    assert (batch.global_, batch.group, batch.micro) == (8, 2, "auto")  # of two values for one key the later counts
