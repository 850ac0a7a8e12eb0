"""ZeRO by DeepSpeed's engine: the run of one process, and checkpoints that any layout goes on from."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from restrain.errors import UserError
from restrain.parallel import zero_keys
from restrain.recipe import load
from tests import worlds
from tests.parallel.parity import worst

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed, which is not installed"
)
STAGES = ["zero1", "zero2", "zero3"]
# In fp32 a ReLU or a small sum may come out on the other side of zero when numbers are added in another order, and from
# then on it is another run, under DDP as well (seed 0 with three micro-batches). Nothing of that is met here.
COMMON = [
    "seed=3",
    "precision=fp32",
    "length=20st",
    "evaluate.every=20st",
    "checkpoint.every=20st",
    "batch.global=48",
    "batch.group=4",
    "batch.micro=8",
    "optimizer={name: sgd, lr: 0.01, momentum: 0.9, weight_decay: 1.0e-4}",
    "schedule={name: cosine}",
    "ema={decay: 0.9}",
    "parallel.threads=1",
    "parallel.accelerator=cpu",
]
# With normalised keys, whose bias has a gradient then: AdamW would make steps of its noise.
VIT = [
    "model.name=vit",
    "model.shape={depth: 3, width: 36, heads: 4, patch: 2}",
    "model.transformer={qk_norm: true}",
]
ADAMW = [*VIT, "optimizer={name: adamw, lr: 0.001, weight_decay: 0.05}"]
SKIPS = "model.drop_path={rate: 0.5, mode: batch}"


def run(path: Path, *words: str, world: int = 1, faults: dict[int, Any] | None = None) -> Path:
    ended = worlds.train(path, [*COMMON, *words], world, faults)
    assert set(ended.codes) == {0}, ended.text
    return path


def differences(run: Path, alone: Path, step: int = 20) -> dict[str, float]:
    """Largest difference to one process: of losses and norms relative, of each kind of tensor to its largest number."""
    assert worlds.ledger(run) == worlds.ledger(alone)
    pairs = list(zip(worlds.journal(run), worlds.journal(alone), strict=True))
    found = {
        name: worst(*(abs(a[name] - b[name]) / b[name] for a, b in pairs)) for name in ("train/loss", "train/grad_norm")
    }
    left, right = worlds.tensors(run, step), worlds.tensors(alone, step)
    assert left.keys() == right.keys()
    for kind in {name.rpartition("|")[2] for name in left}:
        names = [name for name in left if name.endswith(f"|{kind}") and left[name].numel()]
        far = worst(*((left[name].double() - right[name].double()).abs().max().item() for name in names))
        found[kind] = far / max(right[name].double().abs().max().item() for name in names)
    return found


# ----------------------------------------------------------------------------------------------------- what it computes


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one process, by what is peculiar to them."""
    folder = tmp_path_factory.mktemp("alone")

    class Alone(dict[str, Path]):
        def __missing__(self, words: str) -> Path:
            self[words] = run(folder / str(len(self)), *words.split("\n"))
            return self[words]

    return Alone()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("micro", [24, 8], ids=["1 micro-step", "3 micro-steps"])
@pytest.mark.parametrize("words", [[], [*VIT, "clip=0.5"]], ids=["resnet", "vit, clipped"])
def test_trains_the_run_of_one_process(
    tmp_path: Path, alone: dict[str, Path], stage: str, micro: int, words: list[str]
) -> None:
    words = [*words, f"batch.micro={micro}"]
    reference = alone["\n".join(words)]
    found = differences(run(tmp_path / "run", *words, f"parallel.strategy={stage}", world=2), reference)
    assert {"param", "momentum_buffer", "ema", "train/loss", "train/grad_norm"} <= found.keys()
    assert max(found.values()) <= 1e-6, found


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_adamw_on_three_ranks(tmp_path: Path, alone: dict[str, Path], stage: str) -> None:
    """Three parts of what three does not divide: cuts within rows, and padding behind them."""
    reference = alone["\n".join(ADAMW)]
    found = differences(run(tmp_path / "run", *ADAMW, f"parallel.strategy={stage}", world=3), reference)
    assert found.pop("step") == 0.0
    assert {"exp_avg", "exp_avg_sq"} <= found.keys()
    assert found["train/loss"] <= 1e-6
    assert max(found.values()) <= 1e-5, found


