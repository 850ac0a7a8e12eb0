"""Networks, losses, data and callbacks of one's own: from a script, and from an installed package."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import restrain
from restrain.cli.main import run
from restrain.errors import UserError
from restrain.models import build_model, residual_blocks
from tests import worlds

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "own_block.py"
SHORT = ["length=3ep", "model.drop_path.rate=0.1", "precision=fp32", "expect=null", "parallel.threads=1"]
RUNNER = f"""
import sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
import restrain
from own_block import Focal, gated_net
restrain.fit("digits_resnet20", {SHORT!r} + sys.argv[2:], model=gated_net, task=Focal, run=sys.argv[1])
print("after", sys.argv[1])
"""


def script(folder: Path) -> Path:
    path = folder / "script.py"
    path.write_text(RUNNER)
    return path


def started(path: Path, *words: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(path), *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_the_page_shows_the_example_that_is_tested_and_it_is_short() -> None:
    text = EXAMPLE.read_text()
    assert text in (ROOT / "docs" / "extend.md").read_text()
    code = [line for line in text.splitlines()[1:] if line.strip()]
    assert len(code) <= 30


@pytest.mark.slow
def test_the_example_learns(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) > 90


@pytest.mark.slow
def test_killed_and_run_again_it_is_the_unbroken_run(tmp_path: Path) -> None:
    path = script(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, _, err = finished(started(path, str(whole)))
    assert code == 0, err
    process = started(path, str(broken))
    deadline = time.monotonic() + 120
    while len(worlds.lines(broken / "metrics.jsonl") if (broken / "metrics.jsonl").exists() else []) < 30:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert finished(process)[0] == -signal.SIGKILL
    assert worlds.journal(broken)[-1]["step"] < 66
    assert finished(started(path, str(broken)))[0] == 0
    assert len(list((broken / "attempts").iterdir())) == 2
    timeless = [
        [{key: v for key, v in line.items() if key not in worlds.TIMING} for line in worlds.journal(one)]
        for one in (whole, broken)
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == list(range(1, 67))
    worlds.assert_bit_equal(whole, broken, 66)


@pytest.mark.slow
def test_two_processes_see_the_same_samples_and_the_script_goes_on_once(tmp_path: Path) -> None:
    path = script(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    code, _, err = finished(started(path, str(one), "length=5st"))
    assert code == 0, err
    code, out, err = finished(started(path, str(two), "length=5st", "parallel.devices=2"))
    assert code == 0, err
    assert out == f"after {two}\n"
    assert worlds.ledger(one) == worlds.ledger(two)
    losses = [[line["train/loss"] for line in worlds.journal(run)] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -------------------------------------------------------------------------------------------------------- in a process


def tiny(section: Mapping[str, Any]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * section["in_chans"], section["classes"]))


class Seen(restrain.Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self.evaluated: dict[int, float] = {}

    def on_step_end(self, step: int, metrics: Mapping[str, float]) -> None:
        assert metrics["step"] == step
        assert metrics["train/loss"] > 0
        self.steps.append(step)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.epochs.append(epoch)

    def on_evaluate_end(self, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluated[step] = metrics["eval/top1"]


def fitted(folder: Path, *overrides: str, **more: Any):
    more.setdefault("model", tiny)
    return restrain.fit("digits_resnet20", ["length=2ep", "expect=null", *overrides], run=folder, **more)


def test_callbacks_see_every_step_whatever_is_journaled(tmp_path: Path) -> None:
    seen = Seen()
    result = fitted(tmp_path / "run", "track.every=10st", callbacks=[seen])
    assert (result.exit_code, result.state, result.step) == (0, "finished", 44)
    assert seen.steps == list(range(1, 45))
    assert seen.epochs == [0, 1]
    assert set(seen.evaluated) == {22, 44}
    assert seen.evaluated[44] == result.metrics["eval/top1"]
    assert fitted(tmp_path / "run", "track.every=10st", callbacks=[seen]).already


def test_signals_are_the_callers_again_afterwards(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    fitted(tmp_path / "run", "length=1st")
    assert [signal.getsignal(number) for number in numbers] == before
    said: list[str] = []

    def elsewhere() -> None:
        with pytest.raises(UserError) as told:
            fitted(tmp_path / "other", "length=1st")
        said.append(str(told.value))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "in a thread" in said[0]


def test_weights_are_the_modules_own_distribution_drawn_from_the_seed(tmp_path: Path) -> None:
    section = {"name": "script/tiny", "classes": 10, "in_chans": 1}
    state = torch.get_rng_state()
    one, same, other = (build_model(section, seed, (8,), tiny).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one["1.weight"], same["1.weight"])
    assert not torch.equal(one["1.weight"], other["1.weight"])
    assert one["1.weight"].abs().max() <= 1 / 8  # torch's own bound, 1 / sqrt(fan_in)
    assert one["1.weight"].std() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_the_contract_of_the_example() -> None:
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        import own_block  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLE.parent))
    section = {"name": "script/x", "classes": 10, "in_chans": 1, "drop_path": {"rate": 0.1, "decay": "linear"}}
    model = build_model(section, 0, (8,), own_block.gated_net)
    blocks = residual_blocks(model)
    assert [name for name, _ in blocks] == [str(n) for n in range(1, 7)]
    assert type(model[1].norm).__name__ == "GroupedBatchNorm2d"  # type: ignore[index]


def test_the_network_of_a_script_can_be_had_again(tmp_path: Path) -> None:
    fitted(tmp_path / "run")
    opened = restrain.open_run(tmp_path / "run")
    assert opened.recipe.model.name == "script/tiny"
    assert opened.model(build=tiny)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    with pytest.raises(UserError, match=r"model\(build=tiny\)"):
        opened.model()


@pytest.mark.parametrize("command", ["resume", "evaluate", "export", "check"])
def test_commands_say_where_the_code_is(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    fitted(folder, "length=1st")
    capsys.readouterr()
    more = {"resume": ["length=2st", "--allow", "length"], "export": ["--to", "safetensors"]}.get(command, [])
    what = str(folder / "recipe.lock.yaml") if command == "check" else str(folder)
    assert run([command, what, *more]) == 2
    assert "its code is in the script" in capsys.readouterr().err


def test_changed_code_is_refused_unless_allowed(tmp_path: Path) -> None:
    code = "from torch import nn\ndef net(section):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "net_one.py").write_text(code)
    (tmp_path / "net_two.py").write_text(code + "# another\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import net_one  # type: ignore[import-not-found]
        import net_two  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    fitted(tmp_path / "run", "length=1st", model=net_one.net)
    with pytest.raises(UserError, match="the source of the network"):
        fitted(tmp_path / "run", "length=2st", model=net_two.net, allow=["length"])
    allowed = fitted(tmp_path / "run", "length=2st", model=net_two.net, allow=["length", "lock.model_code"])
    assert allowed.step == 2
    found = restrain.open_run(tmp_path / "run")
    assert [line["step"] for line in found.lines] == [1, 2]


def test_a_branch_and_weights_of_a_run_with_a_network_of_ones_own(tmp_path: Path) -> None:
    fitted(tmp_path / "run", "length=1ep")
    branch = fitted(tmp_path / "branch", start=f"{tmp_path / 'run'}@22")
    assert branch.step == 44
    assert restrain.open_run(tmp_path / "branch").lines[0]["step"] == 23
    begun = fitted(tmp_path / "begun", "length=1st", f"model.init.from={tmp_path / 'run'}")
    fresh = fitted(tmp_path / "fresh", "length=1st")
    assert begun.metrics["train/loss"] < 0.8 * fresh.metrics["train/loss"]


class Late:
    def on_step_ended(self) -> None: ...


def drawing(section: Mapping[str, Any]) -> nn.Module:
    class Noisy(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flatten(1) + torch.randn(64, device=input.device))

    return Noisy(64, 10)


def broken(section: Mapping[str, Any]) -> nn.Module:
    return nn.Linear(1 // 0, 10)


def rolling(section: Mapping[str, Any]) -> nn.Module:
    np.random.rand()
    return tiny(section)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"callbacks": [L.pytorch.callbacks.EarlyStopping("eval/loss")]}, "EarlyStopping is a Lightning callback"),
        ({"callbacks": [Late()]}, "Did you mean 'on_step_end'"),
        ({"callbacks": [Seen]}, "Seen is a class"),
        ({"callbacks": [object()]}, "has none of on_step_end"),
        ({"model": 3}, "takes a function or a class, not int"),
        ({"model": lambda section: "net"}, "made str, which is no torch.nn.Module"),
        ({"model": lambda section: nn.Linear(3, 10)}, "does not take images of 8 x 8"),
        ({"model": lambda section: nn.Sequential(nn.Flatten(), nn.Linear(64, 7))}, "does not return logits"),
        ({"model": drawing}, "draws from torch's generator"),
        ({"model": broken}, "cannot be built: ZeroDivisionError"),
        ({"model": rolling}, "draws from a generator of random or numpy"),
        ({"model": tiny, "overrides": ["model.blurpool=true"]}, "blurpool does nothing: script/tiny never looks at it"),
        ({"model": tiny, "overrides": ["model.freeze=[head]"]}, "no part that is known as one"),
        ({"task": lambda *arguments: nn.Linear(1, 1)}, "which is no restrain Classify"),
    ],
)
def test_what_would_not_do_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        fitted(tmp_path / "run", *given.pop("overrides", ()), **given)
    assert not (tmp_path / "run" / "recipe.lock.yaml").exists() or "task" in given


# ------------------------------------------------------------------------------------------------ an installed package

PACKAGE = """
import restrain
from restrain.data.digits import DigitsSource
from torch import nn

