# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad run folders and checkpoints: damaged, edited, removed, in use, or of another recipe."""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests import worlds
from tests.bad_input.harness import RUN, Case, Outcome, Place, flip
from tests.worlds import Fault

NO_PICKLES: dict[int, list[Fault]] = {0: [("no_pickles", {})]}
PICKLE = pickle.dumps({"conv1.weight": [1.0] * 9})
EVIL = b"cos\nsystem\n(S'touch {dir}/evil'\ntR."  # a pickle of protocol 0 that runs a command when it is loaded


def resumed(damage: Callable[[Path], object], *argv: str, keep: bool = True, code: int = 1):
    """Stop a run, damage its folder, ``restrain resume`` it. ``keep``: nothing of the folder may change."""

    def do(place: Place) -> Outcome:
        run = place.stopped()
        damage(run)
        if keep:
            place.keep(run)
        return place.cli("resume", "{dir}/run", *argv, faults=NO_PICKLES)

    return do


def trained(*argv: str, damage: Callable[[Path], object] = lambda run: None):
    """Stop a run and start ``restrain train`` on its folder."""

    def do(place: Place) -> Outcome:
        run = place.stopped()
        damage(run)
        place.keep(run)
        return place.digits(*argv)

    return do


def forked(*argv: str, damage: Callable[[Path], object] = lambda run: None, world: int = 1):
    """Branch off from a stopped run."""

    def do(place: Place) -> Outcome:
        run = place.stopped()
        damage(run)
        place.keep(run)
        found = place.cli("train", "digits_resnet20", *RUN, *argv, "--run", "{dir}/new", world=world, faults=NO_PICKLES)
        assert not (place.folder / "new").exists()  # a wrong wish leaves nothing behind
        return found

    return do


def evaluated(path: str, *argv: str, damage: Callable[[Path], object] = lambda run: None):
    def do(place: Place) -> Outcome:
        run = place.stopped()
        damage(run)
        place.keep(run)
        return place.cli("evaluate", f"{{dir}}/{path}", *argv, faults=NO_PICKLES)

    return do


def _file(step: int, name: str = "model-0000.safetensors") -> str:
    return f"checkpoints/step-{step}/{name}"


def _write(name: str, content: bytes | str) -> Callable[[Path], object]:
    def write(run: Path) -> None:
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def _flip(run: Path) -> None:
    flip(run / _file(6), 20_000)


def _all_pickles(run: Path) -> None:
    for step in (4, 6):
        (run / _file(step)).write_bytes(PICKLE)


def _remove(*names: str) -> Callable[[Path], object]:
    def remove(run: Path) -> None:
        for name in names:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return remove


def _cut_journal(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:9])


def _edit_lock(run: Path) -> None:
    lock = run / "recipe.lock.yaml"
    lock.write_text(lock.read_text().replace("lr: 0.1", "lr: 0.7"))


def _in_use(place: Place) -> Outcome:
    run = place.folder / "run"
    first = worlds.start(["train", "digits_resnet20", "length=900ep", "--run", str(run)], 1, place.folder / "logs")
    while not list((run / "lease").glob("*.json")):
        time.sleep(0.01)
    second = place.digits()
    first.signal(15)
    assert first.wait().codes == [75]
    return second


def _disk_full(place: Place) -> Outcome:
    run = place.stopped()
    place.keep(run / "checkpoints")
    return place.cli("resume", "{dir}/run", "checkpoint.every=1st", faults={0: [("disk_full", {"step": 7})]})


def _foreign(place: Place) -> Outcome:
    (place.folder / "run").mkdir()
    (place.folder / "run" / "thesis.tex").write_text("")
    return place.digits()


def _a_file(place: Place) -> Outcome:
    (place.folder / "run").write_text("")
    return place.digits()


def _below_a_file(place: Place) -> Outcome:
    (place.folder / "file").write_text("")
    return place.cli("train", "digits_resnet20", "--run", "{dir}/file/run")


def _long_name(place: Place) -> Outcome:
    return place.cli("train", "digits_resnet20", "--run", "{dir}/" + "x" * 300)


def _resume_a_checkpoint(place: Place) -> Outcome:
    place.keep(place.stopped())
    return place.cli("resume", "{dir}/run/checkpoints/step-6")


def _finished(place: Place) -> Outcome:
    place.stopped()
    assert place.digits().codes == [0]
    place.keep(place.folder / "run")
    return place.digits()


