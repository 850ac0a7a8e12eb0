"""Language as a task of a run: the same on any world, after any kill, and without a generator."""

from pathlib import Path

import numpy as np
import pytest

from restrain.data.expected import expected
from restrain.data.text.plain import TextSource
from restrain.recipe import load
from restrain.run import ledger
from restrain.training import build
from tests import worlds
from tests.training.speech import RECIPE, overrides, write_text

STEPS = 30
SGD = {"optimizer": "{name: sgd, lr: 0.5, momentum: 0.9, weight_decay: 0.01, no_decay: norm_and_bias}"}
MASKED = {
    "model": "{name: bert, classes: auto, shape: {depth: 2, width: 16, heads: 2, context: 16}}",
    "objective": "{name: masked_token, rate: 0.3}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_text(folder)
    return folder


def settings(place: Path, **more: str) -> list[str]:
    return overrides(place, STEPS, **({"precision": "fp64", "track.pixels": "true"} | SGD | more))


def train(run: Path, words: list[str], world: int = 1, faults=None) -> worlds.Ended:
    return worlds.train(run, words, world, faults, recipe=RECIPE)


@pytest.fixture(scope="module", params=["next", "masked"])
def sound(request: pytest.FixtureRequest, place: Path) -> tuple[Path, list[str]]:
    run, words = place / request.param, settings(place, **(MASKED if request.param == "masked" else {}))
    ended = train(run, words)
    assert ended.codes == [0], ended.text
    return run, words


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 6), (4, 3), (4, 1)])
def test_any_world_gives_the_same(sound: tuple[Path, list[str]], tmp_path: Path, world: int, micro: int) -> None:
    reference, words = sound
    run = tmp_path / "run"
    ended = train(run, [*words, f"batch.micro={micro}"], world)
    assert ended.codes == [0] * world, ended.text
    assert worlds.ledger(run) == worlds.ledger(reference)
    mine, theirs = worlds.journal(run), worlds.journal(reference)
    assert len(mine) == STEPS
    for a, b in zip(mine, theirs, strict=True):
        for name in ("train/loss", "train/top1"):
            assert a[name] == pytest.approx(b[name], rel=1e-10), name
    for name in ("eval/loss", "eval/perplexity", "eval/top1", "eval/top5", "eval/count"):
        assert mine[-1][name] == pytest.approx(theirs[-1][name], rel=1e-10), name
    mine, theirs = worlds.tensors(run, STEPS), worlds.tensors(reference, STEPS)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        scale = theirs[name].abs().max().item() or 1.0
        assert (tensor - theirs[name]).abs().max().item() <= 1e-10 * scale, name


@pytest.mark.parametrize(
    "fault",
    [("at_step", {"step": 7}), ("in_evaluation", {"number": 2}), ("before_rename", {"step": 25})],
    ids=["in a step", "in an evaluation", "before the rename"],
)
def test_killed_and_gone_on(sound: tuple[Path, list[str]], tmp_path: Path, fault: worlds.Fault) -> None:
    reference, words = sound
    run = tmp_path / "run"
    assert train(run, words, 1, {0: [fault]}).codes == [-9]
    ended = train(run, words)
    assert ended.codes == [0], ended.text
    worlds.assert_bit_equal(run, reference, STEPS)
    assert worlds.ledger(run) == worlds.ledger(reference)
    assert worlds.journal(run) == worlds.journal(reference)


def test_the_ledger_is_what_order_and_text_say(sound: tuple[Path, list[str]]) -> None:
    run, _ = sound
    recipe = load(str(run / "recipe.lock.yaml")).recipe
    data = build.open_data(recipe)
    assert isinstance(data.train, TextSource)
    plan, order = build.build_plan(recipe, data, []), build.build_order(recipe, data)
    assert plan.place(STEPS - 1)[0] >= 2  # several epochs, each with windows of its own
    hashes = expected(order, plan, data.train.crcs)
    assert not ledger.audit(worlds.ledger(run), lambda step: hashes(step - 1), range(1, STEPS + 1))


def test_vocabulary_and_tokenizer_are_kept(sound: tuple[Path, list[str]], place: Path) -> None:
    import json

    run, _ = sound
    characters = sorted(set((place / "text.txt").read_text()))
    masked = run.name == "masked"
    assert load(str(run / "recipe.lock.yaml")).recipe.model.classes == len(characters) + masked
    assert json.loads((run / "run.json").read_text())["tokenizer"]["vocabulary"] == "".join(characters)


def test_another_vocabulary_is_no_measure(sound: tuple[Path, list[str]], place: Path, tmp_path: Path) -> None:
    """A text of as many characters, one of them another: the same numbers would mean other text."""
    from restrain.errors import UserError
    from restrain.training.evaluate_run import evaluate_run

    run, _ = sound
    (tmp_path / "text.txt").write_text((place / "text.txt").read_text().replace("q", "z"))
    assert evaluate_run(run).metrics["eval/count"] > 0
    with pytest.raises(UserError, match=r"are not those that .* was trained on \(sha256 differs\)"):
        evaluate_run(run, [f"data.root={tmp_path}"])


def test_no_global_generator_is_read(sound: tuple[Path, list[str]], tmp_path: Path) -> None:
    _, words = sound
    run = tmp_path / "run"
    faults = [("no_draws", {}), ("at_step", {"step": 7})]
    assert train(run, words, 1, {0: faults}).codes == [-9]
    ended = train(run, words, 1, {0: faults[:1]})
    assert ended.codes == [0], ended.text
    assert np.isfinite([line["train/loss"] for line in worlds.journal(run)]).all()
