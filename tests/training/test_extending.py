"""What a task, a callback and a partial of one's own may do to a run: nothing that nobody is told of."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import restrain
from restrain.errors import UserError


def tiny(section: Mapping[str, Any]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * section["in_chans"], section["classes"]))


def leaky(section: Mapping[str, Any], slope: float, unused: Any = None) -> nn.Module:
    return nn.Sequential(tiny(section), nn.LeakyReLU(slope))


def fitted(folder: Path, *overrides: str, **more: Any):
    more.setdefault("model", tiny)
    return restrain.fit("digits_resnet20", ["length=2ep", "expect=null", *overrides], run=folder, **more)


def test_what_a_partial_fixes_is_code(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fitted(run, "length=1st", model=functools.partial(leaky, slope=0.1))
    with pytest.raises(UserError, match=r"lock\.model_code"):
        fitted(run, "length=2st", model=functools.partial(leaky, slope=0.9), allow=["length"])
    assert fitted(run, "length=2st", model=functools.partial(leaky, slope=0.1), allow=["length"]).step == 2
    assert restrain.open_run(run).recipe.model.name == "script/leaky"
    with pytest.raises(UserError, match=r"is given a object by functools\.partial"):
        fitted(tmp_path / "other", model=functools.partial(leaky, slope=0.1, unused=object()))


class Seen(restrain.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.evaluated: dict[int, float] = {}

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses.append(metrics["train/loss"])

    def on_evaluate_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluated[step] = metrics["eval/top1"]


def test_what_a_callback_writes_into_its_numbers_reaches_nobody(tmp_path: Path) -> None:
    class Forger:
        def on_step_end(self, step: int, metrics: dict[str, float]) -> None:
            metrics["train/loss"] = -1.0

        def on_evaluate_end(self, step: int, metrics: dict[str, float]) -> None:
            metrics["eval/top1"] = 1000.0

    seen = Seen()
    result = fitted(tmp_path / "run", callbacks=[Forger(), seen])
    best = restrain.open_run(tmp_path / "run").best
    assert len(seen.losses) == 44
    assert min(seen.losses) > 0
    assert best is not None
    assert best["value"] == max(seen.evaluated.values()) <= 100
    assert result.metrics["eval/top1"] == seen.evaluated[44]


class Bare:
    def on_epoch_end(self) -> None: ...


class Mean(restrain.Classify):
    def rows(self, logits_BK: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().rows(logits_BK, target).mean()


class Drawn(restrain.Classify):
    def rows(self, logits_BK: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().rows(logits_BK, target) * torch.rand(len(logits_BK))


class HardOnly(restrain.Classify):
    def rows(self, logits_BK: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.ndim == 2:
            raise KeyError("soft")
        return super().rows(logits_BK, target)


def unmade(*arguments: Any) -> restrain.Classify:
    raise KeyError("width")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": unmade}, "script/unmade cannot be made: KeyError: 'width'"),
        ({"task": Mean}, r"rows of script/Mean gives \[\] for 3 rows"),
        ({"task": Drawn}, "rows of script/Drawn draws from a generator"),
        ({"task": HardOnly, "overrides": ["mix.mixup=0.2"]}, r"fails with target float32 \[3, 10\]: KeyError"),
        ({"callbacks": [Bare()]}, r"It is given \(epoch, metrics\)"),
    ],
)
def test_what_would_train_something_else_is_refused_before_there_is_a_run(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given = dict(given)
    with pytest.raises(UserError, match=said):
        fitted(tmp_path / "run", *given.pop("overrides", ()), **given)
    assert not (tmp_path / "run").exists()


def test_a_task_that_takes_labels_alone_trains_where_nothing_is_mixed(tmp_path: Path) -> None:
    assert fitted(tmp_path / "run", "length=1st", task=HardOnly).state == "finished"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"overrides": ["model.name=cifar_resnet20"]}, "model.name is cifar_resnet20 by an override"),
        ({"task": HardOnly, "overrides": ["task=classify"]}, "task is classify by an override"),
        ({"callbacks": Seen()}, r"callbacks=\.\.\.\) takes a list, not Seen"),
        ({"allow": "length"}, r"allow=\.\.\.\) takes a list, not str"),
    ],
)
def test_arguments_that_contradict_each_other_or_are_no_lists(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = dict(given)
    with pytest.raises(UserError, match=said):
        fitted(tmp_path / "run", *given.pop("overrides", ()), **given)
    assert not (tmp_path / "run").exists()


def test_a_loaded_recipe_keeps_its_overrides_and_takes_more(tmp_path: Path) -> None:
    loaded = restrain.load("digits_resnet20", ["length=1st", "expect=null", "optimizer.lr=0.25"])
    result = restrain.fit(loaded, ["seed=7"], model=tiny, run=tmp_path / "run")
    recipe = restrain.open_run(tmp_path / "run").recipe
    assert (result.step, recipe.optimizer.lr, recipe.seed, recipe.model.name) == (1, 0.25, 7, "script/tiny")
