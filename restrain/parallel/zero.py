"""ZeRO stages 1 to 3 by DeepSpeed's engine (Rajbhandari et al. 2019, arXiv:1910.02054), driven by a step of our own.

Stage 1 cuts the optimizer's state over the ranks, stage 2 the gradients as well, stage 3 the parameters too. DeepSpeed
moves the data and calls the optimizer; accumulation, loss scale, clipping and the guard are the step's, as under any
layout. Lightning's DeepSpeedStrategy is not used: it divides an accumulated loss twice, and it saves and loads by
pickles.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from restrain.errors import UserError
from restrain.models import residual_blocks
from restrain.models.init import fill_box, fill_flat, fills, materialise
from restrain.parallel import zero_shards
from restrain.parallel.engine import Engine, without_weights
from restrain.parallel.held import Held, whole
from restrain.parallel.layout import Layout
from restrain.parallel.shares import BUCKET, bucket
from restrain.parallel.stretch import stretch

PIECE = 8_000_000  # elements that ranks give each other at a time after loading
NEVER = 10**15  # elements: a bound that no model reaches


class Zero(Engine):
    """Args:
    model: on the meta device, or whole on this rank's device (a network that is not ours fills itself).
    seed: of the initial weights of a model on the meta device.
    autocast: dtype of the forward pass where it is not that of the weights.
    reduce: ``fp32`` or ``bf16``: how gradients are added up; None: as they are.
    skips: whole blocks are left out of some steps (drop-path mode ``batch``).
    reshard: stage 3 lets a block go after its forward pass and gathers it again for its backward pass.
    offload: keep the optimizer's state, and update, in the host's memory.
    keys: further ones of DeepSpeed's ``zero_optimization``.
    """

    shares_norm = True
    is_cut = True
    rehearses = False  # nothing is ordered anew after a first backward pass

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        rank: int,
        device: torch.device,
        *,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        reduce: str | None = None,
        skips: bool = False,
        reshard: bool = True,
        offload: bool = False,
        keys: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, layout, rank)
        self._whole, self.stage, self.offload = without_weights(model), int(layout.strategy[-1]), offload
        self.autocast, self.device = autocast, device
        self.blocks = [block for _, block in residual_blocks(model)] if self.stage == 3 else []
        self.deepspeed = load(device)
        self.skips = skips
        self.config = self._config(reduce, reshard, dict(keys or {}))
        self._names = {parameter: name for name, parameter in self._whole.named_parameters()}
        self._held: dict[str, Held] = {}
        self._leaves: dict[str, nn.Parameter] = {}
        self._several = ExitStack()  # holds the reduction back during the micro-steps of a step of several
        self._begun = False
        if self.stage == 3:
            self._cut(seed)
            return
        if any(p.is_meta for p in model.parameters()):
            materialise(model, device, seed)
        self._leaves = dict(model.named_parameters())  # whole, until there is an optimizer to be cut

    def _config(self, reduce: str | None, reshard: bool, keys: dict[str, Any]) -> dict[str, Any]:
        size = sum(p.numel() for p in self.model.parameters())
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": min(size, BUCKET),
            "allgather_bucket_size": BUCKET,
            "sub_group_size": NEVER,
        }
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        elif self.stage < 3:
            zero["compute_grad_norm"] = False  # the step has it
        if self.stage == 3:
            block = max((sum(p.numel() for p in b.parameters()) for b in self.blocks), default=size)
            # What is fetched ahead follows the order of an earlier pass, so it would gather blocks that are skipped.
            zero["reduce_bucket_size"] = bucket(self._whole)
            zero["stage3_prefetch_bucket_size"] = 0 if self.skips else block
            zero["stage3_param_persistence_threshold"] = 0
            zero["stage3_max_live_parameters"] = 3 * block if reshard else NEVER
            zero["stage3_max_reuse_distance"] = 0 if reshard else NEVER
        return {
            "train_micro_batch_size_per_gpu": 1,  # neither is used: rows and micro-steps are the step's matter
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            "communication_data_type": reduce,
            "zero_optimization": zero | keys,
        }

    def _cut(self, seed: int) -> None:
        from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

        model, world = self.model, self.layout.world
        for block in self.blocks:
            set_z3_leaf_module(block, True)  # gathered and let go as one
            block.register_forward_pre_hook(_differentiable)
            block.zeros, block.gathered_to_skip = False, block.skip_has_parameters()
        rules = fills(model) if any(p.is_meta for p in model.parameters()) else {}

        def fill(part: Tensor, name: str, parameter: nn.Parameter, start: int) -> None:
            if parameter.is_meta:
                fill_flat(part, name, rules[name], seed, start)
            else:
                part.copy_(parameter.detach().reshape(-1)[start : start + part.numel()])

        parts = zero_shards.cut_parameters(model, self.rank, world, self.device, self.config, fill)
        for name, part in parts.items():
            self._take(name, part, *zero_shards.share(self._whole.get_parameter(name).numel(), self.rank, world))
        for name, buffer in list(model.named_buffers()):
            if buffer.is_meta:
                owner, _, key = name.rpartition(".")
                made = torch.empty(buffer.shape, dtype=buffer.dtype, device=self.device)
                fill_box(made, name, rules[name], seed, (0,) * buffer.ndim, tuple(buffer.shape))
                model.get_submodule(owner)._buffers[key] = made
        model.to(self.device)

    def _take(self, name: str, part: Tensor, start: int, stop: int) -> None:
        if start < stop:
            described = self._whole.get_parameter(name)
            self._leaves[name] = nn.Parameter(part.detach(), described.requires_grad)
            self._held[name] = stretch(tuple(described.shape), start, stop)

    # ------------------------------------------------------------------------------------------------- who holds what

    def leaves(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of which this rank holds elements, flat."""
        return iter(self._leaves.items())

    def whole(self) -> nn.Module:
        return self._whole

    def grouped(self) -> nn.Module:
        return self._whole

    def optimized(self, parameter: nn.Parameter) -> nn.Parameter:
        """The model's own for one of :meth:`whole`; DeepSpeed takes its place in :meth:`adopt`."""
        return self.model.get_parameter(self._names[parameter])

    def held(self, name: str, local: Tensor) -> Held:
        held = self._held.get(name)
        if held is None:
            return whole(local.shape, self.layout.world, self.rank == 0)
        if local.ndim == 0:  # a counter of the optimizer's: saved with the first element of its parameter
            return whole((), 1, held.start == 0)  # pyright: ignore[reportAttributeAccessIssue]
        return held

    def slots(self, optimizer: Optimizer) -> Iterator[tuple[str, str, Tensor]]:
        vectors = zero_shards.flats(self.zero, self.stage)
        for run in self._runs:
            flat = vectors[run.flat]
            for slot, value in optimizer.state[flat].items():
                if isinstance(value, Tensor):
                    yield run.name, slot, run.of(value) if value.shape == flat.shape else value

    # --------------------------------------------------------------------------------------------------- the optimizer

    def adopt(self, optimizer: Optimizer, create: Callable[[Optimizer], None]) -> None:
        """Hand model and optimizer over to DeepSpeed's engine, which replaces what the optimizer updates by this rank's
        share, and make the optimizer's state for that."""
        self.engine, *_ = self.deepspeed.initialize(
            model=self.model, optimizer=optimizer, config=self.config, dist_init_required=False
        )
        self.zero, self.net = self.engine.optimizer, self.engine
        if self.autocast is not None:  # else the engine would turn off the step's own
            self.engine.torch_autocast_enabled, self.engine.torch_autocast_dtype = lambda: True, lambda: self.autocast
        if self.stage == 3:  # its step asks for the norm, which the step has had and applied
            one = torch.ones(())
            self.zero._get_norm_groups = lambda: [one]
        vectors = zero_shards.flats(self.zero, self.stage)
        with self._given(optimizer, vectors):
            create(optimizer)
        self._plain, self.optimizer = optimizer.step, optimizer
        optimizer.step = self._step  # pyright: ignore[reportAttributeAccessIssue]
        self._runs = zero_shards.runs(self.zero, self.stage, self.engine.param_names, self.rank)
        self._leaves = {name: leaf for name, leaf in self._leaves.items() if not leaf.requires_grad}  # frozen ones stay
        for run in self._runs:
            self._take(run.name, run.of(vectors[run.flat]), run.start, run.stop)

    @contextmanager
    def _given(self, optimizer: Optimizer, vectors: list[Tensor]) -> Iterator[None]:
        """Inside, the optimizer has its vectors; stage 3 gives it one at a time otherwise."""
        if self.stage < 3:
            yield
            return
        for number, vector in enumerate(vectors):
            optimizer.param_groups[self.zero.sub_group_to_group_id[number]]["params"].append(vector)
        try:
            yield
        finally:
            for group in optimizer.param_groups:
                group["params"] = []

    def _step(self, closure: Callable[[], float] | None = None) -> None:
        """What DeepSpeed calls for each of the groups: the optimizer's own step, masked. Of groups that are not in
        turn stage 3 leaves empty lists, whose counters must not move."""
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [group for group in groups if group["params"]]
        try:
            self._masked()
        finally:
            self.optimizer.param_groups = groups

    def commit(self, optimizer: Optimizer, found_inf: Tensor, guarded: Callable[..., None]) -> None:
        found_inf = found_inf.cpu() if self.offload else found_inf
        self._masked = lambda: guarded(optimizer, found_inf, self._plain)
        self.engine.step()

    @torch.no_grad()
    def refresh(self) -> None:
        if self.stage < 3:
            groups = (self.zero.parallel_partitioned_bit16_groups, self.zero.single_partition_of_fp32_groups)
            for parts, mine in zip(*groups, strict=True):
                parts[self.rank].copy_(mine)
                for owner, part in enumerate(parts):  # DeepSpeed's own gather takes a copy of all weights for it
                    for piece in part.split(PIECE):
                        dist.broadcast(piece, owner)
            return
        self.zero._partition_all_parameters()
        for number in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        self._gather_persistent()

    def rest(self) -> None:
        if self.stage == 3:
            self.zero._partition_all_parameters()
            self._gather_persistent()

    def _gather_persistent(self) -> None:
        kept = self.zero.persistent_parameters
        if kept:
            kept[0].all_gather(kept)

    # --------------------------------------------------------------------------------------------------------- the step

    def clear(self) -> None:
        self._begun = False

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        if not self._begun:
            self._begun = True
            if any(block.skipped for block in self.blocks):
                self.zero.grad_partitions_flat_buffer.zero_()  # of skipped blocks nothing is written into it
            if not last:
                self._several.enter_context(self.engine.coalesce_grad_reduction())
        yield
        if last:
            self._several.close()

    def backward(self, rows: Tensor, weight: Tensor) -> None:
        # Of a scalar: only then the engine itself ends the backward pass, whichever blocks took part.
        self.engine.backward((rows * weight).sum(), scale_wrt_gas=False)

    def gradients(self) -> list[Tensor]:
        if self.offload:
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            found = [flat.grad for flat in zero_shards.flats(self.zero, self.stage)]
            return [grad for grad in found if grad is not None]
        averaged = self.zero.averaged_gradients
        return [grad for number in sorted(averaged) for grad in averaged[number] or ()]

    def square(self, gradients: list[Tensor]) -> Tensor:
        norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
        return norms.double().square().sum()


