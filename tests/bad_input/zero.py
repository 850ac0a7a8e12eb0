# ruff: noqa: E501  (a paragraph is longer than a line)
"""ZeRO that cannot be: what DeepSpeed's engine does not do, and keys of it that are the recipe's."""

from __future__ import annotations

from tests.bad_input.harness import Case, Outcome, Place


def _digits(strategy: str, *words: str):
    def do(place: Place) -> Outcome:
        return place.cli("train", "digits_resnet20", f"parallel.strategy={strategy}", *words, "--run", "{dir}/run")

    return do


_ELEMENTWISE = "sgd, adamw, nadam, lion, adan"

ZERO = [
    Case(
        "ZeRO with an optimizer that takes the norm of each tensor",
        "parallel.strategy=zero1 with optimizer.name=lamb: its step takes the norm or the spectrum of a whole parameter, and ZeRO cuts all parameters as one long vector, wherever that falls. Use "
        f"{_ELEMENTWISE}, or parallel.strategy=fsdp.",
        2,
        "Take another optimizer, or FSDP2.",
        _digits("zero1", "optimizer={name: lamb, lr: 0.001}"),
    ),
    Case(
        "ZeRO in float64",
        "parallel.strategy=zero3 with precision=fp64: DeepSpeed keeps the weights that it updates in fp32. Use ddp or fsdp, or another precision.",
        2,
        "Take another layout for comparisons in float64.",
        _digits("zero3", "precision=fp64"),
    ),
    Case(
        "A compiled block that ZeRO gathers",
        "parallel.strategy=zero3 with parallel.compile=block: torch.compile cannot follow the hooks by which DeepSpeed gathers a block. Set parallel.compile=none, or use zero1, zero2 or fsdp.",
        2,
        "Stages 1 and 2 compile; so does FSDP2.",
        _digits("zero3", "parallel.compile=block"),
    ),
    Case(
        "A key of DeepSpeed's that is the recipe's own",
        "parallel.deepspeed.gradient_clipping is the recipe's own matter: set clip instead.",
        2,
        "The recipe says it once, for every layout.",
        _digits("zero2", "parallel.deepspeed.gradient_clipping=1.0"),
    ),
    Case(
        "A key that DeepSpeed does not have",
        "parallel.deepspeed.overlap_com is not a key. Did you mean 'overlap_comm'? It takes these of DeepSpeed's zero_optimization: overlap_comm, contiguous_gradients, reduce_scatter, reduce_bucket_size, use_multi_rank_bucket_allreduce, allgather_bucket_size, stage3_prefetch_bucket_size, stage3_param_persistence_threshold, stage3_model_persistence_threshold, stage3_max_live_parameters, stage3_max_reuse_distance, stage3_use_all_reduce_for_fetch_params, stage3_allgather_sequential, enable_sanity_checks, log_trace_cache_warnings.",
        2,
        "Correct it.",
        _digits("zero2", "parallel.deepspeed.overlap_com=true"),
    ),
    Case(
        "Keys of DeepSpeed's without ZeRO",
        "parallel.deepspeed goes to DeepSpeed's engine, and parallel.strategy is single. Set zero1, zero2 or zero3, or leave parallel.deepspeed out.",
        2,
        "Leave them out, or choose a stage.",
        _digits("single", "parallel.deepspeed.overlap_comm=true"),
    ),
    Case(
        "A value that DeepSpeed refuses",
        "parallel.deepspeed.reduce_bucket_size=-5: Input should be greater than 0, says DeepSpeed.",
        2,
        "Correct it.",
        _digits("zero2", "parallel.deepspeed.reduce_bucket_size=-5"),
    ),
    Case(
        "A key of another stage of ZeRO",
        "parallel.deepspeed.stage3_prefetch_bucket_size is of DeepSpeed's stage 3, and parallel.strategy is zero1. Leave it out, or set parallel.strategy=zero3.",
        2,
        "Leave it out.",
        _digits("zero1", "parallel.deepspeed.stage3_prefetch_bucket_size=7"),
    ),
    Case(
        "A value where keys of DeepSpeed's belong",
        "command line: parallel.deepspeed: '7' is not lines of its own, KEY: VALUE.",
        2,
        "Name the key: parallel.deepspeed.overlap_comm=true, say.",
        _digits("zero2", "parallel.deepspeed=7"),
    ),
]
