"""Feedback: the error goes down through another matrix, weights get the exact gradient of what arrives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.insight.cost import saved_bytes
from restrain.models import build_model, init_model, materialise, set_group
from restrain.models.blocks import ResidualBlock
from restrain.models.feedback import BUFFER, Fed, set_feedback, signs
from restrain.models.fill import ZERO
from restrain.models.layers import BlurConv2d, Conv2d, Linear
from restrain.parallel.blocks import apply_compile, apply_remat

# torch hides this warning of its own tracer with a filter that pytest's "error" overrides.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
KINDS = ("sign", "random")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(layer: nn.Module, kind: str) -> nn.Module:
    """The layer under a kind of feedback, in float64, its weights and its random matrix drawn."""
    set_feedback(layer, kind)
    init_model(layer.double(), seed=3)
    return layer


def matrix(layer: nn.Module, kind: str) -> Tensor:
    return layer.feedback if kind == "random" else signs(layer.weight.detach())


def test_signs_have_the_size_of_the_weight():
    weight = torch.tensor([[3.0, -4.0], [0.5, -0.5]])
    size = (25.5 / 4) ** 0.5
    torch.testing.assert_close(signs(weight), torch.tensor([[size, -size], [size, -size]]))
    torch.testing.assert_close(signs(weight).norm(), weight.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_of_two_layers_by_hand(kind):
    """y = W2 tanh(W1 x + b1), E = |y|^2 / 2: the error y goes down through F2, dE/dW1 = (1 - h^2) (F2^T y) x^T."""
    first, second = made(Linear(3, 4), kind), made(Linear(4, 2, bias=False), kind)
    x_BI = randn(5, 3).requires_grad_()
    h_BH = torch.tanh(first(x_BI))
    y_BO = second(h_BH)
    (y_BO.square().sum() / 2).backward()
    with torch.no_grad():
        down_BH = (y_BO @ matrix(second, kind)) * (1 - h_BH**2)
        wanted = {
            "second": (second.weight.grad, y_BO.T @ h_BH),
            "first": (first.weight.grad, down_BH.T @ x_BI),
            "bias": (first.bias.grad, down_BH.sum(0)),
            "input": (x_BI.grad, down_BH @ matrix(first, kind)),
        }
    for name, (found, expected) in wanted.items():
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)
    assert not torch.allclose(x_BI.grad, down_BH @ first.weight)  # the exact one would be another


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 1, False), (3, 2, False), (1, 2, True), (5, 1, True)])
def test_a_convolution_by_hand(kind, kernel, stride, bias):
    conv = made(Conv2d(3, 4, kernel, stride, bias=bias), kind)
    x_BCHW = randn(2, 3, 8, 8).requires_grad_()
    y_BDHW = conv(x_BCHW)
    error = randn(*y_BDHW.shape, seed=1)
    y_BDHW.backward(error)
    back = matrix(conv, kind)
    outside = 8 - ((y_BDHW.shape[-1] - 1) * stride + kernel - 2 * conv.padding[0])
    down = F.conv_transpose2d(error, back, stride=stride, padding=conv.padding, output_padding=outside)
    torch.testing.assert_close(x_BCHW.grad, down, rtol=1e-12, atol=1e-12)
    own = torch.nn.grad.conv2d_weight(x_BCHW.detach(), conv.weight.shape, error, stride, conv.padding)
    torch.testing.assert_close(conv.weight.grad, own, rtol=1e-12, atol=1e-12)
    if bias:
        torch.testing.assert_close(conv.bias.grad, error.sum((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y_BDHW, F.conv2d(x_BCHW, conv.weight, conv.bias, stride, conv.padding))


def test_a_blurred_convolution_blurs_what_comes_down():
    """The blur is no weight: it is differentiated as it is."""
    conv = made(BlurConv2d(16, 8, 3, 2), "random")
    twin = copy.deepcopy(conv)
    twin.feedback_kind = "exact"
    with torch.no_grad():
        twin.weight.copy_(conv.feedback)
    x, y = (randn(2, 16, 8, 8).requires_grad_() for _ in range(2))
    error = randn(2, 8, 4, 4, seed=1)
    conv(x).backward(error)
    twin(y).backward(error)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)


def net(kind: str, name: str = "cifar_resnet20", **options) -> nn.Module:
    model = build_model({"name": name, "classes": 10, "zero_init": False, "feedback": kind, **options}).double()
    set_group(model, 4)
    return model.to(memory_format=torch.channels_last).train()


def gradients(model: nn.Module, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    x_BCHW = randn(8, 3, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)
    logits = model(x_BCHW)
    logits.double().square().sum().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1e-30, float(other.abs().max())))


@pytest.mark.parametrize("join", ["add", "none"])
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18"])
def test_the_weights_themselves_as_feedback_give_backpropagation(name, join):
    """Blurs, norms, shortcuts and joins are as torch differentiates them: no other path than the weights' changes."""
    model = net("random", name, join={"name": join}, blurpool=not name.startswith("cifar"))
    for layer in model.modules():
        if isinstance(layer, Fed):
            layer.feedback.copy_(layer.weight.detach())
    exact = net("exact", name, join={"name": join}, blurpool=not name.startswith("cifar"))
    same(gradients(model), gradients(exact), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("remat", "compiled"), [(True, False), (False, True), (True, True)])