@needs_deepspeed
def test_skipped_blocks_are_not_gathered(tmp_path: Path, alone: dict[str, Path]) -> None:
    """Drop path of whole blocks under stage 3: the run of one process, and two gathers of each block that is there."""
    words, log = ["length=6st", "evaluate.every=6st", "checkpoint.every=6st", SKIPS], tmp_path / "gathers"
    faults = {0: [("gathers", {"path": str(log)})]}
    made = run(tmp_path / "run", *words, "batch.micro=24", "parallel.strategy=zero3", world=2, faults=faults)
    assert max(differences(made, alone["\n".join([*words, "batch.micro=24"])], 6).values()) <= 1e-6
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(step["skipped"] for step in steps)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    for step in steps:
        for block in blocks:
            gathers = sum(any(name.startswith(f"{block}.") for name in one) for one in step["gathered"])
            assert gathers == (0 if block in step["skipped"] else 2), (block, step)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "placement"),
    [
        (["model.freeze=[stem, 'block:0-1']"], ["parallel.strategy=zero1"]),
        (["model.freeze=[stem, 'block:0-1']"], ["parallel.strategy=zero3"]),
        (["model.name=resnet18", "batch.group=8", "length=6st", SKIPS], ["parallel.strategy=zero3"]),
        ([*VIT, "model.drop_path={rate: 0.5, mode: subset}"], ["parallel.strategy=zero3", "parallel.reshard=false"]),
        ([], ["parallel.strategy=zero3", "parallel.remat=block"]),
        (
            [],
            [
                "parallel.strategy=zero3",
                "parallel.deepspeed={stage3_param_persistence_threshold: 1000, reduce_bucket_size: 20000}",
            ],
        ),
        ([], ["parallel.strategy=zero2", "parallel.deepspeed={overlap_comm: true, contiguous_gradients: false}"]),
    ],
    ids=["frozen-1", "frozen-3", "projections", "subset", "remat", "persistent", "buckets"],
)
def test_with_what_else_a_recipe_may_ask_for(
    tmp_path: Path, alone: dict[str, Path], words: list[str], placement: list[str]
) -> None:
    steps = 6 if "length=6st" in words else 20
    words = [*words, f"evaluate.every={steps}st", f"checkpoint.every={steps}st"]
    made = run(tmp_path / "run", *words, *placement, world=2)
    found = differences(made, alone["\n".join(words)], steps)
    assert max(found.values()) <= 1e-5, found
    assert found["train/loss"] <= 1e-6, found


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adan", "lion", "nadam"])
def test_optimizers_that_count_and_those_that_the_host_masks(
    tmp_path: Path, alone: dict[str, Path], optimizer: str
) -> None:
    words = [f"optimizer={{name: {optimizer}, lr: 0.0001}}", *VIT]
    found = differences(run(tmp_path / "run", *words, "parallel.strategy=zero3", world=2), alone["\n".join(words)])
    assert found["train/loss"] <= 1e-6, found


# --------------------------------------------------------------------------------------------------------- checkpoints


HALF = ["length=20st", "checkpoint.every=10st", "checkpoint.keep=9"]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_goes_on_to_the_last_bit(tmp_path: Path, stage: str) -> None:
    """Killed after its tenth step and started again in the same layout."""
    words = [*COMMON, *HALF, f"parallel.strategy={stage}"]
    whole = run(tmp_path / "whole", *words[len(COMMON) :], world=2)
    broken = tmp_path / "broken"
    worlds.train(broken, words, 2, {0: [("at_step", {"step": 14})]})
    run(broken, *words[len(COMMON) :], world=2)
    worlds.assert_bit_equal(whole, broken, 20)
    assert worlds.journal(whole) == worlds.journal(broken)


LAYOUTS = [
    ("zero3", 2, "fsdp", 2),
    ("fsdp", 2, "zero3", 3),
    ("zero1", 3, "zero3", 2),
    ("zero3", 3, "zero2", 2),
    ("ddp", 2, "zero1", 2),
    ("zero2", 2, "single", 1),
]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("saved", "world", "strategy", "now"), LAYOUTS)
def test_goes_on_in_another_layout(
    tmp_path: Path, alone: dict[str, Path], saved: str, world: int, strategy: str, now: int
) -> None:
    words = [*HALF, *ADAMW]
    reference = alone["\n".join(words)]
    made = tmp_path / "run"
    killed = worlds.train(
        made, [*COMMON, *words, f"parallel.strategy={saved}"], world, {0: [("at_step", {"step": 14})]}
    )
    assert killed.codes[0] < 0
    before = worlds.tensors(made, 10)
    assert before.keys() == worlds.tensors(reference, 10).keys()
    run(made, *words, f"parallel.strategy={strategy}", world=now)
    found = differences(made, reference)
    assert found["train/loss"] <= 1e-6, found
    assert max(found.values()) <= 1e-5, found


# ------------------------------------------------------------------------------------------------------ what is refused


def section(*words: str) -> Any:
    return load("digits_resnet20", [f"parallel.{word}" for word in words]).recipe.parallel


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gradient_clipping": "1.0"}, "set clip instead"),
        ({"train_batch_size": "8"}, r"set batch\.global instead"),
        ({"stage": "2"}, r"set parallel\.strategy instead"),
        ({"overlap_com": "true"}, "Did you mean 'overlap_comm'"),
        ({"overlap_comm": "perhaps"}, "neither a number nor true or false"),
    ],
)
def test_keys_of_the_engine_that_are_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        zero_keys.engine_keys(given)


def test_keys_of_the_engine_that_are_taken() -> None:
    parallel = section("strategy=zero2", "deepspeed={overlap_comm: true, reduce_bucket_size: 1000}")
    assert zero_keys.engine_keys(parallel.deepspeed) == {"overlap_comm": True, "reduce_bucket_size": 1000}


@needs_deepspeed
@pytest.mark.parametrize(
    ("words", "precision", "optimizer", "says"),
    [
        (["strategy=zero1"], "fp64", "sgd", "precision=fp64"),
        (["strategy=zero2"], "fp32", "lamb", "the norm or the spectrum of a whole parameter"),
        (["strategy=zero3", "compile=block"], "fp32", "sgd", "cannot follow the hooks"),
        (["strategy=zero3", "tensor=2"], "fp32", "sgd", "tensor parallelism goes with"),
    ],
)
def test_what_zero_cannot_do(words: list[str], precision: str, optimizer: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        zero_keys.check(section(*words), precision, optimizer)