def net(section):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, section["classes"]))

class Doubled(restrain.Classify):
    def rows(self, logits, target):
        return 2 * super().rows(logits, target)

def digits(data, split, classes):
    return DigitsSource(split, classes)

broken = __name__ + "x"
"""
POINTS = """
[restrain.models]
net = my_package_of_tests:net
gone = my_package_of_tests:gone
[restrain.tasks]
doubled = my_package_of_tests:Doubled
[restrain.data]
digits = my_package_of_tests:digits
"""
DATA = [
    "data={name: package, set: my-package/digits, eval: eval, mean: [0.3], std: [0.4], augment: []}",
    "resolution.train=8",
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = tmp_path / "site"
    info = top / "my_package-1.2.dist-info"
    info.mkdir(parents=True)
    (top / "my_package_of_tests.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(top))
    return top


def test_a_packages_network_task_and_data(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["length=1ep", "expect=null", "loss.smoothing=0"]
    own = ["model.name=my_package/net", "task=my-package/doubled", *DATA]
    assert run(["train", "digits_resnet20", *words, *own, "--run", str(tmp_path / "own")]) == 0
    assert run(["train", "digits_resnet20", *words, *own[:1], "data.augment=[]", "--run", str(tmp_path / "one")]) == 0
    lock = (tmp_path / "own" / "recipe.lock.yaml").read_text()
    for line in ('model_package: "my-package 1.2"', 'task_package: "my-package 1.2"', 'data_package: "my-package 1.2"'):
        assert line in lock
    doubled, plain = (worlds.journal(tmp_path / name) for name in ("own", "one"))
    # other mean and deviation, the same labels: an untrained network is near log 10 in both
    assert doubled[0]["train/loss"] == pytest.approx(2 * plain[0]["train/loss"], rel=0.1)
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "own")]) == 0
    assert run(["check", "digits_resnet20", *words, *own]) == 0
    assert "my_package/net" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.name=my-package/nett", "Did you mean 'my-package/net'?"),
        ("model.name=other/net", "Those of installed packages are my-package/gone, my-package/net."),
        ("model.name=my-package/gone", "which cannot be imported: AttributeError"),
        ("task=my-package/net", "there is no my-package/net"),
        (DATA[0].replace("digits", "net"), "data.set: there is no my-package/net"),
    ],
)
def test_what_no_package_has(
    override: str, said: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = DATA[1:] if override.startswith("data") else []
    code = run(
        ["train", "digits_resnet20", "length=1st", "expect=null", *more, override, "--run", str(tmp_path / "run")]
    )
    told = capsys.readouterr().err
    assert (code, told.count("\n")) == (2, 1), told
    assert said in told
