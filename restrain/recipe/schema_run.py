"""The sections that say where a run happens and what it leaves behind; hardly any of them moves a weight."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from restrain.recipe.base import (
    AsTuple,
    Auto,
    Cadence,
    Every,
    FrozenDict,
    Moment,
    NonNegative,
    Positive,
    Section,
    Steps,
    Threads,
)
from restrain.recipe.durations import Duration
from restrain.recipe.rematerialise import checked


class Parallel(Section):
    """How the run is laid over devices. Placement: it may change when a run goes on."""

    strategy: Literal["auto", "single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"] = Field(
        default="auto",
        description="One process; a replica a process (ddp); parameters cut over all processes block by block (fsdp, "
        "FSDP2), or over groups of `shard` of them with a replica a group (hsdp); DeepSpeed's ZeRO, which cuts the "
        "optimizer's state (zero1), the gradients (zero2) and the parameters (zero3) over all processes.",
    )
    tensor: Positive = Field(
        default=1, description="Processes that share each matrix of a transformer by heads and hidden units."
    )
    shard: Positive | None = Field(default=None, description="Processes of a group of hsdp; null: those of a node.")
    reshard: bool = Field(
        default=True,
        description="Let a block of fsdp, hsdp and zero3 go after its forward pass and gather it again for its "
        "backward pass; false keeps it, which takes memory and saves a gather.",
    )
    reduce: Literal["fp32", "bf16"] | None = Field(
        default=None, description="Number format in which all but ddp add gradients; null: that of the weights."
    )
    offload: Literal["none", "cpu"] = Field(
        default="none",
        description="Where ZeRO keeps the optimizer, on a GPU: there, or in the host's memory.",
    )
    deepspeed: Annotated[dict[str, str], AfterValidator(FrozenDict)] = Field(
        default={},
        validate_default=True,
        description="Further keys of DeepSpeed's zero_optimization for zero1 to zero3, such as {overlap_comm: true}.",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Kind of device.")
    devices: Auto | Positive = Field(default="auto", description="Processes a node, one a GPU.")
    nodes: Auto | Positive = Field(
        default="auto", description="Number of nodes; auto: what torchrun or Slurm says, else 1."
    )
    threads: Auto | Threads = Field(default="auto", description="Threads of torch within an operation, a process.")
    remat: Annotated[str, AfterValidator(checked)] = Field(
        default="none",
        description="What is computed again in the backward pass (activation checkpointing): none; each residual block "
        "(block); segments of k blocks, of which the input alone is kept (every=k), or of the square root of their "
        "number (sqrt); as few blocks as let a process keep within a memory (budget=12GiB).",
    )
    compile: Literal["none", "block", "step"] = Field(
        default="none", description="torch.compile: one residual block at a time, or the whole network of a step."
    )


class Evaluate(Section):
    """When and how the evaluation set is measured."""

    every: Every = Field(default=Duration(1, "ep"), description="How often; always at the end.")
    batch: Auto | Positive = Field(
        default="auto", description="Images a process evaluates at a time. Changes no count."
    )

    flip: bool = Field(
        default=False, description="Average the logits of each image and of its mirror image (test-time flip)."
    )


class Checkpoint(Section):
    """When checkpoints are written and which are kept."""

    every: Cadence = Field(default=Duration(10, "min"), description="How often: training or wall clock.")
    keep: Positive = Field(default=2, description="Newest checkpoints kept, beside the best.")
    best: str | None = Field(
        default="eval/top1", pattern=r"^eval/[a-z0-9_]+$", description="Metric that chooses BEST; null: none is chosen."
    )


class Wandb(Section):
    """The mirror of the journal at Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = Field(
        default="disabled", description="Off, to local files, or sent."
    )
    project: str = Field(default="restrain", min_length=1, description="Project; from the site file where it has one.")
    entity: str | None = Field(default=None, description="User or team; usually from the site file.")
    group: str | None = Field(default=None, description="Group of runs that are shown together.")
    name: str | None = Field(default=None, description="Display name of the run; null: the run folder's.")
    tags: Annotated[tuple[str, ...], AsTuple] = Field(default=(), description="Tags of the run.")
    notes: str | None = Field(default=None, description="A longer description of the run.")
    system: bool = Field(default=True, description="wandb's own metrics of processor, memory, disk and GPUs.")
    code: bool = Field(default=False, description="Keep the recipe and the installed code as an artifact.")
    checkpoints: Literal["none", "best", "all"] = Field(
        default="none", description="Which checkpoints are sent as artifacts."
    )


class Track(Section):
    """What is journaled. The local journal is the truth, others mirror it."""

    every: Cadence = Field(default=Duration(1, "st"), description="How often a line is written.")
    pixels: bool = Field(
        default=False, description="Hash augmented pixels into the ledger too (for tests; costs time)."
    )
    probe: Every | None = Field(
        default=None,
        description="How often the depth X-ray reads every join (probes.jsonl), such as 100st; null: never.",
    )
    wandb: Wandb = Field(default=Wandb(), description="Mirror at Weights & Biases.")
    tensorboard: bool = Field(default=False, description="Mirror as TensorBoard event files, in the run folder.")


class Profile(Section):
    """A window of the torch profiler, written as a Chrome trace."""

    at: Steps = Field(default=Duration(100, "st"), description="First step profiled.")
    steps: Positive = Field(default=5, description="Number of steps.")


class Tripwire(Section):
    """A bound that a sound run keeps: a hopeless one is seen early."""

    at: Moment = Field(description="When it is looked at: the first value of the metric from here on.")
    metric: str = Field(pattern=r"^[a-z_]+/[a-z0-9_]+$", description="Metric of the journal.")
    min: float | None = Field(default=None, description="Smallest sound value; null: none.")
    max: float | None = Field(default=None, description="Largest sound value; null: none.")
    act: Literal["stop", "warn"] = Field(default="stop", description="Save and leave, or say so and go on.")


class Expect(Section):
    """The published or measured result of the recipe; a finished run is compared with it."""

    metric: str = Field(default="eval/top1", pattern=r"^[a-z_]+/[a-z0-9_]+$", description="Metric of the journal.")
    value: float = Field(description="Its expected value at the end; accuracies in percent.")
    tolerance: NonNegative = Field(description="How far from it a sound run may end, in the same unit.")
    better: Literal["higher", "lower"] = Field(default="higher", description="Which way is better.")
    source: str = Field(min_length=1, description="Who measured it.")
    status: Literal["paper", "reproduced", "unverified"] = Field(
        description="paper: published by others; reproduced: a run of this project reached it; unverified: neither yet."
    )
    at: Annotated[tuple[Tripwire, ...], AsTuple] = Field(
        default=(), description="Tripwires: bounds on the way, such as eval/top1 of at least 20 at 5ep."
    )
