"""The EMA against its recurrence, masked and swapped."""

import pytest
import torch
from torch import nn

from restrain.models import build_model
from restrain.optim.ema import Ema


def model_of(dtype=torch.float64) -> nn.Module:
    return build_model({"name": "cifar_resnet20", "classes": 10}).to(dtype).to(memory_format=torch.channels_last)


def move(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


@pytest.mark.parametrize("ok", [None, torch.tensor(True)])
@pytest.mark.parametrize("every", [1, 3])
def test_the_recurrence(ok, every):
    model = model_of()
    ema = Ema(model, 0.9, every)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters()}
    for step in range(7):
        move(model, step)
        ema.update(step, ok)
        if (step + 1) % every == 0:
            for name, tensor in model.state_dict().items():
                average = 0.9**every * expected[name] + (1 - 0.9**every) * tensor
                expected[name] = average if name in parameters else tensor.clone()
    assert ema.tensors().keys() == model.state_dict().keys()
    for name, tensor in ema.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_and_unmasked_updates(dtype):
    model = model_of(dtype)
    masked, free = Ema(model, 0.9), Ema(model, 0.9)
    before = {name: tensor.clone() for name, tensor in masked.tensors().items()}
    move(model, 0)
    masked.update(0, torch.tensor(False))
    assert all(torch.equal(before[name], tensor) for name, tensor in masked.tensors().items())
    masked.update(1, torch.tensor(True))
    free.update(1)
    for name, tensor in free.tensors().items():
        torch.testing.assert_close(masked.tensors()[name], tensor, msg=name)


def test_shadows_keep_strides_and_leave_out_draw_buffers():
    model = model_of()
    tensors = Ema(model, 0.9).tensors()
    for name, tensor in model.state_dict().items():
        assert tensors[name].stride() == tensor.stride()
        assert tensors[name].data_ptr() != tensor.data_ptr()
    assert not any("factor" in name for name in tensors)


@pytest.mark.parametrize("agreed", [True, False])
def test_swap_evaluates_the_average_and_puts_everything_back(agreed):
    """After an error that all ranks raise; after one that is a rank's own the weights stay, as others may be needed."""
    model = model_of()
    ema = Ema(model, 0.9)
    move(model, 0)
    ema.update(0)
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shadows = {name: tensor.clone() for name, tensor in ema.tensors().items()}
    addresses = [parameter.data_ptr() for parameter in model.parameters()]

    def inside():
        with ema.swap(model, LookupError if agreed else ()):
            assert all(torch.equal(shadows[name], tensor) for name, tensor in model.state_dict().items())
            raise LookupError

    with pytest.raises(LookupError):
        inside()
    if not agreed:
        live, shadows = shadows, live
    assert all(torch.equal(live[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(shadows[name], tensor) for name, tensor in ema.tensors().items())
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]


@pytest.mark.parametrize(("decay", "every"), [(1.0, 1), (-0.1, 1), (0.9, 0)])
def test_impossible_settings(decay, every):
    with pytest.raises(ValueError, match="decay in"):
        Ema(nn.Linear(2, 2), decay, every)


def test_torchvisions_decay_becomes_ours():
    """torchvision: 1 - min(1, (1 - decay) x world x batch x steps / epochs) is kept at each of its updates.

    Ours is of one step, so it is the n-th root where an update comes every n steps. V2: 8 x 128 images, 600 epochs.
    """
    kept = 1.0 - min(1.0, (1.0 - 0.99998) * 8 * 128 * 32 / 600)
    decay = kept ** (1 / 32)
    assert decay == pytest.approx(0.99996585, abs=5e-9)
    model = nn.Linear(3, 3).to(torch.float64)
    shadow = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda average, new, number: kept * average + (1 - kept) * new
    )
    shadow.update_parameters(model)  # the first update copies
    ema = Ema(model, decay, every=32)
    for step in range(96):
        move(model, step)
        ema.update(step)
        if (step + 1) % 32 == 0:
            shadow.update_parameters(model)
    for name, tensor in shadow.module.named_parameters():
        torch.testing.assert_close(ema.tensors()[name], tensor, rtol=1e-12, atol=1e-12)
