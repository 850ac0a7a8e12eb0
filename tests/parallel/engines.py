"""Imported once where whole tables of runs are made, so that no rank imports DeepSpeed for seconds."""

import importlib.util

import torch

if importlib.util.find_spec("deepspeed") is not None:
    from restrain.parallel.zero import _import

    _import(torch.device("cpu"))
