# ruff: noqa: E501  (a paragraph is longer than a line)
"""Layouts over processes that cannot be. restrain check refuses what restrain train does, in the same words."""

from __future__ import annotations

from collections.abc import Callable

from restrain.run.manifest import encode_manifest, read_manifest
from tests.bad_input.harness import Case, Outcome, Place, digits, show

VIT = ["model.name=vit", "model.shape={depth: 2, width: 32, heads: 4, patch: 2}"]
CPU = ["parallel.accelerator=cpu"]


def _check(*argv: str) -> Callable[[Place], Outcome]:
    def do(place: Place) -> Outcome:
        return place.cli("check", "digits_resnet20", "--no-run", *CPU, *argv)

    return do


def _without_deepspeed(place: Place) -> Outcome:
    words = ["train", "digits_resnet20", "parallel.strategy=zero2", *CPU, "--run", "{dir}/run"]
    return place.cli(*words, faults={0: [("without_package", {"name": "deepspeed"})]})


def _other_model(place: Place) -> Outcome:
    """Checkpoints whose manifest no longer has the tensors of one block: whole files, of another model."""
    run = place.stopped()
    for path in (run / "checkpoints").glob("step-*"):
        body = read_manifest(path)
        body["tensors"] = {
            f"other.{name}" if name.startswith("layer2.1.") else name: entry for name, entry in body["tensors"].items()
        }
        for file in body["files"]:
            _renamed(path / file, "layer2.1.", body["files"][file])
        (path / "manifest.json").write_bytes(encode_manifest(body))
    return place.digits()


def _renamed(path, prefix: str, facts: dict) -> None:
    from safetensors.torch import load_file, save_file

    from restrain.run.manifest import digest

    save_file({f"other.{n}" if n.startswith(prefix) else n: t for n, t in load_file(path).items()}, path)
    facts["size"], facts["sha256"] = digest(path)


