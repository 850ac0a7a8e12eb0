"""Resident memory over ten epochs: what epochs three to ten add is nothing, of tokens and of images."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "figures" / "memory.py"
FLAT = 4.0  # MB that eight epochs may add: buffers that an allocator hands out late, not samples kept


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def added(measured: np.ndarray, memory) -> float:
    """MB by which the most of epochs three to ten is above the second's."""
    epochs = measured[:, 0].reshape(memory.EPOCHS, memory.SAMPLES)
    return float(epochs[2:].max() - epochs[1].max())


def test_tokens(memory, tmp_path):
    measured = memory.watch(memory.token_loader(tmp_path, tokens=6_000_000))
    assert added(measured, memory) < FLAT  # an epoch is 12 MB stored and 48 MB handed over


@pytest.mark.slow
def test_images(memory, tmp_path, photographs):
    from tests.data.making import write_tar

    members = [m for n, data in enumerate(photographs) for m in ((f"{n:03d}.cls", b"0"), (f"{n:03d}.jpg", data))]
    write_tar(tmp_path / "train-000.tar", members)
    measured = memory.watch(memory.image_loader(str(tmp_path)))
    assert added(measured, memory) < FLAT
    # An epoch of decoded crops is 7 MB, the photographs themselves are read anew each time.


def test_the_drawing(memory):
    measured = np.linspace(1, 2, 2 * memory.EPOCHS * memory.SAMPLES).reshape(-1, 2)
    text = memory.drawing([("tokens", measured), ("images", measured)])
    assert text.count("<polyline") == 4
