"""Whatever a recipe holds, its YAML reads back as the same recipe, from a file and from the command line."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restrain.errors import UserError
from restrain.recipe import ABSENT, Recipe, differences, is_placement, leaves, load, to_yaml
from restrain.recipe.writing import plain

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
awkward = st.sampled_from(
    [
        "null",
        "~",
        "off",
        "True",
        "0x1",
        "1e-4",
        "1_000",
        "90ep",
        "a: b",
        "# c",
        "- d",
        "x #y",
        " z ",
        "\t",
        "\u2028",
        "'\"\\",
    ]
)
text = words | awkward
numbers = st.floats(1e-12, 1e6, allow_nan=False)
counts = st.integers(1, 10**6)
shares = st.floats(0, 0.999)
auto = st.just("auto")


def duration(*units: str) -> st.SearchStrategy[str]:
    value = st.integers(1, 10**6).map(str) | st.floats(0.001, 10**6).map(lambda value: f"{value:f}")
    return st.tuples(st.sampled_from(units), value).map(lambda pair: _whole(pair[1], pair[0]))


def _whole(number: str, unit: str) -> str:
    return f"{int(float(number)) + 1}st" if unit == "st" else number + unit


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def named(name: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"name": st.just(name)}, optional=keys)


def _both(one: st.SearchStrategy, other: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(one, other).map(lambda pair: {**pair[0], **pair[1]})


augmentations = st.lists(
    named("flip", p=st.floats(0.01, 1))
    | named("pad_crop", padding=counts)
    | named("random_resized_crop", scale=st.floats(0.01, 1).map(lambda low: [low, 1.0]))
    | st.fixed_dictionaries({"name": st.just("resize"), "size": counts}),
    max_size=3,
)
sources = named(
    "folder",
    root=st.none() | text,
    train=text,
    eval=st.none() | text,
    augment=augmentations,
    repeats=st.just(1),
    threads=auto | st.integers(1, 1024),
    max_bad=shares,
    cache=st.none() | text,
) | named("webdataset", train=text, lanes=auto | counts, window=auto | counts)
optimizers = _both(
    st.fixed_dictionaries({"lr": numbers}, optional={"weight_decay": numbers}),
    named("sgd", momentum=st.floats(0.1, 0.9), nesterov=st.booleans()) | named("adamw", betas=st.just([0.9, 0.95])),
)
schedules = named("cosine", final=shares, warmup=st.just("1st")) | st.just({"name": "step", "at": ["10%", "20%"]})

recipes = st.fixed_dictionaries(
    {
        "model": st.just({"name": "resnet18", "classes": 2}),
        "data": sources,
        "resolution": st.just({"train": 64, "eval": 64, "eval_resize": 70}),
        "batch": counts.map(lambda size: {"global": size, "group": size, "micro": size}),
        "length": duration("ep", "st").filter(lambda length: length != "1st"),
        "optimizer": optimizers,
        "schedule": schedules,
    },
    optional={
        "loss": named("bce", smoothing=shares, threshold=st.none() | shares),
        "clip": st.none() | numbers,
        "ema": st.none() | st.fixed_dictionaries({"decay": st.floats(0.1, 0.9)}, optional={"every": duration("st")}),
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "deterministic": st.booleans(),
        "checkpoint": section(every=duration("ep", "st", "%", "s", "min", "h"), keep=counts, best=st.none()),
        "track": section(
            every=duration("min", "st"), wandb=section(name=st.none() | text, tags=st.lists(text, max_size=3))
        ),
        "expect": st.none()
        | st.fixed_dictionaries(
            {"value": st.floats(-1e9, 1e9), "tolerance": numbers, "source": text, "status": st.just("paper")}
        ),
        "seed": st.integers(0, 2**63 - 1),
    },
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(values=recipes)
def test_yaml_round_trip(values: dict[str, Any], tmp_path) -> None:
    recipe = Recipe.model_validate(values)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    again = load(str(file)).recipe
    assert again == recipe
    assert differences(again, recipe) == []
    assert to_yaml(again) == to_yaml(recipe)


@quick
@given(values=recipes)
def test_overrides_round_trip(values: dict[str, Any]) -> None:
    """Each top-level line of the YAML is an override as well, in flow form."""
    from restrain.recipe.writing import flow

    recipe = Recipe.model_validate(values)
    overrides = [f"{key}={flow(value)}" for key, value in plain(recipe).items()]
    assert load("imagenet_resnet50", overrides).recipe == recipe


@given(st.sampled_from(sorted(leaves(load("digits_resnet20").recipe))), words | awkward | st.text("[]{},:'\"a1 *&!\n"))
@quick
def test_any_override_is_taken_or_refused_in_one_paragraph(key: str, value: str) -> None:
    told = ""
    try:
        load("digits_resnet20", [f"{key}={value}"])
    except UserError as error:
        told = str(error)
    assert "\n" not in told


def test_differences() -> None:
    one = load("digits_resnet20").recipe
    other = load("digits_resnet20", ["optimizer.name=adamw", "optimizer.lr=0.1", "seed=1", "data.augment=[]"]).recipe
    assert differences(one, other) == [
        ("data.augment", [{"name": "shift", "pixels": 1}], []),
        ("optimizer.name", "sgd", "adamw"),
        ("optimizer.weight_decay", 1e-4, 0.0),
        ("optimizer.momentum", 0.9, ABSENT),
        ("optimizer.nesterov", False, ABSENT),
        ("optimizer.decay", "coupled", ABSENT),
        ("seed", 0, 1),
        ("optimizer.betas", ABSENT, [0.9, 0.999]),
        ("optimizer.eps", ABSENT, 1e-8),
    ]
    assert repr(ABSENT) == "absent"


def test_placement() -> None:
    keys = leaves(load("imagenet_resnet50", ["profile={at: 5st}"]).recipe)
    assert {key for key in keys if is_placement(key)} == {
        *("parallel." + key for key in ("strategy", "accelerator", "devices", "nodes", "threads", "remat", "compile")),
        *("parallel." + key for key in ("tensor", "shard", "reshard", "reduce", "offload")),
        *("track." + key for key in ("every", "pixels", "probe", "tensorboard")),
        *("data." + key for key in ("cache", "cache_bytes", "mode", "index", "processes")),
        *("expect." + key for key in ("metric", "value", "tolerance", "better", "source", "status", "at")),
        *("track.wandb." + key for key in ("mode", "project", "entity", "group", "name", "tags", "notes")),
        *("track.wandb." + key for key in ("system", "code", "checkpoints")),
        "batch.micro",
        "data.threads",
        "data.root",
        "checkpoint.every",
        "checkpoint.keep",
        "profile.at",
        "profile.steps",
    }
    assert is_placement("profile")
    assert not is_placement("batch.group")