def _nothing_left(place: Place) -> Outcome:
    place.stopped()
    return place.cli("train", "digits_resnet20", *RUN, "length=6st", "--from", "{dir}/run", "--run", "{dir}/new")


RECIPES = [
    Case(
        "The run folder is that of another recipe",
        "run holds a run of another recipe: optimizer.lr is 0.2, the run has 0.1; seed is 3, the run has 0. Leave these as they are to go on with it, allow a change on purpose with --allow KEY (it is recorded), choose another --run, or branch off with --from run.",
        2,
        "Choose as said: leave, allow, another folder, or branch off.",
        trained("optimizer.lr=0.2", "seed=3"),
    ),
    Case(
        "A run is resumed with another value",
        "run holds a run of another recipe: optimizer.lr is 0.2, the run has 0.1. Leave these as they are to go on with it, allow a change on purpose with --allow KEY (it is recorded), choose another --run, or branch off with --from run.",
        2,
        "Leave it out, or add --allow KEY.",
        resumed(lambda run: None, "optimizer.lr=0.2"),
    ),
    Case(
        "--allow names no key",
        "--allow optimizer.lrr: there is no such key. Did you mean 'optimizer.lr'? Allowed are keys of the recipe.",
        2,
        "Correct the key.",
        trained("--allow", "optimizer.lrr"),
    ),
    Case(
        "The lock was edited",
        "run/recipe.lock.yaml is not as Restrain wrote it (its checksum differs): it was edited or damaged, so nobody knows what the run was trained with. Undo the edit. A change is made on purpose by restrain resume run KEY=VALUE --allow KEY, or in a run that branches off: restrain train ... --from run.",
        1,
        "Undo the edit; allow a change on the command line.",
        resumed(_edit_lock),
    ),
    Case(
        "The lock was edited, and the run is trained again",
        "run/recipe.lock.yaml is not as Restrain wrote it (its checksum differs): it was edited or damaged, so nobody knows what the run was trained with. Undo the edit. A change is made on purpose by restrain resume run KEY=VALUE --allow KEY, or in a run that branches off: restrain train ... --from run.",
        1,
        "Undo the edit; allow a change on the command line.",
        trained(damage=_edit_lock),
    ),
    Case(
        "The lock is gone, and the run is resumed",
        "run is not a run folder: it has no recipe.lock.yaml. Runs are started by restrain train.",
        2,
        "Restore the lock.",
        resumed(_remove("recipe.lock.yaml")),
    ),
    Case(
        "The lock is gone, and a run is to be trained there",
        "run has checkpoints, but its recipe.lock.yaml is gone, so nobody knows what they were trained with. Restore that file from a copy, or name another folder with --run.",
        1,
        "Restore the lock, or name another folder.",
        trained(damage=_remove("recipe.lock.yaml")),
    ),
]
FOLDERS = [
    Case(
        "Another process trains in the run folder",
        "The run folder run is in use by process 4711 on node1, last heard of 3 s ago. Stop that process, or wait: if it is dead, the run can be taken over after 60 s of silence. For a separate run, name another folder with --run.",
        1,
        "Stop it, or wait.",
        _in_use,
    ),
    Case(
        "The run folder holds other things",
        "The folder run holds no run but other things (thesis.tex). Name an empty or a new folder with --run.",
        2,
        "Name another folder.",
        _foreign,
    ),
    Case(
        "The run folder is a file",
        "The run folder run is a file. Name another folder with --run.",
        2,
        "Name another folder.",
        _a_file,
    ),
    Case(
        "The run folder lies below a file",
        "Cannot make the run folder (file/run): Not a directory. Look at that folder and its disk.",
        1,
        "Name another folder.",
        _below_a_file,
    ),
    Case(
        "The run folder's name is too long",
        "x...x/recipe.lock.yaml: File name too long. Look at that path, its permissions and its disk.",
        1,
        "Name another folder.",
        _long_name,
    ),
    Case(
        "What is resumed is no run folder",
        ". is not a run folder: it has no recipe.lock.yaml. Runs are started by restrain train.",
        2,
        "Name a run folder.",
        lambda place: place.cli("resume", "{dir}"),
    ),
    Case(
        "What is resumed is a checkpoint",
        "run/checkpoints/step-6 is not a run folder: it has no recipe.lock.yaml. It lies in the run run. Runs are started by restrain train.",
        2,
        "Name the run folder.",
        _resume_a_checkpoint,
    ),
    Case(
        "The run is finished",
        "run is finished: eval/loss ..., eval/top1 ..., eval/count ..., train/loss ..., train/top1 ...",
        0,
        "Nothing.",
        _finished,
    ),
    Case(
        "run.json is no JSON",
        "Cannot read run/run.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). It is written whole or not at all, so it was edited or the disk is at fault. Repair it, or move it away: the run goes on without it.",
        1,
        "Repair it, or move it away.",
        resumed(_write("run.json", "{")),
    ),
    Case(
        "run.json was edited",
        "run/run.json was edited: it holds \"done\" as 'state', which is one of running, finished, interrupted, failed. Repair it, or move it away: the run goes on without it.",
        1,
        "Repair it, or move it away.",
        resumed(_write("run.json", '{"state": "done"}')),
    ),
    Case(
        "ledger.jsonl was deleted",
        "run/ledger.jsonl has no line, the checkpoint is of step 6: lines were removed or cut off. The run goes on, but what was trained in them can no longer be audited",
        0,
        "Nothing, or restore it from a copy before the run goes on.",
        resumed(_remove("ledger.jsonl"), keep=False),
    ),
    Case(
        "metrics.jsonl was deleted",
        "run/metrics.jsonl was removed: the metrics up to step 6 are lost, the run goes on",
        0,
        "Nothing, or restore it from a copy before the run goes on.",
        resumed(_remove("metrics.jsonl"), keep=False),
    ),
    Case(
        "metrics.jsonl was cut",
        "run/metrics.jsonl was cut: the metrics from step 3 to 6 are lost, the run goes on",
        0,
        "Nothing, or restore it from a copy before the run goes on.",
        resumed(_cut_journal, keep=False),
    ),
    Case(
        "metrics.jsonl is a folder",
        "Cannot read the journal (run/metrics.jsonl): Is a directory. Look at that folder and its disk.",
        1,
        "Move that folder away.",
        resumed(lambda run: [(run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()], keep=False),
    ),
]
CHECKPOINTS = [
    Case(
        "A byte of the newest checkpoint has flipped",
        "passed over: run/checkpoints/step-6/model-0000.safetensors is damaged: its SHA-256 is not the one in manifest.json; going on from step 4",
        0,
        "Nothing: the one before is used. Look at the disk.",
        resumed(_flip, keep=False),
    ),
    Case(
        "A file of the newest checkpoint is cut",
        "passed over: run/checkpoints/step-6/model-0000.safetensors has 1000 bytes instead of 1093872; going on from step 4",
        0,
        "Nothing: the one before is used. Look at the disk.",
        resumed(lambda run: (run / _file(6)).write_bytes((run / _file(6)).read_bytes()[:1000]), keep=False),
    ),
    Case(
        "A pickle stands where a safetensors file should be",
        "passed over: run/checkpoints/step-6/model-0000.safetensors is not a safetensors file but a pickle or a zip archive of torch.save, which Restrain never loads; going on from step 4",
        0,
        "Nothing: it is never loaded, the checkpoint before is used. Ask who put it there.",
        resumed(_write(_file(6), PICKLE), keep=False),
    ),
    Case(
        "A pickle that runs a command stands there",
        "passed over: run/checkpoints/step-6/model-0000.safetensors has 35 bytes instead of 1093872; going on from step 4",
        0,
        "Nothing: it is never loaded, the checkpoint before is used. Ask who put it there.",
        resumed(_write(_file(6), EVIL), keep=False),
    ),
    Case(
        "Pickles stand in all checkpoints",
        "run/checkpoints has checkpoints, but none that is whole, so nothing was started: run/checkpoints/step-6/model-0000.safetensors is not a safetensors file but a pickle or a zip archive of torch.save, which Restrain never loads; run/checkpoints/step-4/model-0000.safetensors is not a safetensors file but a pickle or a zip archive of torch.save, which Restrain never loads. Restore one from a copy, or move the run folder away to begin anew.",
        1,
        "Restore one, or begin anew.",
        resumed(_all_pickles),
    ),
    Case(
        "A checkpoint has no manifest",
        "passed over: run/checkpoints/step-6/manifest.json is missing; going on from step 4",
        0,
        "Nothing: the one before is used.",
        resumed(_remove(_file(6, "manifest.json")), keep=False),
    ),
    Case(
        "The checkpoints of a stopped run were deleted",
        "The run in run stopped after step 6, and its checkpoints are gone. Restore run/checkpoints from a copy, or move the run folder away to begin anew.",
        1,
        "Restore them, or begin anew.",
        resumed(_remove("checkpoints")),
    ),
    Case(
        "The disk is full while a checkpoint is saved",
        "Cannot save the checkpoint of step 7 (run/checkpoints/step-7.tmp-2/model-0000.safetensors): No space left on device. The disk is full: free some space, then go on with `restrain resume`; the older checkpoints are intact.",
        1,
        "Free some space and resume: nothing but the steps since the last checkpoint is done again.",
        _disk_full,
    ),
]
FORKS = [
    Case(
        "--from names no run",
        "--from elsewhere: elsewhere is not a run folder (it has no checkpoints folder). Write --from RUN or --from RUN@STEP, with the folder of a run.",
        2,
        "Name a run folder.",
        forked("--from", "{dir}/elsewhere"),
    ),
    Case(
        "--from names a step without a checkpoint",
        "--from run@5: run has no checkpoint of step '5'. Steps there: 4, 6.",
        2,
        "Take one of the steps listed.",
        forked("--from", "{dir}/run@5"),
    ),
    Case(
        "--from names no step",
        "--from run@best: run has no checkpoint of step 'best'. Steps there: 4, 6.",
        2,
        "Write RUN@STEP, or RUN alone for the newest.",
        forked("--from", "{dir}/run@best"),
    ),
    Case(
        "--from names a damaged checkpoint",
        "--from run@6: run/checkpoints/step-6/model-0000.safetensors is damaged: its SHA-256 is not the one in manifest.json. Name another step; others there: 4.",
        1,
        "Take another step.",
        forked("--from", "{dir}/run@6", damage=_flip),
    ),
    Case(
        "--from names a checkpoint that several processes find damaged",
        "--from run@6: run/checkpoints/step-6/optim-0000.safetensors is damaged: its SHA-256 is not the one in manifest.json. Name another step; others there: 4.",
        1,
        "Take another step.",
        forked(
            "--from", "{dir}/run@6", damage=lambda run: flip(run / _file(6, "optim-0000.safetensors"), 20_000), world=2
        ),
    ),
    Case(
        "--from names the run of another network",
        "--from: run/checkpoints/step-6 does not fit the recipe: the recipe's model has a parameter layer1.3.conv1.weight, the checkpoint has none. Model, optimizer and ema must be those of the run that is branched off from.",
        2,
        "Branch off with that network.",
        forked("model.name=cifar_resnet56", "--from", "{dir}/run"),
    ),
    Case(
        "--from leaves nothing to train",
        "--from: run/checkpoints/step-6 is after step 6, and length=6st ends after step 6: nothing would be trained. Set a longer length, or begin from an earlier step with --from RUN@STEP.",
        2,
        "Set a longer length, or an earlier step.",
        _nothing_left,
    ),
    Case(
        "--from is given for a run that exists",
        "--from run: run holds a run already, which did not begin from another one. Name a new folder with --run, or leave --from out to go on with it.",
        2,
        "Name a new folder, or leave --from out.",
        trained("--from", "{dir}/run"),
    ),
]
EVALUATIONS = [
    Case(
        "What is evaluated is no run",
        ". is neither a run folder nor a checkpoint in one (runs/.../checkpoints/step-N).",
        2,
        "Name a run folder or a checkpoint.",
        lambda place: place.cli("evaluate", "{dir}"),
    ),
    Case(
        "A damaged checkpoint is evaluated",
        "run/checkpoints/step-6/model-0000.safetensors is damaged: its SHA-256 is not the one in manifest.json. Name another checkpoint of run, or the run itself.",
        1,
        "Evaluate another one.",
        evaluated("run/checkpoints/step-6", damage=_flip),
    ),
    Case(
        "The best checkpoint of an evaluated run is damaged",
        "passed over: run/checkpoints/step-4/model-0000.safetensors is damaged: its SHA-256 is not the one in manifest.json; using run/checkpoints/step-6",
        0,
        "Nothing: the newest whole one is evaluated.",
        evaluated("run", damage=lambda run: flip(run / _file(4), 20_000)),
    ),
    Case(
        "A run without checkpoints is evaluated",
        "run has no checkpoint. A run writes one when it is stopped, and at its end.",
        1,
        "Train it.",
        evaluated("run", damage=_remove("checkpoints")),
    ),
    Case(
        "An evaluation is asked for another network",
        "command line: model.name cannot be set here: an evaluation takes the network and its weights as they are. What may be set is data, resolution, loss, evaluate, parallel, precision, batch.micro.",
        2,
        "Leave the key out.",
        evaluated("run", "model.name=cifar_resnet56"),
    ),
]
