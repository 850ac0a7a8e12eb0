"""``restrain slurm``: the scripts that ship, what a site adds, what is refused before the queue, and submitting."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restrain.cli.main import run
from restrain.errors import UserError
from restrain.parallel.slurm import SHIPPED, Array, Job, Resources, check_notice, check_sbatch, script, submitted
from restrain.recipe.site import Site, seconds_of, time_limit

ROOT = Path(__file__).resolve().parents[2]
SBATCH = """#!{python}
import json, os, sys
with open(os.environ["SBATCH_LOG"], "w") as file:
    json.dump({{"argv": sys.argv[1:], "script": sys.stdin.read(), "cwd": os.getcwd()}}, file)
sys.stderr.write(os.environ.get("SBATCH_SAYS", ""))
print(os.environ.get("SBATCH_ANSWER", "4711;alpha"))
sys.exit(int(os.environ.get("SBATCH_CODE", "0")))
"""
Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """``said(*argv, site="...")``: exit code, standard output and error of ``restrain slurm`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("RESTRAIN_SITE", raising=False)

    def call(*argv: str, site: str | None = None) -> tuple[int, str, str]:
        if site is not None:
            (tmp_path / "site.yaml").write_text(site)
            monkeypatch.setenv("RESTRAIN_SITE", "site.yaml")
        code = run(["slurm", *argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict]:
    """An sbatch on PATH that takes what it is given; returns what reads it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(python=sys.executable))
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_LOG", str(tmp_path / "sbatch.json"))
    return lambda: json.loads((tmp_path / "sbatch.json").read_text())


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def checked_by_shellcheck(text: str) -> str:
    checker = Path(sys.executable).parent / "shellcheck"
    return subprocess.run([checker, "-"], input=text, capture_output=True, text=True, check=False).stdout


# ------------------------------------------------------------------------------------------------ what ships


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_scripts_that_ship_are_what_is_printed(name: str, said: Said) -> None:
    code, out, err = said(name)
    assert code == 0, err
    assert out == (ROOT / "slurm" / f"{name}.sh").read_text()
    assert "data.root is not set" in err


def test_scripts_differ_in_names_and_resources_alone() -> None:
    assert {path.stem for path in (ROOT / "slurm").glob("*.sh")} == set(SHIPPED)
    bodies = set()
    for name in SHIPPED:
        text = (ROOT / "slurm" / f"{name}.sh").read_text().replace(name, "NAME")
        bodies.add(
            "\n".join(line for line in text.splitlines() if not line.startswith(("#SBATCH --nodes", "#SBATCH --time")))
        )
    assert len(bodies) == 1


# ------------------------------------------------------------------------------------------------ places and words

SITE = """slurm: {partition: gpu, account: vision, qos: long, constraint: a100, gpus: 4, gpu_type: a100, cpus: 16,
  memory: 500G, time: "1-00:00:00", notice: 300, sbatch: [--exclusive, "--mail-type=FAIL"], venv: /opt/my env}
modules: [cuda/13.0, nccl]
"""


def test_a_site_says_what_its_nodes_are_like(said: Said, tmp_path: Path) -> None:
    code, out, err = said("imagenet_resnet50", "--nodes", "2", "--sbatch=--nice", site=SITE)
    assert code == 0, err
    assert options(out) == [
        "--job-name=imagenet_resnet50",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=a100:4",
        "--cpus-per-task=16",
        "--mem=500G",
        "--time=1-00:00:00",
        "--signal=USR1@300",
        "--open-mode=append",
        "--output=%x-%j.out",
        "--requeue",
        "--partition=gpu",
        "--account=vision",
        "--qos=long",
        "--constraint=a100",
        "--exclusive",
        "--mail-type=FAIL",
        "--nice",
    ]
    assert "module load cuda/13.0 nccl || exit 2\n" in out
    assert "export PATH='/opt/my env/bin':\"$PATH\"\n" in out
    assert f"export RESTRAIN_SITE={tmp_path}/site.yaml\n" in out
    assert checked_by_shellcheck(out) == ""
    assert "on 8 process(es), 2 node(s) of 4: 32 of 256 samples a step each, 1 group(s) of 32" in err


def test_the_command_line_goes_before_the_site(said: Said) -> None:
    code, out, _ = said("imagenet_resnet50", "--gpus-per-node", "2", "--time", "30", site=SITE)
    assert code == 0
    assert {"--ntasks-per-node=2", "--gpus-per-node=a100:2", "--time=30"} <= set(options(out))


def test_the_recipe_may_say_how_many(said: Said) -> None:
    code, out, _ = said("digits_resnet20", "parallel.nodes=2", "parallel.devices=2", "parallel.accelerator=cpu")
    assert code == 0
    assert {"--nodes=2", "--ntasks-per-node=2"} <= set(options(out))
    assert "gpus" not in " ".join(options(out))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1), max_size=3))
def test_words_reach_restrain_as_they_were_typed(tmp_path: Path, words: list[str]) -> None:
    """By running the script, with an srun that says what it was given."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in {"srun": '#!/bin/sh\nprintf "%s\\0" "$@"\n', "restrain": "#!/bin/sh\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    text = script(Job("digits", "my recipe.yaml", Resources(1, 1, "10"), tuple(words)), Site())
    env = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", "-s", "seed=1"], input=text.encode(), env=env, capture_output=True, check=True)
    given = done.stdout.decode().split("\0")[:-1]
    assert given == ["--kill-on-bad-exit=0", "restrain", "train", "my recipe.yaml", *words, "seed=1"]


def test_a_job_without_restrain_says_so(tmp_path: Path) -> None:
    text = script(Job("digits", "digits", Resources(1, 1, "10")), Site())
    env = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["/bin/bash"], input=text, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no restrain on PATH: submit from a folder with .venv")


def test_a_script_into_a_file(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "one.sh"
    assert said("digits_resnet20", "--gpus-per-node", "1", "-o", str(file))[:2] == (0, "")
    assert os.access(file, os.X_OK)
    assert said("digits_resnet20", "--gpus-per-node", "1", "-o", str(file))[0] == 0  # the same again
    code, _, err = said("digits_resnet20", "--gpus-per-node", "2", "-o", str(file))
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: {file} is there already and is another one. Name another file with -o, or remove it.",
    )


# ------------------------------------------------------------------------------------------------ submitting


def test_submitting(said: Said, queue: Callable[[], dict], tmp_path: Path) -> None:
    code, out, err = said("digits_resnet20", "seed=3", "--nodes", "2", "--gpus-per-node", "2", "--submit")
    assert code == 0, err
    assert out == (
        "job 4711: digits_resnet20 on 2 node(s) of 2, at most 24:00:00\n"
        "run folder: runs/digits_resnet20/4711\n"
        "log: digits_resnet20-4711.out\n"
    )
    asked = queue()
    assert (asked["argv"], asked["cwd"]) == (["--parsable"], str(tmp_path))
    assert asked["script"].endswith('exec srun --kill-on-bad-exit=0 restrain train digits_resnet20 seed=3 "$@"\n')
    code, out, _ = said("digits_resnet20", "--gpus-per-node", "1", "--run", "runs/a b", "--submit", "-o", "kept.sh")
    assert "run folder: runs/a b\n" in out
    assert queue()["script"] == (tmp_path / "kept.sh").read_text()
    assert "--run 'runs/a b' \"$@\"\n" in queue()["script"]


def test_an_sbatch_that_refuses(said: Said, queue: Callable[[], dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_CODE", "1")
    monkeypatch.setenv("SBATCH_SAYS", "sbatch: error: Invalid account or\n  partition specified\n")
    code, out, err = said("digits_resnet20", "--gpus-per-node", "1", "--submit")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: sbatch has not taken the job (exit code 1). It said: sbatch: error: Invalid account or partition "
        "specified"
    )


def test_the_number_of_a_job() -> None:
    assert submitted("4711\n") == "4711"
    assert submitted("Welcome to alpha\n4712;alpha\n") == "4712"
    assert submitted("no job today") == ""


# ------------------------------------------------------------------------------------------------ sweeps


@pytest.fixture
def sweep(said: Said, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(["sweep", "digits_resnet20", "optimizer.lr={0.05,0.1}", "seed={0..1}", "--out", "s w", "--dry-run"]) == 0
    capsys.readouterr()
    return Path("s w")


def test_an_array_has_a_task_for_each_point_left(sweep: Path, said: Said, queue: Callable[[], dict]) -> None:
    done = sweep / "runs" / "001_lr=0.05_seed=1"
    done.mkdir(parents=True)
    (done / "run.json").write_text('{"state": "finished"}')
    (done / "recipe.lock.yaml").write_text("")
    code, out, err = said("--array", str(sweep), "--gpus-per-node", "1", "--at-once", "2", "--submit")
    assert code == 0, err
    assert "3 point(s) (1 are finished), 1 node(s) of 1 each" in err
    assert out.splitlines()[1:] == [
        "run folders: s w/runs/, 3 of them",
        "logs: digits_resnet20-4711_*.out; afterwards: restrain sweep --out s w",
    ]
    text = queue()["script"]
    assert {"--array=0-2%2", "--output=%x-%A_%a.out"} <= set(options(text))
    assert checked_by_shellcheck(text) == ""
    assert runs_of(text, 1) == shlex.split(
        "--kill-on-bad-exit=0 restrain train 's w/recipes/002_lr=0.1_seed=0.yaml' "
        "--run 's w/runs/002_lr=0.1_seed=0' length=1ep"
    )


def runs_of(text: str, task: int) -> list[str]:
    """What a task of an array gives to srun, by running the script."""
    for name, words in {"srun": '#!/bin/sh\nprintf "%s\\0" "$@"\n', "restrain": "#!/bin/sh\n"}.items():
        Path(name).write_text(words)
        Path(name).chmod(0o755)
    env = {
        "PATH": f"{Path.cwd()}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(Path.cwd()),
        "SLURM_ARRAY_TASK_ID": str(task),
    }
    done = subprocess.run(["bash", "-s", "length=1ep"], input=text, env=env, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_a_point_that_does_not_fit_is_named(sweep: Path, said: Said) -> None:
    code, _, err = said("--array", str(sweep), "--gpus-per-node", "3")
    assert code == 2
    assert err.startswith("error: Point 000_lr=0.05_seed=0 of s w: ")


def test_the_log_of_an_array() -> None:
    job = Job("my sweep", "", Resources(1, 1, "10"), array=Array("s", ("a",)))
    assert (job.name, job.log("7")) == ("my-sweep", "my-sweep-7_*.out")


@pytest.mark.parametrize(
    "option",
    [
        "--nodes=3",
        "--nodes 3",
        "-N3",
        "-N 3",
        "--qos=long -N 3",
        "--nod=3",
        "--ntasks=4",
        "-n4",
        "--ntasks-per-node=4",
        "--gpus-per-node=a100:2",
        "-G2",
        "--time=1:00:00",
        "--tim=60",
        "-t60",
        "--signal=TERM@9",
        "--array=0-3",
        "-a1",
    ],
)
def test_options_that_are_ours_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"goes past what was checked: .* Take "):
        check_sbatch([option], "")


@pytest.mark.parametrize(
    "option",
    [
        "--exclusive",
        "--nice",
        "--qos=long",
        "--time-min=10",
        "--nodelist=n[1-9]",
        "--no-requeue",
        "-p gpu",
        "-J name",
        "--gres=nvme:1",
        "--mem=5G",
        '--comment="a -N b"',
        "--ntasks-per-core=1",
        "--mail-type=FAIL",
        "-d afterok:5",
    ],
)
def test_all_others_are_not(option: str) -> None:
    check_sbatch([option], "")


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("2:30", 150), ("99:59:59", 359_999), ("1-2", 93_600), ("1-02:30", 95_400), ("1-00:00:01", 86_401)],
)
def test_time_limits_as_sbatch_counts_them(limit: str, seconds: int) -> None:
    assert seconds_of(time_limit(limit)) == seconds


def test_a_job_has_time_before_it_is_told_to_leave() -> None:
    check_notice("0", 120)  # no limit
    check_notice("3", 120)
    check_notice("2:01", 120)  # Slurm counts it as three minutes
    with pytest.raises(UserError, match=r"^A time limit of 1:30 is 120 s, and .* leave 120 s before it"):
        check_notice("1:30", 120)
