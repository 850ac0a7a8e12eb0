"""Recurrent networks: parity with torch's, the cell as a residual stream, and what the joins make of it."""

import itertools

import pytest
import torch
from torch import nn

from restrain.errors import UserError
from restrain.insight.through_time import gradient_norms
from restrain.models import build_model, named_joins, residual_blocks

B, T, D, H, K = 4, 9, 5, 7, 3


def built(name: str, **keys) -> nn.Module:
    keys.setdefault("shape", {"width": H, "depth": 2})
    return build_model({"name": name, "classes": K, "in_chans": D} | keys).double()


def spoken(name: str, reads: str = "tokens") -> nn.Module:
    """A language model of D tokens."""
    return built(name, classes=D, recurrent={"reads": reads})


def randomised(model: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5)
    return model


def sequences(rows: int = B, steps: int = T, inputs: int = D) -> torch.Tensor:
    return torch.randn(rows, steps, inputs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def torchs(model: nn.Module, kind: type[nn.RNNBase]) -> nn.RNNBase:
    """torch's network of the same weights; the 1997 cell gets a forget gate that is open for good."""
    other = kind(D, H, len(model.layers), batch_first=True).double()
    with torch.no_grad():
        for number, cell in enumerate(model.layers):
            for ours, theirs in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias", "bias_ih")):
                weight = cell.whole_bias() if ours == "bias" else getattr(cell, ours)
                if cell.gates == 3:
                    i, *rest = weight.chunk(3)
                    forget = torch.full_like(i, 50.0) if ours == "bias" else torch.zeros_like(i)
                    weight = torch.cat((i, forget, *rest))
                getattr(other, f"{theirs}_l{number}").copy_(weight)
            getattr(other, f"bias_hh_l{number}").zero_()
    return other


CASES = [
    ("lstm", nn.LSTM, {}),
    ("lstm1997", nn.LSTM, {}),
    ("rnn", nn.RNN, {"join": {"name": "none"}}),
]


@pytest.mark.parametrize(("name", "kind", "keys"), CASES)
def test_parity_with_torch(name, kind, keys):
    model = randomised(built(name, **keys))
    other, x_BTD = torchs(model, kind), sequences()
    ours, theirs = x_BTD.clone().requires_grad_(), x_BTD.clone().requires_grad_()
    out, wanted = model(ours), model.head(other(theirs)[0][:, -1])
    assert (out - wanted).abs().max() < 1e-9
    weights = torch.linspace(-1, 1, B * K, dtype=torch.float64).view(B, K)
    (out * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.layers.named_parameters()}
    (wanted * weights).sum().backward()
    assert (ours.grad - theirs.grad).abs().max() < 1e-9
    for number, cell in enumerate(model.layers):
        for ours_name in ("weight_ih", "weight_hh"):
            grad = getattr(other, f"{ours_name}_l{number}").grad
            if cell.gates == 3:
                grad = torch.cat([grad.chunk(4)[gate] for gate in (0, 2, 3)])
            assert (found[f"{number}.{ours_name}"] - grad).abs().max() < 1e-9
        grad = getattr(other, f"bias_ih_l{number}").grad
        if cell.gates > 1:
            i, f, g, o = grad.chunk(4)
            assert (found[f"{number}.bias_input"] - i).abs().max() < 1e-9
            assert cell.gates == 3 or (found[f"{number}.bias_forget"] - f).abs().max() < 1e-9
            grad = torch.cat((g, o))
        assert (found[f"{number}.bias"] - grad).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["lstm", "lstm1997", "rnn"])
