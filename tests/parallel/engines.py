"""Imported once where whole tables of runs are made: each rank of ZeRO would import DeepSpeed, and for the check of its
optimizer all of torch's compiler, for seconds."""

import importlib
import importlib.util

import torch

if importlib.util.find_spec("deepspeed") is not None:
    from restrain.parallel.zero import _import

    _import(torch.device("cpu"))
    importlib.import_module("torch._inductor.compile_fx")
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
