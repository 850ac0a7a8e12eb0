"""Where a value comes from, what it overrode, what it means and what it comes to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from restrain.cli.main import run
from tests import worlds


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]):
    """``told(*argv)``: the facts that ``restrain why`` prints, as a mapping of labels to lines."""

    def ask(*argv: str) -> dict[str, list[str]]:
        assert run(["why", *argv]) == 0, capsys.readouterr().err
        title, *lines = capsys.readouterr().out.splitlines()
        facts: dict[str, list[str]] = {"": [title]}
        label = ""
        for line in lines:
            if not line.startswith("  "):
                break
            name, _, rest = line[2:].partition("  ")
            label = name.strip() or label
            facts.setdefault(label, []).append(rest.strip() if name.strip() else line.strip())
        return facts

    return ask


def test_a_value_that_is_set(told) -> None:
    facts = told("optimizer.momentum", "digits_resnet20")
    assert facts[""] == ["optimizer.momentum = 0.9"]
    (where,) = facts["set by"]
    file, line = where.removesuffix(" (recipe)").rsplit(":", 1)
    assert "momentum: 0.9" in Path(file).read_text().splitlines()[int(line) - 1]
    assert facts["means"] == ["Momentum of the gradient's average."]
    assert facts["takes"] == ["a number, at least 0, less than 1"]
    assert facts["kind"][0].startswith("defines the run")
    assert "not used" not in facts
    assert "so" not in facts


def test_a_value_that_nobody_set(told) -> None:
    facts = told("checkpoint.every", "digits_resnet20")
    assert facts[""] == ["checkpoint.every = 10min"]
    assert facts["set by"] == ["the default; no recipe or option sets it"]
    assert facts["kind"][0].startswith("placement")
    assert facts["so"] == ["10min = 600 s on rank 0's clock, whatever the step"]


def test_what_was_overridden(told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: digits_resnet56\n\nseed: 3\nlength: 4ep\n")
    facts = told("length", "mine.yaml", "length=5ep")
    assert facts[""] == ["length = 5ep"]
    assert facts["set by"] == ["command line: length=5ep"]
    lower = facts["not used"]
    assert lower[0] == "4ep   mine.yaml:4 (recipe): overridden by command line: length=5ep"
    assert lower[1].startswith("15ep   ")
    assert "digits_resnet56.yaml:" in lower[1]
    assert lower[1].endswith("(base): overridden by mine.yaml:4")
    assert lower[2].startswith("20ep   ")


def test_a_name_discards_and_a_whole_section_replaces(told) -> None:
    facts = told("optimizer.weight_decay", "digits_resnet20", "optimizer.name=adamw", "optimizer.lr=1e-3")
    assert facts["set by"] == ["the default; no recipe or option sets it"]
    (lower,) = facts["not used"]
    assert lower.endswith("optimizer.name = adamw (command line: optimizer.name=adamw) discards the section's keys")
    facts = told("schedule.warmup", "digits_resnet20", "schedule.warmup=1ep", "schedule={name: linear, warmup: 2ep}")
    assert facts[""] == ["schedule.warmup = 2ep"]
    assert facts["set by"] == ["command line: schedule={name: linear, warmup: 2ep}"]


def test_the_site_file(told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"data:\n  cifar10: {tmp_path}\n")
    monkeypatch.setenv("RESTRAIN_SITE", str(site))
    facts = told("data.root", "cifar10_resnet20")
    assert facts["set by"] == [f"{site}:2 (site file)"]
    facts = told("data.root", "cifar10_resnet20", "data.root=elsewhere")
    assert facts["not used"] == [f"{tmp_path}   {site}:2 (site file): overridden by command line: data.root=elsewhere"]


def test_derived_values(told) -> None:
    assert told("optimizer.lr", "imagenet_resnet50", "batch.global=1024")["so"] == [
        "linear rule: lr x batch.global / lr_per = 0.1 x 1024 / 256 = 0.4"
    ]
    assert told("length", "digits_resnet20")["so"] == [
        "steps an epoch = floor(samples / batch.global) = floor(1,437 / 64) = 22   (samples: the digits set)",
        "20 x 22 = 440 steps",
    ]
    assert told("length", "imagenet_resnet50")["so"] == [
        "90 x floor(N / 256) steps; N, the training samples, is not known: data.root is not set"
    ]
    assert told("schedule.warmup", "digits_resnet20", "schedule.warmup=5%")["so"] == [
        "5% of 20ep = 440 steps: 22 steps"
    ]
    micro = told("batch.micro", "imagenet_resnet50")["so"]
    assert "1 process: 32, 64, 128, 256" in micro
    assert "8 processes: 32" in micro
    assert "processes that can share them: 1, 2, 4, 8" in told("batch.group", "imagenet_resnet50")["so"]


def test_one_block(told) -> None:
    argv = ("imagenet_resnet50", "model.drop_path.rate=0.16")
    assert told("model.drop_path.block:7", *argv)["so"][-1] == "block 7: 0.16 x 8 / 16 = 0.08"
    assert told("model.drop_path.block7", *argv)["so"][-1] == "block 7: 0.16 x 8 / 16 = 0.08"
    rates = " ".join(told("model.drop_path.rate", *argv)["so"][1:]).split()
    assert [float(one) for one in rates if "-" not in one] == pytest.approx([0.01 * n for n in range(1, 17)])


def test_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["why", "schedule", "cifar10_resnet20", "schedule.warmup=400st"]) == 0
    out = capsys.readouterr().out
    assert "drop: 50% of 64000st = 64,000 steps: 32,000 steps" in out
    line = next(line for line in out.splitlines() if line.startswith("schedule.warmup "))
    assert line.split("  ")[-1].strip() == "command line: schedule.warmup=400st"
    assert run(["why", "schedule", "digits_resnet20", "schedule={name: step, at: [50%], factor: 0.1}"]) == 0
    assert "step      220   0.01         drop (50%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["optimizer.ler", "digits_resnet20"], "Did you mean 'optimizer.lr'?"),
        (["optimiser.lr", "digits_resnet20"], "Did you mean 'optimizer.lr'?"),
        (["optimizer.betas", "digits_resnet20"], "it belongs to optimizer.name = adamw or "),
        (["ema.decay", "digits_resnet20"], "ema is null"),
        (["length.unit", "digits_resnet20"], "length is one value"),
        (["data.augment.p", "digits_resnet20"], "data.augment is a list"),
        (["", "digits_resnet20"], "is not a key"),
        (["model.drop_path.block:9", "digits_resnet20"], "cifar_resnet20 has the blocks 0 to 8"),
        (["seed"], "Name a recipe or a run as well"),
        (["seed", "seed=3"], "Name a recipe or a run as well"),
        (["seed", "digits_resent20"], "Did you mean 'digits_resnet20'?"),
        (["seed", "no/such/run"], "There is no file no/such/run."),
        (["seed", "digits_resnet20", "sede=3"], "sede is not a key."),
    ],
)
def test_bad_input(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["why", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert worlds.train(folder, ["length=2st", "optimizer.lr=0.05"]).codes == [0]
    return folder


def test_a_run(told, trained: Path) -> None:
    facts = told("optimizer.lr", str(trained))
    assert facts[""] == ["optimizer.lr = 0.05"]
    assert "recipe.lock.yaml:" in facts["set by"][0]
    assert "optimizer.lr=0.05" in facts["started as"][0]
    assert facts["recipe now"][0].startswith("0.1   ")
    used = json.loads((trained / "run.json").read_text())["placement"]["micro"]
    assert any(
        line.startswith(f"this run's last start: {used} on cpu") for line in told("batch.micro", str(trained))["so"]
    )
    assert "the run's lock" in " ".join(told("checkpoint.every", str(trained), "checkpoint.every=1ep")["so"])


def test_a_folder_that_is_no_run(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["why", "seed", str(tmp_path)]) == 2
    assert "not of a run: it has no recipe.lock.yaml" in capsys.readouterr().err
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "recipe.lock.yaml").write_text((trained / "recipe.lock.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert run(["why", "seed", str(edited)]) == 1
    assert "not as Restrain wrote it" in capsys.readouterr().err


def test_it_imports_no_torch() -> None:
    program = (
        "import sys; from restrain.cli.main import run; "
        "codes = [run(['why', key, 'imagenet_resnet50']) for key in ('batch.micro', 'schedule', 'optimizer.lr')]; "
        "codes += [run(['show', 'digits_resnet20', '--diff', 'digits_plain56']), run(['recipes'])]; "
        "sys.exit(str((codes, sorted(set(sys.modules) & {'torch', 'lightning', 'timm', 'sklearn', 'torchvision'}))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "([0, 0, 0, 0, 0], [])"