def test_tokens_are_one_hot_inputs_and_every_step_is_read(name):
    model, other = randomised(spoken(name)), spoken(name, reads="numbers")
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(0, D, (B, T), generator=torch.Generator().manual_seed(3))
    logits = model(tokens)
    assert logits.shape == (B, T, D)
    one_hot = nn.functional.one_hot(tokens, D).double()
    for step in range(T):  # what is said after a step is what a sequence that ends there gives
        torch.testing.assert_close(logits[:, step], other(one_hot[:, : step + 1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "lstm1997", "rnn"])
def test_no_step_sees_the_future(name):
    model = randomised(spoken(name))
    tokens = torch.randint(0, D, (B, T), generator=torch.Generator().manual_seed(3))
    other = tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % D
    before, after = model(tokens), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def watched(model: nn.Module, x: torch.Tensor) -> list[list[tuple[torch.Tensor, ...]]]:
    """(x, branch, y) of each pass of each layer's join."""
    seen: list[list[tuple[torch.Tensor, ...]]] = []
    for _, join in named_joins(model):
        seen.append([])
        join.observers.append(lambda join, x, branch, y, into=seen[-1]: into.append((x, branch, y)))
    model(x)
    for _, join in named_joins(model):
        join.observers.clear()
    return seen


def test_unrolled_in_time_the_lstm_of_1997_is_the_residual_formula():
    model, x_BTD = randomised(built("lstm1997")), sequences()
    assert [name for name, _ in residual_blocks(model)] == ["layers.0", "layers.1"]
    for passes in watched(model, x_BTD):
        assert len(passes) == T
        assert not passes[0][0].any()
        for (_, _, y), (x, _, _) in itertools.pairwise(passes):
            assert torch.equal(x, y)  # nothing stands between two joins
        total = torch.stack([branch for _, branch, _ in passes]).sum(0)
        torch.testing.assert_close(passes[-1][2], total, rtol=0, atol=1e-12)


def test_the_forget_gate_scales_the_shortcut_and_fully_open_gives_the_lstm_of_1997():
    model, x_BTD = randomised(built("lstm")), sequences()
    cell = model.layers[0]
    passes = watched(model, x_BTD)[0]
    h = torch.zeros(B, H, dtype=torch.float64)
    for step, (x, branch, y) in enumerate(passes):
        i, f, g, o = (x_BTD[:, step] @ cell.weight_ih.T + h @ cell.weight_hh.T + cell.whole_bias()).chunk(4, 1)
        torch.testing.assert_close(branch, i.sigmoid() * g.tanh(), rtol=0, atol=1e-12)
        torch.testing.assert_close(y, f.sigmoid() * x + branch, rtol=0, atol=1e-12)
        h = o.sigmoid() * y.tanh()
    old = randomised(built("lstm1997"), seed=5)
    with torch.no_grad():
        for new, one in zip(model.layers, old.layers, strict=True):
            for name in ("weight_ih", "weight_hh"):
                i, g, o = getattr(one, name).chunk(3)
                getattr(new, name).copy_(torch.cat((i, torch.zeros_like(i), g, o)))
            new.bias.copy_(one.bias)
            new.bias_input.copy_(one.bias_input)
            new.bias_forget.fill_(50.0)
        model.head.load_state_dict(old.head.state_dict())
    torch.testing.assert_close(model(x_BTD), old(x_BTD), rtol=0, atol=1e-12)


@pytest.mark.parametrize("join", ["none", "add", "gate", "scale", "shortcut_gate", "exclusive_gate", "conv1x1"])
@pytest.mark.parametrize("name", ["rnn", "lstm1997"])
def test_every_join_runs_through_time(name, join):
    model = randomised(built(name, join={"name": join}))
    for passes in watched(model, sequences()):
        for x, branch, y in passes:
            assert x.shape == branch.shape == y.shape == (B, H)
    if join == "none":  # nothing of the cell is carried
        for passes in watched(model, sequences()):
            assert all(torch.equal(y, branch) for _, branch, y in passes)


STEPS = 200


def norms(name: str, **keys) -> list[float]:
    """Of the gradient of the last step's outputs along the cell, at initialisation."""
    model = built(name, shape={"width": 32}, **keys)
    return gradient_norms(model, lambda: model(sequences(8, STEPS)).sum())


def test_what_arrives_200_steps_back():
    """Hochreiter 1991: a plain network's error vanishes exponentially. The cell of 1997 keeps it, a forget gate that
    is half open loses it again, and one whose bias opens it keeps it (Gers et al. 2000)."""
    plain = norms("rnn", join={"name": "none"})
    carousel = norms("lstm1997")
    closed, opened = (norms("lstm", recurrent={"forget_bias": bias}) for bias in (0.0, 3.0))
    assert len(plain) == len(carousel) == STEPS
    assert plain[0] < 1e-30 * plain[-1]
    assert closed[0] < 1e-30 * closed[-1]
    for kept in (carousel, opened):
        assert kept[0] > 1e-3 * kept[-1]
        assert min(kept) > 1e-3 * kept[-1]
    without = norms("lstm1997", join={"name": "none"})  # the same cell, but for its carousel
    assert without[0] < 1e-30 * without[-1]
    # The shorter the time, the more arrives: it vanishes steadily, by about the forget gate's 0.5 a step.
    rates = [later / earlier for later, earlier in itertools.pairwise(closed[100:150])]
    assert 0.4 < sum(rates) / len(rates) < 0.7


def test_parameters_by_hand():
    for name, gates in (("rnn", 1), ("lstm1997", 3), ("lstm", 4)):
        model = build_model({"name": name, "classes": 10, "in_chans": 2, "shape": {"width": 30, "depth": 2}})
        wanted = gates * 30 * (2 + 30 + 1) + gates * 30 * (30 + 30 + 1) + 10 * (30 + 1)
        assert sum(parameter.numel() for parameter in model.parameters()) == wanted


def test_weights_are_drawn_as_torch_draws_them_and_the_gates_biases_are_the_recipes():
    model = built("lstm", shape={"width": 64}, recurrent={"forget_bias": 3.0, "input_bias": -2.0})
    assert (model.layers[0].bias_forget == 3.0).all()
    assert (model.layers[0].bias_input == -2.0).all()
    assert (built("lstm1997", recurrent={"input_bias": -3.0}).layers[0].bias_input == -3.0).all()
    assert (built("lstm").layers[0].bias_forget == 1.0).all()
    cell = built("lstm", shape={"width": 64}).layers[0]
    for weight in (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_input):
        assert weight.abs().max() <= 1 / 8
        assert weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_remat_changes_nothing():
    model, x_BTD = randomised(built("lstm")), sequences()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x_BTD).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    for _, block in residual_blocks(model):
        block.remat = True
    assert all(torch.equal(one, other) for one, other in zip(plain, gradients(), strict=True))


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("lstm", {"shape": {}}, r"model\.shape\.width is missing"),
        ("lstm", {"join": {"name": "gate"}}, r"model\.join\.name is 'gate', but the forget gate"),
        (
            "lstm",
            {"join": {"name": "add", "scale": "rezero"}},
            r"model\.join\.scale is 'rezero'.*model\.join\.scale out",
        ),
        ("lstm", {"join": {"name": "none"}}, r"use add, or take model\.name=lstm1997"),
        ("rnn", {"join": {"name": "concat"}}, "'concat', which has no place in a recurrent network"),
        ("rnn", {"zero_init": True}, r"model\.zero_init is true, but with model\.join\.name=none"),
        ("lstm1997", {"zero_init": True}, "no last layer of its own"),
        ("lstm", {"drop_path": {"rate": 0.1}}, r"model\.drop_path\.rate is 0\.1, but lstm passes the same join"),
    ],
)
def test_what_is_refused(name, keys, said):
    with pytest.raises(UserError, match=said):
        built(name, **keys)
