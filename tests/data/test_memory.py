"""Resident memory over ten epochs: from the third on it does not grow, of tokens and of images."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "figures" / "memory.py"
FLAT = 8.0  # MB: threads' allocators breathe by as much, a sample kept for ever would soon be more


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def added(measured: np.ndarray, memory) -> float:
    """MB by which the last three epochs are above epochs three to five, by their medians."""
    epochs = measured[:, 0].reshape(memory.EPOCHS, memory.SAMPLES)
    return float(np.median(epochs[-3:]) - np.median(epochs[2:5]))


def test_tokens(memory, tmp_path):
    measured = memory.watch(memory.token_loader(tmp_path, tokens=6_000_000))
    assert added(measured, memory) < FLAT  # an epoch is 12 MB stored and 48 MB handed over


@pytest.mark.slow
def test_images(memory, tmp_path, photographs):
    from tests.data.making import write_tar

    members = [m for n, data in enumerate(photographs) for m in ((f"{n:03d}.cls", b"0"), (f"{n:03d}.jpg", data))]
    write_tar(tmp_path / "train-000.tar", members)
    measured = memory.watch(memory.image_loader(str(tmp_path)))
    assert added(measured, memory) < FLAT  # an epoch is 11 MB stored and 50 MB decoded


def test_the_drawing(memory):
    measured = np.linspace(1, 2, 2 * memory.EPOCHS * memory.SAMPLES).reshape(-1, 2)
    text = memory.drawing([("tokens", measured), ("images", measured)])
    assert text.count("<polyline") == 4