def test_remat_and_compile_change_nothing(kind, remat, compiled):
    model, changed = net(kind), net(kind)
    if remat:
        apply_remat(changed)
    if compiled:
        torch.compiler.reset()
        apply_compile(changed, "aot_eager")
    same(gradients(changed), gradients(model), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_bf16_and_keeps_gradients_in_fp32(kind):
    model = net(kind).float()
    kept: list[torch.dtype] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        y = model.layer1[0].conv1(randn(8, 16, 8, 8).float())
    assert y.dtype == torch.bfloat16
    assert set(kept) == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = gradients(model, torch.float32)
    wide = gradients(net(kind).float(), torch.float32)
    assert all(gradient.dtype == torch.float32 for gradient in narrow[1:])
    cosine = F.cosine_similarity(
        torch.cat([g.flatten() for g in narrow[1:]]), torch.cat([g.flatten() for g in wide[1:]]), 0
    )
    assert cosine > 0.98


def test_exact_is_nothing_at_all():
    plain = build_model({"name": "cifar_resnet20", "classes": 10})
    model = build_model({"name": "cifar_resnet20", "classes": 10, "feedback": "exact"})
    assert all(layer.is_exact for layer in model.modules() if isinstance(layer, Fed))
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in plain.named_buffers()]
    conv, reference = model.layer1[0].conv1, nn.Conv2d(16, 16, 3, padding=1, bias=False)
    reference.load_state_dict(conv.state_dict())
    x = randn(4, 16, 8, 8).float()
    found = [torch.autograd.grad(one(x).square().sum(), one.weight)[0] for one in (conv, reference)]
    assert torch.equal(*found)
    assert type(conv(x).grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_is_that_of_exact(kind):
    model, exact = net(kind).eval(), net("exact").eval()
    x_BCHW = randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x_BCHW), exact(x_BCHW))
    assert torch.equal(model(x_BCHW), exact(x_BCHW))


def test_random_matrices_are_drawn_from_keys_and_are_no_state():
    model = net("random")
    layers = [layer for layer in model.modules() if isinstance(layer, Fed)]
    assert len(layers) == 20
    assert not [name for name in model.state_dict() if BUFFER in name]
    assert not [name for name, _ in model.named_parameters() if BUFFER in name]
    for layer in layers:
        drawn, weight = layer.feedback, layer.weight.detach()
        assert abs(float(drawn.std() / weight.std()) - 1) < 0.25  # of the weight's distribution
        assert abs(float(F.cosine_similarity(drawn.flatten(), weight.flatten(), 0))) < 0.25  # and not the weight
    with torch.device("meta"):
        again = build_model({"name": "cifar_resnet20", "classes": 10, "zero_init": False, "feedback": "random"})
    materialise(again, "cpu", seed=0)
    for name, buffer in model.named_buffers():
        if BUFFER in name:
            torch.testing.assert_close(dict(again.named_buffers())[name].double(), buffer, rtol=1e-6, atol=1e-7)
    exact = net("exact")  # and weights are those that there would be without
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), exact.parameters(), strict=True))


def test_a_step_moves_no_random_matrix():
    model = net("random")
    before = model.layer1[0].conv1.feedback.clone()
    gradients(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.equal(model.layer1[0].conv1.feedback, before)


def test_a_layer_that_starts_at_zero_still_sends_something():
    class Zero(Linear):
        def fills(self):
            return {"weight": ZERO, "bias": ZERO}

    layer = made(Zero(8, 8), "random")
    assert not layer.weight.any()
    assert float(layer.feedback.std()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_what_backpropagation_costs(kind):
    """Counted on the meta device: the multiply-adds of both passes, and what the forward pass keeps."""
    found = []
    for feedback in ("exact", kind):
        with torch.device("meta"):
            model = build_model({"name": "cifar_resnet20", "classes": 10, "feedback": feedback})
            images = torch.empty(8, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
        found.append((counter.get_total_flops(), saved_bytes(model, images)))
    assert found[0] == found[1]


class Cell(ResidualBlock):
    def __init__(self):
        super().__init__()
        self.weight_hh = nn.Parameter(torch.zeros(4, 4))
        self.head = Linear(4, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: set_feedback(net("exact"), "signs"), "'signs'.*Did you mean 'sign'"),
        (lambda: set_feedback(nn.ReLU(), "sign"), "no convolution or linear layer"),
        (lambda: set_feedback(nn.Sequential(Cell()), "random"), "weight_hh"),
        (lambda: build_model({"name": "timm/resnet18", "classes": 10, "feedback": "sign"}), "timm/resnet18"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_has_it_in_every_projection(kind):
    section = {"classes": 7, "shape": {"depth": 2, "width": 16, "heads": 2}, "feedback": kind}
    vit = build_model(section | {"name": "vit", "shape": section["shape"] | {"patch": 2}}, sides=(8,))
    gpt = build_model(section | {"name": "gpt", "shape": section["shape"] | {"context": 8}})
    for model, x in ((vit, randn(2, 3, 8, 8).float()), (gpt, torch.arange(16).view(2, 8) % 7)):
        projections = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(projections) >= 8
        assert all(isinstance(m, Fed) for m in projections)
        assert {m.feedback_kind for m in projections if isinstance(m, Fed)} == {kind}
        model(x).square().sum().backward()
        assert all(m.weight.grad.isfinite().all() and m.weight.grad.any() for m in projections)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_an_untied_head_sends_the_error_down_by_it(name):
    shape = {"depth": 1, "width": 8, "heads": 2, "context": 4}
    section = {"name": name, "classes": 5, "shape": shape, "transformer": {"tied": False}}
    tokens, arrived = torch.arange(4)[None], []
    for kind in ("exact", "sign"):
        model = build_model(section | {"feedback": kind}, seed=2).double()
        last = model.head if name == "gpt" else model.head.decoder

        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            args[0].register_hook(arrived.append)

        hook = last.register_forward_pre_hook(look)
        model(tokens).square().sum().backward()
        hook.remove()
    assert not torch.allclose(*arrived)
