"""What ``parallel.deepspeed`` may say to DeepSpeed's engine, and the optimizers that ZeRO can cut. No torch here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from restrain.errors import UserError, nearest

# Keys of DeepSpeed's `zero_optimization` that say how it moves data, and nothing of what is computed.
KEYS = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "use_multi_rank_bucket_allreduce",
    "allgather_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential",
    "enable_sanity_checks",
    "log_trace_cache_warnings",
)
# What the recipe says elsewhere: the key there.
OWNED = {
    "train_batch_size": "batch.global",
    "train_micro_batch_size_per_gpu": "batch.micro",
    "gradient_accumulation_steps": "batch.micro",
    "gradient_clipping": "clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "communication_data_type": "parallel.reduce",
    "stage": "parallel.strategy",
    "zero_optimization": "parallel.strategy",
    "offload_optimizer": "parallel.offload",
    "offload_param": "parallel.offload",
    "cpu_offload": "parallel.offload",
    "activation_checkpointing": "parallel.remat",
    "compile": "parallel.compile",
    "tensor_parallel": "parallel.tensor",
    "leaf_module": "parallel.strategy",
    "seed": "seed",
    "wandb": "track.wandb",
    "tensorboard": "track.tensorboard",
    "checkpoint": "checkpoint",
}
# A step of theirs treats each element on its own: cutting the flattened parameters anywhere changes nothing.
ELEMENTWISE = ("sgd", "adamw", "nadam", "lion", "adan")


def engine_keys(given: Mapping[str, str]) -> dict[str, Any]:
    """``parallel.deepspeed`` as DeepSpeed takes it. Raises UserError for a key that is unknown or the recipe's own."""
    found = {}
    for key, text in given.items():
        if key in OWNED:
            raise UserError(f"parallel.deepspeed.{key} is the recipe's own matter: set {OWNED[key]} instead.")
        if key not in KEYS:
            raise UserError(
                f"parallel.deepspeed.{key} is not a key.{nearest(key, KEYS)} It takes these of DeepSpeed's "
                f"zero_optimization: {', '.join(KEYS)}."
            )
        try:
            found[key] = json.loads(text.lower())
        except ValueError:
            raise UserError(f"parallel.deepspeed.{key}={text} is neither a number nor true or false.") from None
    return found


def check(parallel: Any, precision: str, optimizer: str) -> None:
    """Raises UserError for what ZeRO cannot do, with the reason; ``parallel``: the section of a recipe."""
    strategy, tensor = parallel.strategy, parallel.tensor
    engine_keys(parallel.deepspeed)
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"parallel.strategy={strategy} is DeepSpeed's, which is not installed. Install it (pip install deepspeed), "
            f"or use parallel.strategy=fsdp."
        )
    idle = next((key for key in parallel.deepspeed if key.startswith("stage3_")), None)
    if idle is not None and strategy != "zero3":
        raise UserError(
            f"parallel.deepspeed.{idle} is of DeepSpeed's stage 3, and parallel.strategy is {strategy}. Leave it out, "
            f"or set parallel.strategy=zero3."
        )
    if precision == "fp64":
        raise UserError(
            f"parallel.strategy={strategy} with precision=fp64: DeepSpeed keeps the weights that it updates in fp32. "
            f"Use ddp or fsdp, or another precision."
        )
    if optimizer not in ELEMENTWISE:
        raise UserError(
            f"parallel.strategy={strategy} with optimizer.name={optimizer}: its step takes the norm or the spectrum of "
            f"a whole parameter, and ZeRO cuts all parameters as one long vector, wherever that falls. Use "
            f"{', '.join(ELEMENTWISE)}, or parallel.strategy=fsdp."
        )
    if strategy == "zero3" and parallel.compile != "none":
        raise UserError(
            f"parallel.strategy=zero3 with parallel.compile={parallel.compile}: torch.compile cannot follow the hooks "
            f"by which DeepSpeed gathers a block. Set parallel.compile=none, or use zero1, zero2 or fsdp."
        )
    if tensor > 1:
        raise UserError(
            f"parallel.strategy={strategy} with parallel.tensor={tensor}: tensor parallelism goes with ddp, fsdp and "
            f"hsdp. Set parallel.tensor=1, or parallel.strategy=fsdp."
        )
