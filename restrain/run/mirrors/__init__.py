"""Mirrors of the journal: Weights & Biases, TensorBoard. The journal is the truth; a mirror may lag, fail and be off.

A mirror's history is append-only: what was sent cannot be taken back. But after a kill, the journal's lines behind the
last checkpoint are cut and computed again. So a mirror that writes files is given a line once a checkpoint vouches for
it (:meth:`Mirror.durable`), and what it has is read from its own files at the next start: no step stands twice, none is
lost, and no line is another than the journal's. A mirror that people watch live is given lines at once; the steps that
are computed again are then the same but for timings, as long as the run goes on with the same world and recipe.
"""

from restrain.run.mirrors.base import Mirror
from restrain.run.mirrors.tensorboard import TensorBoardMirror
from restrain.run.mirrors.wandb import WandbMirror, WandbOptions, new_run_id

__all__ = ["Mirror", "TensorBoardMirror", "WandbMirror", "WandbOptions", "new_run_id"]
