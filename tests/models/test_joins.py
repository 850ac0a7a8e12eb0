"""Each join against its formula, on images and on tokens, with and without its branch."""

import pytest
import torch

from restrain.models import JOINS, init_model, join_spec, set_dropout_keys, set_factors
from restrain.models.residual import Gate, GateJoin, ScaledAddJoin

CHANS = 6
MODULATED = [name for name in JOINS if name not in ("none", "concat")]


def made(section: dict, tokens: bool, rate: float = 0.0):
    """A join with random parameters, and x, branch of its kind."""
    join = join_spec(section).build(CHANS, rate, tokens=tokens).double()
    init_model(join, 3)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in join.parameters():
            parameter.copy_(torch.randn_like(parameter))
    shape = (4, 5, CHANS) if tokens else (4, CHANS, 3, 3)
    return join, *torch.randn(2, *shape, dtype=torch.float64).unbind()


def linear(weight, x, tokens):
    return x @ weight.T if tokens else torch.einsum("oc,bchw->bohw", weight, x)


def gate_of(gate: Gate, x, tokens):
    bias = gate.bias if tokens else gate.bias[:, None, None]
    return torch.sigmoid(linear(gate.weight, x, tokens) + bias)


@pytest.mark.parametrize("tokens", [False, True])
def test_the_formula_of_each_join(tokens):
    def check(section, formula):
        join, x, branch = made(section, tokens)
        torch.testing.assert_close(join(x, branch), formula(join, x, branch), rtol=0, atol=1e-12)

    shown = (lambda v: v) if tokens else (lambda v: v[:, None, None])
    check({"name": "none"}, lambda j, x, b: b)
    check({"name": "add"}, lambda j, x, b: x + b)
    for scale in ("layerscale", "rezero", "skipinit"):
        check({"name": "add", "scale": scale}, lambda j, x, b: x + shown(j.gamma) * b)
    check({"name": "gate"}, lambda j, x, b: gate_of(j.gate, x, tokens) * (b - x) + x)
    check({"name": "exclusive_gate"}, lambda j, x, b: gate_of(j.gate, x, tokens) * (b - x) + x)
    check({"name": "shortcut_gate"}, lambda j, x, b: b + x - gate_of(j.gate, x, tokens) * x)
    check({"name": "concat"}, lambda j, x, b: torch.cat((x, b), -1 if tokens else 1))
    check({"name": "scale", "shortcut": 0.5, "branch": 0.25}, lambda j, x, b: 0.5 * x + 0.25 * b)
    check({"name": "conv1x1"}, lambda j, x, b: linear(j.weight, x, tokens) + b)
    join, x, branch = made({"name": "dropout"}, tokens)
    assert torch.equal(join.eval()(x, branch), x + branch)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", MODULATED)
def test_without_a_branch_every_join_is_its_skip_path(name, tokens):
    join, x, branch = made({"name": name}, tokens, rate=0.5)
    if name == "dropout":
        set_dropout_keys([join.dropout], torch.arange(4)[None])
    set_factors([join], torch.zeros(1, 4))
    torch.testing.assert_close(join(x, branch), join.without(x), rtol=0, atol=1e-12)


def test_learned_scales_begin_as_their_papers_say():
    for section, size, value in (
        ({"name": "add", "scale": "layerscale"}, CHANS, 1e-5),
        ({"name": "add", "scale": "layerscale", "init": 0.1}, CHANS, 0.1),
        ({"name": "add", "scale": "rezero"}, 1, 0.0),
        ({"name": "add", "scale": "skipinit"}, 1, 0.0),
    ):
        join = join_spec(section).build(CHANS)
        assert isinstance(join, ScaledAddJoin)
        init_model(join, 0)
        torch.testing.assert_close(join.gamma.detach(), torch.full((size,), value))


def test_the_bias_opens_or_closes_a_gate():
    x, branch = torch.randn(2, 4, CHANS, 3, 3).unbind()
    for bias, expected in ((-40.0, x), (40.0, branch)):
        join = join_spec({"name": "gate", "bias": bias}).build(CHANS)
        assert isinstance(join, GateJoin)
        init_model(join, 0)
        torch.testing.assert_close(join(x, branch), expected)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("section", [{"name": "add"}, {"name": "add", "scale": "layerscale"}, {"name": "gate"}])
def test_around_computes_the_kept_rows_alone(section, tokens):
    join, x, _ = made(section, tokens, rate=0.5)
    seen = []

    def f(rows):
        seen.append(len(rows))
        return rows.sin()

    join.rows = torch.tensor([3, 1])
    set_factors([join], torch.full((1, 2), 2.0))
    branch = torch.zeros_like(x)
    branch[[1, 3]] = 2 * x[[1, 3]].sin()
    torch.testing.assert_close(join.around(x, f), join.meet(x, branch), rtol=0, atol=1e-12)
    assert seen == [2]
    torch.testing.assert_close(join.eval().around(x, f), join(x, x.sin()), rtol=0, atol=1e-12)
    assert seen == [2, 4]


def test_dropout_is_a_function_of_its_keys():
    join, x, branch = made({"name": "dropout", "rate": 0.3}, tokens=False)
    with pytest.raises(RuntimeError, match="set_dropout_keys"):
        join(x, branch)
    keys = torch.tensor([[7, 8, 9, 7]])
    set_dropout_keys([join.dropout], keys)
    first = join.dropout(torch.ones(4, 1000))
    assert torch.equal(first, join.dropout(torch.ones(4, 1000)))
    assert torch.equal(first[0], first[3])
    assert not torch.equal(first[0], first[1])
    assert 0.25 < (first == 0).double().mean() < 0.35
    assert first.max() == pytest.approx(1 / 0.7)
    assert torch.equal(join.eval()(x, branch), x + branch)


def test_the_recipe_names_every_network_and_no_other():
    from restrain.models import MODELS
    from restrain.recipe.model_names import NAMES

    assert set(MODELS) == set(NAMES)
    assert len(NAMES) == len(set(NAMES))
