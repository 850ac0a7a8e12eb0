"""Growing a run: the same function at another depth, with the optimizer's memory, and training goes on."""

import json
from pathlib import Path

import pytest
import torch

from restrain.cli.main import run as command
from restrain.errors import UserError
from restrain.run.checkpoint import Reader
from restrain.training.grow import grow
from restrain.training.loaded import load_weights
from tests import worlds
from tests.insight.nets import values

SETTINGS = ["precision=fp32", "length=6st", "evaluate.every=3st", "checkpoint.every=3st", "checkpoint.keep=20"]
LONGER = ["length=9st"]


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("grow") / "shallow"
    assert worlds.train(run, [*SETTINGS, "ema={decay: 0.5}"]).codes == [0]
    return run


@pytest.mark.parametrize("place", ["spread", "end"])
def test_the_deeper_network_computes_the_same(shallow: Path, tmp_path: Path, place: str) -> None:
    found = grow(shallow, "cifar_resnet32", tmp_path / "deep", LONGER, place)
    assert (found.blocks, found.step, found.total) == ((9, 15), 6, 9)
    expected = {"spread": ["2", "4"], "end": ["3", "4"]}[place]
    assert found.new == [f"layer{stage}.{n}" for stage in (1, 2, 3) for n in expected]
    x = values(8, 1, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        for weights in ("raw", "ema"):
            was, now = (
                load_weights(run, weights).model(x) for run in (shallow / "checkpoints" / "step-6", found.folder)
            )
            assert torch.equal(was, now), weights


def test_blocks_that_share_their_convolutions(tmp_path: Path) -> None:
    run = tmp_path / "shared"
    assert worlds.train(run, [*SETTINGS, "model.name=cifar_shared_resnet20"]).codes == [0]
    found = grow(run, "cifar_shared_resnet56", tmp_path / "deep", LONGER)
    x = values(8, 1, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        was, now = (load_weights(one, "raw").model(x) for one in (run / "checkpoints" / "step-6", found.folder))
    assert torch.equal(was, now)


def test_what_was_learnt_is_carried_and_what_is_new_begins_at_zero(shallow: Path, tmp_path: Path) -> None:
    grow(shallow, "cifar_resnet32", tmp_path / "deep", LONGER)
    was, now = worlds.tensors(shallow, 6), worlds.tensors(tmp_path / "deep", 6)
    kinds = {name.rpartition("|")[2] for name in was}
    assert kinds == {"param", "buffer", "momentum_buffer", "ema"}
    for kind in kinds:
        name = "bn1.running_mean" if kind == "buffer" else "bn1.weight"
        # 3 blocks of 5: the last of three is the fourth of five
        assert torch.equal(was[f"layer2.2.{name}|{kind}"], now[f"layer2.3.{name}|{kind}"])
    assert was["layer2.2.conv1.weight|momentum_buffer"].any()
    assert not now["layer2.2.conv1.weight|momentum_buffer"].any()
    assert not now["layer2.2.bn2.weight|param"].any()
    assert now["layer2.2.conv1.weight|param"].any()
    assert torch.equal(now["layer2.2.conv1.weight|param"], now["layer2.2.conv1.weight|ema"])


def test_the_updates_of_new_parameters_are_counted_from_zero(tmp_path: Path) -> None:
    """AdamW corrects its averages by the count of each parameter: the first update of a new one is of its gradient."""
    shallow, deep = tmp_path / "shallow", tmp_path / "deep"
    adamw = ["optimizer={name: adamw, lr: 1.0e-3, weight_decay: 0.05}", "length=2st", *SETTINGS[:1]]
    assert worlds.train(shallow, [*adamw, "evaluate.every=2st", "checkpoint.every=2st"]).codes == [0]
    grow(shallow, "cifar_resnet32", deep, ["length=4st"])
    now = worlds.tensors(deep, 2)
    assert float(now["layer2.3.conv1.weight|step"]) == 2.0  # a block of the old network
    assert float(now["layer2.2.conv1.weight|step"]) == 0.0
    assert not now["layer2.2.conv1.weight|exp_avg_sq"].any()


def test_training_goes_on_where_it_was(shallow: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    grow(shallow, "cifar_resnet32", deep, LONGER)
    ended = worlds.start(["resume", str(deep)], 1, tmp_path / "logs").wait()
    assert ended.codes == [0], ended.text
    assert "going on after step 6 of 9" in ended.text
    assert "lines were removed" not in ended.text  # journal and ledger go on
    assert "not bit-equal" not in ended.text
    assert [line["step"] for line in worlds.ledger(deep)] == list(range(1, 10))
    assert worlds.ledger(deep)[:6] == worlds.ledger(shallow)
    first, last = worlds.tensors(deep, 6), worlds.tensors(deep, 9)
    assert not torch.equal(first["layer1.2.bn2.weight|param"], last["layer1.2.bn2.weight|param"])
    with Reader(deep / "checkpoints" / "step-9") as reader:
        (grown,) = reader.scalars["interventions"]
    assert (grown["at_step"], grown["kind"], grown["was"], grown["now"]) == (
        *(6, "grow"),
        *("cifar_resnet20", "cifar_resnet32"),
    )
    info = json.loads((deep / "run.json").read_text())
    assert info["state"] == "finished"
    assert {"model.name=cifar_resnet32", "length=9st"} <= set(info["changes"])


@pytest.mark.parametrize(
    ("to", "overrides", "told"),
    [
        ("cifar_resnet32", [], "nothing would be left to train"),
        ("cifar_resnet20", LONGER, "there is nothing to grow"),
        ("resnet50", LONGER, "the stages are layer1, layer2, layer3, layer4, those of the run"),
        ("cifar_resnet32", [*LONGER, "model.join={name: gate}"], "only its depth and its length can grow"),
        ("cifar_resnet32", [*LONGER, "model.join={name: scale}"], "only its depth and its length can grow"),
        ("cifar_resnet32", [*LONGER, "optimizer={name: adamw, lr: 0.001}"], "only its depth and its length can grow"),
    ],
    ids=["length", "same", "stages", "gate", "scale", "optimizer"],
)
def test_what_cannot_grow_is_refused_and_leaves_nothing(
    shallow: Path, tmp_path: Path, to: str, overrides: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        grow(shallow, to, tmp_path / "deep", overrides)
    assert not (tmp_path / "deep").exists()


def test_shallower_networks_are_refused(shallow: Path, tmp_path: Path) -> None:
    grow(shallow, "cifar_resnet32", tmp_path / "deep", LONGER)
    with pytest.raises(UserError, match="layer1 has 3 blocks, fewer than the 5 of the run"):
        grow(tmp_path / "deep", "cifar_resnet20", tmp_path / "back")


def test_the_command_says_what_it_did(shallow: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    deep = tmp_path / "deep"
    assert command(["grow", str(shallow), *LONGER, "--to", "cifar_resnet32", "--run", str(deep)]) == 0
    said = capsys.readouterr().out
    assert "15 blocks, 9 of them taken over, 6 new with branches of zero" in said
    assert "logits differ by 0.0" in said
    assert f"restrain resume {deep}" in said
    assert command(["grow", str(shallow), *LONGER, "--to", "cifar_resnet32", "--run", str(deep)]) == 2
    assert "there is something already" in capsys.readouterr().err
    assert command(["grow", str(shallow)]) == 2
    assert "--to is missing" in capsys.readouterr().err


@pytest.mark.parametrize("join", ["one", "layerscale"])
def test_transformers_grow_by_their_depth(tmp_path: Path, join: str) -> None:
    """Their new branches end in projections of zero, whatever the scales of their joins."""
    model = "model={name: vit, classes: 10, in_chans: 1, shape: {depth: 2, width: 16, heads: 2, patch: 4}, "
    model += f"join: {{name: add, scale: {join}}}}}"
    words = [*SETTINGS, model, "optimizer={name: adamw, lr: 0.001}", "batch={global: 64, group: 1}"]
    ended = worlds.train(tmp_path / "shallow", words)
    assert ended.codes == [0], ended.text
    found = grow(tmp_path / "shallow", "", tmp_path / "deep", [*LONGER, "model.shape.depth=4"])
    assert found.new == ["blocks.1", "blocks.3"]
    x = values(8, 1, 8, 8, dtype=torch.float32)
    both = (tmp_path / "shallow" / "checkpoints" / "step-6", found.folder)
    with torch.no_grad():
        was, now = (load_weights(run).model(x) for run in both)
    assert torch.equal(was, now)
    ended = worlds.start(["resume", str(found.folder)], 1, tmp_path / "logs").wait()
    assert ended.codes == [0], ended.text
    first, last = worlds.tensors(found.folder, 6), worlds.tensors(found.folder, 9)
    name = "blocks.1.attn.proj.weight|param"
    assert not first[name].any()
    assert last[name].any()
    assert ("blocks.1.ls1.gamma|param" in first) == (join == "layerscale")


def test_a_post_norm_transformer_cannot_grow(tmp_path: Path) -> None:
    model = "model={name: vit, classes: 10, in_chans: 1, shape: {depth: 2, width: 16, heads: 2, patch: 4}, "
    model += "transformer: {order: post}}"
    words = [*SETTINGS, model, "optimizer={name: adamw, lr: 0.001}", "batch={global: 64, group: 1}"]
    assert worlds.train(tmp_path / "shallow", words).codes == [0]
    with pytest.raises(UserError, match="its new blocks are no identities"):
        grow(tmp_path / "shallow", "", tmp_path / "deep", [*LONGER, "model.shape.depth=4"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed=7", r"seed=7: the run has 0, and only its depth and its length can grow"),
        ("batch.global=32", r"batch\.global=32: the run has"),
        ("optimizer.lr=0.5", r"optimizer\.lr=0\.5: the run has"),
        ("model.join.name=scale", r"model\.join\.name=scale: the run has add"),
        ("model.feedback=random", r"model\.feedback=random: the run has exact"),
    ],
)
def test_nothing_but_depth_and_length_changes(shallow: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        grow(shallow, "cifar_resnet32", tmp_path / "deep", [*LONGER, change])
    assert not (tmp_path / "deep").exists()
