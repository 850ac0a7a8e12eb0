# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad input in recipes, overrides and arguments: what somebody wrote. Exit code 2, and nothing is made."""

from __future__ import annotations

import os

from restrain.recipe import available
from tests.bad_input.harness import Case, Outcome, Place, digits, show


def _recipe(text: str, *argv: str):
    def do(place: Place) -> Outcome:
        (place.folder / "mine.yaml").write_text(text)
        return place.show(str(place.folder / "mine.yaml"), *argv)

    return do


def _bytes(data: bytes):
    def do(place: Place) -> Outcome:
        (place.folder / "mine.yaml").write_bytes(data)
        return place.show(str(place.folder / "mine.yaml"))

    return do


def _folder(place: Place) -> Outcome:
    (place.folder / "recipes.yaml").mkdir()
    return place.show(str(place.folder / "recipes.yaml"))


def _site(place: Place) -> Outcome:
    os.environ["RESTRAIN_SITE"] = str(place.folder / "site.yaml")
    try:
        return place.show("digits_resnet20")
    finally:
        del os.environ["RESTRAIN_SITE"]


KEYS = [
    Case(
        "A key is misspelt",
        "command line: optimizer.lrr is not a key. Did you mean 'lr'? The keys of optimizer with optimizer.name = sgd are name, lr, lr_per, lr_rule, weight_decay, no_decay, layer_decay, momentum, nesterov, decay.",
        2,
        "Correct the key.",
        show("digits_resnet20", "optimizer.lrr=0.2"),
    ),
    Case(
        "A key is misspelt in a file",
        "mine.yaml:5: batch.grup is not a key. Did you mean 'group'? The keys of batch are global, group, micro.",
        2,
        "Correct that line of the file.",
        _recipe("base: digits_resnet20\n\nbatch:\n  global: 64\n  grup: 8\n"),
    ),
    Case(
        "A key belongs to another choice of its section",
        "command line: optimizer.betas does nothing with optimizer.name = sgd: it belongs to optimizer.name = adamw, nadam, lamb, lion, adan or muon.",
        2,
        "Leave the key out, or choose the section's other name.",
        show("digits_resnet20", "optimizer.betas=[0.9,0.99]"),
    ),
    Case(
        "A key is legal and does nothing",
        "command line: resolution.train = 32 does nothing: the digits are 8 x 8 and stay so.",
        2,
        "Leave the key out.",
        show("digits_resnet20", "resolution.train=32"),
    ),
    Case(
        "A key stands twice in a file",
        "mine.yaml:3: the key 'seed' stands here again (first on line 2).",
        2,
        "Remove one of the two lines.",
        _recipe("base: digits_resnet20\nseed: 3\nseed: 4\n"),
    ),
    Case(
        "Something is no key=value",
        "command line: '--seed=3' is not key=value, such as optimizer.lr=0.2.",
        2,
        "Write the key, an equals sign and the value, without spaces.",
        show("digits_resnet20", "--", "--seed=3"),
    ),
]
VALUES = [
    Case(
        "A value has the wrong type",
        "command line: optimizer.lr: 'fast' is not a number.",
        2,
        "Give a value of the type that is named.",
        show("digits_resnet20", "optimizer.lr=fast"),
    ),
    Case(
        "A value is out of its range",
        "command line: batch.micro = -1 must be more than 0.",
        2,
        "Give a value within the range.",
        show("digits_resnet20", "batch.micro=-1"),
    ),
    Case(
        "A name is in no union",
        "command line: optimizer.name: 'sdg' is not one of sgd, adamw, nadam, lamb, lars, lion, adan, muon. Did you mean 'sgd'?",
        2,
        "Choose one of the names listed.",
        show("digits_resnet20", "optimizer.name=sdg"),
    ),
    Case(
        "A unit is missing",
        "command line: length: '90' has no unit; it takes a duration in ep (epochs) or st (optimizer steps).",
        2,
        "Add the unit: 90ep, 64000st.",
        show("digits_resnet20", "length=90"),
    ),
    Case(
        "A unit makes no sense",
        "command line: evaluate.every = 10min has a unit that makes no sense here; write ep (epochs), st (optimizer steps) or % (of the whole run).",
        2,
        "Use one of the units listed.",
        show("digits_resnet20", "evaluate.every=10min"),
    ),
    Case(
        "A length is zero",
        "command line: length = 0ep must be longer than 0.",
        2,
        "Give a length above 0.",
        show("digits_resnet20", "length=0ep"),
    ),
    Case(
        "A seed is larger than 63 bits",
        "command line: seed = 9223372036854775808 must be less than 9223372036854775808.",
        2,
        "Choose a smaller seed.",
        show("digits_resnet20", "seed=9223372036854775808"),
    ),
    Case(
        "A value is absurdly long",
        "command line: seed: '999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999...999999999999999999999999999999999999999' is not an integer.",
        2,
        "Give an integer.",
        show("digits_resnet20", "seed=" + "9" * 5000),
    ),
    Case(
        "The best checkpoint is to be chosen by a metric that is not measured",
        "command line: checkpoint.best = eval/f1 is not measured; eval/loss, eval/top1 are.",
        2,
        "Choose one of the metrics listed, or null.",
        show("digits_resnet20", "checkpoint.best=eval/f1"),
    ),
    Case(
        "Several things are wrong at once",
        "3 problems in digits_resnet20: (1) command line: length: '1' has no unit; it takes a duration in ep (epochs) or st (optimizer steps). (2) command line: clip: 'x' is not a number or null. (3) command line: seed: 'y' is not an integer.",
        2,
        "Correct each.",
        show("digits_resnet20", "length=1", "clip=x", "seed=y"),
    ),
]
FILES = [
    Case(
        "The recipe is unknown",
        f"There is no recipe 'digits_resnet21'. Did you mean 'digits_resnet20'? Shipped recipes: {', '.join(available())}; a file of your own is named by its path, such as ./digits_resnet21.yaml.",
        2,
        "Correct the name, or give the path of a file.",
        show("digits_resnet21"),
    ),
    Case(
        "The recipe's file is not there",
        "There is no file elsewhere/digits_resnet20.yml. Did you mean 'digits_resnet20'?",
        2,
        "Correct the path.",
        show("elsewhere/digits_resnet20.yml"),
    ),
    Case(
        "A folder is given for a recipe",
        "recipes.yaml is a folder, but not of a run: it has no recipe.lock.yaml. Name a recipe, a file or a run folder.",
        2,
        "Name the file.",
        _folder,
    ),
    Case(
        "The recipe is no text",
        "mine.yaml: is not UTF-8 text, so it is no recipe.",
        2,
        "Name a YAML file.",
        _bytes(b"\xff\xfe\x00"),
    ),
    Case(
        "The recipe is empty",
        "mine.yaml: holds no 'key: value' lines.",
        2,
        "Write a recipe into it; base: NAME is the shortest.",
        _bytes(b""),
    ),
    Case(
        "The recipe is no YAML",
        "mine.yaml:3: this is not YAML: expected ',' or '}', but got '<stream end>'.",
        2,
        "Correct that line.",
        _recipe("base: digits_resnet20\nmodel: {classes: 10\n"),
    ),
    Case(
        "A line is indented by a tab",
        "mine.yaml:3: a tab; indent and separate with spaces.",
        2,
        "Use spaces.",
        _recipe("base: digits_resnet20\nbatch:\n\tglobal: 64\n"),
    ),
    Case(
        "A value has a YAML tag",
        "mine.yaml:2: the tag tag:yaml.org,2002:int; types come from the recipe's keys, so leave it out.",
        2,
        "Leave the tag out.",
        _recipe("base: digits_resnet20\nseed: !!int 3\n"),
    ),
    Case(
        "A base goes round in a circle",
        "mine.yaml:1: base goes round in a circle: mine -> mine.",
        2,
        "Name another base.",
        _recipe("base: mine\n"),
    ),
    Case(
        "$RESTRAIN_SITE names no file",
        "The site file site.yaml is not there: correct or unset $RESTRAIN_SITE.",
        2,
        "Correct or unset the variable.",
        _site,
    ),
]
SIZES = [
    Case(
        "batch.group does not divide batch.global",
        "command line: batch.group = 48 does not divide batch.global = 64; 8, 16, 32, 64 do.",
        2,
        "Take one of the groups listed.",
        digits("batch.group=48"),
    ),
    Case(
        "The micro-batch is impossible",
        "command line: batch.micro = 24 is impossible: a multiple of batch.group = 16 that divides batch.global = 64 is needed; auto, 16, 32, 64 work.",
        2,
        "Take one of the sizes listed, or auto.",
        digits("batch.micro=24"),
    ),
    Case(
        "The micro-batch is impossible for this number of processes",
        "batch.micro=64: with batch.global=64, batch.group=16 and 2 process(es), a process has 32 samples a step and a micro-batch holds whole groups. Sizes that work: 16, 32.",
        2,
        "Take one of the sizes listed, or auto.",
        lambda place: place.digits("batch.micro=64", world=2),
    ),
    Case(
        "More processes than groups, and they cannot share each of them",
        "6 processes cannot share a step of batch.global=64 in groups of batch.group=16: there are 4 groups, and each process takes the same number of whole ones, or as large a part of one as the others. Numbers of processes that work: 1, 2, 4; with groups that span processes, 8, 16, 32, 64. Otherwise change batch.group or batch.global (that defines another run).",
        2,
        "Take one of the numbers listed as parallel.devices.",
        digits("parallel.devices=6"),
    ),
    Case(
        "The processes cannot share the groups",
        "3 processes cannot share a step of batch.global=64 in groups of batch.group=16: there are 4 groups, and each process takes the same number of whole ones, or as large a part of one as the others. Numbers of processes that work: 1, 2, 4; with groups that span processes, 8, 16, 32, 64. Otherwise change batch.group or batch.global (that defines another run).",
        2,
        "Take one of the numbers listed as parallel.devices.",
        digits("parallel.devices=3"),
    ),
    Case(
        "Mixup with groups that span processes",
        "8 processes share a step of batch.global=64 in groups of batch.group=16 only with each group spanning 2 of them, which this recipe does not allow: mixup and cutmix take an image's partner from its group, which has to be on its process. Numbers of processes that work: 1, 2, 4.",
        2,
        "Take one of the numbers listed as parallel.devices.",
        digits("parallel.devices=8", "mix.mixup=0.2"),
    ),
    Case(
        "Rows of a fixed number kept a group, with groups that span processes",
        "8 processes share a step of batch.global=64 in groups of batch.group=16 only with each group spanning 2 of them, which this recipe does not allow: model.drop_path.mode=subset keeps a fixed number of rows of a group, not of each process's part of one. Numbers of processes that work: 1, 2, 4.",
        2,
        "Take one of the numbers listed as parallel.devices, or model.drop_path.mode=batch or sample.",
        digits("parallel.devices=8", "model.drop_path={rate: 0.5, mode: subset}"),
    ),
    Case(
        "A micro-batch where groups span processes",
        "batch.micro=64: with batch.global=64, batch.group=64 and 2 processes, a group spans 2 processes, each of which takes its 32 rows at once. Use batch.micro=auto.",
        2,
        "Use batch.micro=auto.",
        lambda place: place.digits("batch.group=64", "batch.micro=64", world=2),
    ),
    Case(
        "The batch is larger than the data set",
        "batch.global=2048 is more than the 1437 training samples of the data set: an epoch would have no step. Use a batch of at most 1437.",
        2,
        "Take a smaller batch.",
        digits("batch.global=2048"),
    ),
    Case(
        "The run is shorter than one step",
        "length=0.01ep is less than one step: 1437 samples in batches of batch.global=64 are 22 steps an epoch.",
        2,
        "Set a longer length.",
        digits("length=0.01ep"),
    ),
    Case(
        "A part to be frozen does not exist",
        "model.freeze has 'block:99', but the model's blocks are 0-8.",
        2,
        "Name blocks that are there.",
        digits("model.freeze=[block:99]"),
    ),
    Case(
        "A GPU is asked for where there is none",
        "parallel.accelerator=cuda: torch finds no CUDA device. Use auto or cpu, or another machine.",
        2,
        "Use auto or cpu, or another machine.",
        digits("parallel.accelerator=cuda"),
    ),
    Case(
        "Several nodes are asked for on one",
        "parallel.nodes=2, but this command was started on one node. Start it on all nodes with srun (slurm/ has scripts) or torchrun.",
        2,
        "Start with srun or torchrun.",
        digits("parallel.nodes=2"),
    ),
]
ARGUMENTS = [
    Case(
        "A report of a folder that holds no run",
        ". cannot be reported on: it holds no run; a start that failed early leaves it so. Name run folders; restrain runs lists them.",
        2,
        "Name run folders.",
        lambda place: place.cli("report", "{dir}", "-o", "{dir}/report.html"),
    ),
    Case(
        "No installed package has the network",
        "model.name: there is no my-package/net. PACKAGE/NAME is an entry point of the group restrain.models. No installed package has any.",
        2,
        "Install the package, or correct the name.",
        digits("model.name=my-package/net", "expect=null"),
    ),
    Case(
        "The network is one of a script",
        "model.name is script/net: its code is in the script that started the run, and nowhere else. Run that script again, with the same run=, to go on with it; in Python, restrain.open_run(RUN).model(build=net) has the network.",
        2,
        "Run the script.",
        digits("model.name=script/net", "expect=null"),
    ),
    Case(
        "The command is misspelt",
        "There is no command 'trian'. Did you mean 'train'? Commands: recipes, show, why, check, look, train, resume, runs, compare, report, lineage, sweep, slurm, sync, evaluate, predict, sample, export, probe, lesion, grow, schema, completion, data, bench, checkpoint.",
        2,
        "Correct it.",
        lambda place: place.cli("trian", "digits_resnet20"),
    ),
    Case(
        "An option is misspelt",
        "No such option: --rum (Possible options: --from, --run). See restrain train --help.",
        2,
        "Correct it.",
        lambda place: place.cli("train", "digits_resnet20", "--rum", "x"),
    ),
    Case(
        "The recipe is left out",
        "Missing argument 'NAME|FILE'. See restrain train --help.",
        2,
        "Name a recipe.",
        lambda place: place.cli("train"),
    ),
]