PARALLEL = [
    Case(
        "Processes that do not divide a step",
        "3 processes cannot share a step of batch.global=64 in groups of batch.group=16: there are 4 groups, and each process takes the same number of whole ones, or as large a part of one as the others. Numbers of processes that work: 1, 2, 4; with groups that span processes, 8, 16, 32, 64. Otherwise change batch.group or batch.global (that defines another run).",
        2,
        "Take a number that works, or another batch.",
        _check("parallel.devices=3"),
    ),
    Case(
        "Groups that would span processes, and mixup",
        "8 processes share a step of batch.global=64 in groups of batch.group=16 only with each group spanning 2 of them, which this recipe does not allow: mixup and cutmix take an image's partner from its group, which has to be on its process. Numbers of processes that work: 1, 2, 4.",
        2,
        "Take fewer processes.",
        _check("parallel.devices=8", "mix.mixup=0.2"),
    ),
    Case(
        "Tensor groups that do not divide the processes",
        "parallel.tensor=3 does not divide the 4 process(es) of this run. Tensor groups of 1, 2, 4 work, or another number of processes (parallel.devices).",
        2,
        "Take a size that does.",
        _check(*VIT, "parallel.devices=4", "parallel.tensor=3"),
    ),
    Case(
        "Tensor groups that do not divide the heads",
        "parallel.tensor=3 does not divide the 4 attention heads and the MLP's 128 units; 1, 2, 4 do.",
        2,
        "Take a size that does.",
        _check(*VIT, "parallel.devices=3", "parallel.tensor=3"),
    ),
    Case(
        "BatchNorm under tensor parallelism",
        "parallel.tensor=2: the ranks of a tensor group see the same rows, and BatchNorm is not cut over them. Tensor parallelism is for transformers; set parallel.tensor=1.",
        2,
        "Shard it with fsdp instead.",
        _check("parallel.devices=2", "parallel.tensor=2"),
    ),
    Case(
        "Tensor parallelism of what is no transformer",
        "parallel.tensor=2: SkipPerceptron has no attention of ours to cut by its heads. Set parallel.tensor=1, and let parallel.strategy=fsdp shard it.",
        2,
        "Shard it with fsdp instead.",
        lambda place: place.cli(
            "check", "digits_perceptron", "--no-run", *CPU, "parallel.devices=2", "parallel.tensor=2"
        ),
    ),
    Case(
        "An optimizer of whole matrices under tensor parallelism",
        "parallel.tensor=2 with optimizer.name=lamb, whose step takes the norm or the spectrum of each whole matrix, and a rank has a part of it. Use sgd, adamw, nadam, lion or adan, or parallel.tensor=1 with fsdp.",
        2,
        "Take another optimizer, or FSDP2 alone.",
        _check(*VIT, "parallel.devices=2", "parallel.tensor=2", "optimizer={name: lamb, lr: 0.001}"),
    ),
    Case(
        "ZeRO under tensor parallelism",
        "parallel.strategy=zero2 with parallel.tensor=2: tensor parallelism goes with ddp, fsdp and hsdp. Set parallel.tensor=1, or parallel.strategy=fsdp.",
        2,
        "Take FSDP2.",
        _check(*VIT, "parallel.devices=2", "parallel.tensor=2", "parallel.strategy=zero2"),
    ),
    Case(
        "hsdp on one node",
        "parallel.strategy=hsdp with groups of 4 (parallel.shard; by default the processes of a node) on 4 data-parallel process(es): there must be several groups of several processes. Sizes that work: 2.",
        2,
        "Say how many processes share a replica.",
        _check("parallel.devices=4", "parallel.strategy=hsdp"),
    ),
    Case(
        "A size of groups of hsdp, without it",
        "parallel.shard=2 is the size of a group of hsdp, and parallel.strategy is auto. Set parallel.strategy=hsdp, or leave parallel.shard out.",
        2,
        "Leave it out, or take hsdp.",
        _check("parallel.devices=4", "parallel.shard=2"),
    ),
    Case(
        "Offloading where there is no GPU",
        "parallel.offload=cpu keeps the optimizer in the host's memory while a GPU computes: it needs a GPU and parallel.strategy zero1 to zero3, and this is fsdp on cpu. Set parallel.offload=none.",
        2,
        "Leave it out.",
        _check("parallel.devices=2", "parallel.strategy=fsdp", "parallel.offload=cpu"),
    ),
    Case(
        "DeepSpeed that is not installed",
        "parallel.strategy=zero2 is DeepSpeed's, which is not installed. Install it (pip install deepspeed), or use parallel.strategy=fsdp.",
        2,
        "Install it, or take FSDP2.",
        _without_deepspeed,
    ),
    Case(
        "One process, and several devices",
        "command line: parallel.devices = 2, but parallel.strategy = single is one process.",
        2,
        "Leave one of them out.",
        show("digits_resnet20", "parallel.strategy=single", "parallel.devices=2"),
    ),
    Case(
        "Several nodes, started on one",
        "parallel.nodes=2, but this command was started on one node. Start it on all nodes with srun (slurm/ has scripts) or torchrun.",
        2,
        "Start it with srun or torchrun.",
        digits("parallel.nodes=2"),
    ),
    Case(
        "Float8 on a CPU",
        "precision=fp8 needs a GPU that multiplies float8, from compute capability 8.9 on (L4, L40S, RTX 4090, H100 and later), and this is a CPU. Take bf16, or auto.",
        2,
        "Take bf16.",
        digits("precision=fp8", "parallel.accelerator=cpu"),
    ),
    Case(
        "A format for gradients where they are not cut",
        "parallel.reduce=bf16 is the format in which fsdp, hsdp and ZeRO add up gradients, and parallel.strategy is ddp, which adds them as they are. Leave parallel.reduce out, or set one of these strategies.",
        2,
        "Leave it out.",
        digits("parallel.strategy=ddp", "parallel.devices=2", "parallel.reduce=bf16"),
    ),
    Case(
        "Kept weights where none are gathered",
        "parallel.reshard=false keeps what fsdp, hsdp and zero3 gather, and parallel.strategy is ddp, which gathers nothing. Leave parallel.reshard out, or set one of these strategies.",
        2,
        "Leave it out.",
        digits("parallel.strategy=ddp", "parallel.devices=2", "parallel.reshard=false"),
    ),
    Case(
        "A single process, and a format to add gradients up in",
        "parallel.reduce=bf16 is the format in which fsdp, hsdp and ZeRO add up gradients, and parallel.strategy is single, which has none to add up. Leave parallel.reduce out, or set one of these strategies.",
        2,
        "Leave it out.",
        digits("parallel.strategy=single", "parallel.reduce=bf16"),
    ),
    Case(
        "Why processes that cannot share a step would lie as they do",
        "3 processes cannot share a step of batch.global=64 in groups of batch.group=16: there are 4 groups, and each process takes the same number of whole ones, or as large a part of one as the others. Numbers of processes that work: 1, 2, 4; with groups that span processes, 8, 16, 32, 64. Otherwise change batch.group or batch.global (that defines another run).",
        2,
        "Take a number that works.",
        lambda place: place.cli("why", "parallel.strategy", "digits_resnet20", "parallel.devices=3"),
    ),
    Case(
        "A checkpoint of another model",
        "The checkpoint run/checkpoints/step-6 does not fit this run: layer2.1.conv1.weight|param is not there; layer2.1.bn1.weight|param is not there; layer2.1.bn1.bias|param is not there, and 15 more, of 175 tensors. It comes from another model or optimizer, or was cut short: resume with the recipe that it was made with, or remove it, and the one before is used.",
        1,
        "Go on with the recipe that it was made with.",
        _other_model,
    ),
]
