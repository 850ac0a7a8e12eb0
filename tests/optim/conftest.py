import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors are faster on one thread, and other tests may run beside these."""
    torch.set_num_threads(1)