def _differentiable(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Inputs of which one has a gradient. Behind frozen parts, and in a first block, none has, and the hook by which
    DeepSpeed ends a block's backward pass would come before it."""
    if not torch.is_grad_enabled() or not any(p.requires_grad for p in block.parameters()):
        return None
    numbers = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    if not numbers or any(x.requires_grad for x in numbers):
        return None
    return tuple(x.detach().requires_grad_() if x is numbers[0] else x for x in inputs)


def validate(keys: Mapping[str, Any], stage: int, device: torch.device) -> None:
    """Raises UserError for values that DeepSpeed does not take."""
    _import(device if torch.cuda.is_available() else torch.device("cpu"))  # keys are read without a GPU
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(stage=stage, **keys)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"parallel.deepspeed.{key}={keys.get(key)}: {first['msg']}, says DeepSpeed.") from None


def load(device: torch.device) -> Any:
    """DeepSpeed, told of the device and joined to the process group that is there. UserError where it is missing."""
    deepspeed = _import(device)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _import(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, value)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no compiler of CUDA is needed
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"parallel.strategy=zero1, zero2 and zero3 are DeepSpeed's, which cannot be imported: "
            f"{_first_line(error)}. Install it (pip install deepspeed), or use parallel.strategy=fsdp."
        ) from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Of no use here, and its compilation takes a minute: an all-reduce through shared memory for inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
