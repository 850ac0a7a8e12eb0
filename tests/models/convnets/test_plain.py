"""VGG against timm, AlexNet against torchvision; both say clearly that they have no residual blocks."""

import pytest
import timm
import torch
import torchvision
from timm.layers import ClassifierHead
from timm.models.vgg import ConvMlp
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model, freeze, residual_blocks
from restrain.models.build import model_part
from restrain.models.convnets import alexnet, vgg
from restrain.models.dropout import KeyedDropout, named_dropouts, set_dropout_keys
from restrain.models.weights import heads_of
from restrain.optim.groups import parameter_groups
from restrain.parallel.blocks import apply_compile, apply_remat
from tests.models.parity import check_training, images, like, logit_difference, on_meta, randomise

NONE = {"name": "none"}
VGGS = ["vgg16", "vgg19", "vgg16_bn", "vgg19_bn"]
NAMES = [*VGGS, "alexnet"]
HIDDEN = 24  # units of the linear layers here: at full size two such models and their gradients fill 4 GB
SIZES = {name: [(32, 64), (32, 256)] for name in VGGS} | {"alexnet": [(64, 64), (64, 224)]}


def undropped(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, KeyedDropout | nn.Dropout):
            module.rate = module.p = 0.0
    return model


@pytest.fixture
def pair(monkeypatch):
    """Our model and the reference with equal tensors, and the linear layers narrow; undropped."""

    def make(name: str) -> tuple[nn.Module, nn.Module]:
        monkeypatch.setattr(vgg, "HIDDEN", HIDDEN)
        monkeypatch.setattr(alexnet, "HIDDEN", HIDDEN)
        with torch.device("meta"):
            if name == "alexnet":
                theirs = torchvision.models.alexnet()
                theirs.classifier[1], theirs.classifier[4] = nn.Linear(9216, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
                theirs.classifier[6] = nn.Linear(HIDDEN, 17)
            else:
                theirs = timm.create_model(name, device="meta")
                theirs.pre_logits, theirs.head = ConvMlp(512, HIDDEN, 7), ClassifierHead(HIDDEN, 17)
        theirs = theirs.double().to_empty(device="cpu")
        randomise(theirs)
        return undropped(like(theirs, name, join=NONE)), undropped(theirs)

    return make


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in NAMES for size in SIZES[name]])
def test_logits_are_the_references(pair, name, size):
    """Of VGG, 32 pixels leave one, which stands for 7; 256 leave 8, in which 7 fit twice."""
    assert logit_difference(*pair(name), images(*size)) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_training_gradients_and_statistics_are_the_references(pair, name):
    check_training(*pair(name), images(*SIZES[name][0]))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_check_catches_a_moved_stride(pair, name):
    ours, theirs = pair(name)
    convolution = [module for module in ours.features if isinstance(module, nn.Conv2d)][1]
    pool = next(module for module in ours.features if isinstance(module, nn.MaxPool2d))
    convolution.stride, pool.stride = (2, 2), 1
    assert logit_difference(ours, theirs, images(96)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_at_full_size_names_and_shapes_are_the_references(name):
    with torch.device("meta"):
        theirs = torchvision.models.alexnet() if name == "alexnet" else timm.create_model(name, device="meta")
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in on_meta(name, 1000, join=NONE).state_dict().items()} == expected


@pytest.mark.parametrize(
    ("name", "dropouts"), [("vgg16", ["pre_logits.drop", "head.drop"]), ("alexnet", ["classifier.0", "classifier.3"])]
)
def test_dropout_is_keyed_at_the_papers_rate(name, dropouts):
    model = on_meta(name, join=NONE)
    assert [(path, module.rate) for path, module in named_dropouts(model)] == [(path, 0.5) for path in dropouts]
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


def test_dropout_in_training_is_a_function_of_its_keys(monkeypatch):
    monkeypatch.setattr(vgg, "HIDDEN", HIDDEN)
    model = build_model({"name": "vgg16", "classes": 5, "join": NONE}).train()
    x, dropouts = torch.randn(2, 3, 32, 32), [module for _, module in named_dropouts(model)]
    with pytest.raises(RuntimeError, match="set_dropout_keys"):
        model(x)
    outputs = []
    for key in (1, 1, 2):
        set_dropout_keys(dropouts, torch.full((2, 2), key, dtype=torch.int64))
        outputs.append(model(x).detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["vgg16_bn", "alexnet"])
def test_passes_over_blocks_say_that_there_are_none(name):
    model = on_meta(name, join=NONE)
    assert residual_blocks(model) == []
    for apply in (apply_remat, apply_compile):
        with pytest.raises(UserError, match="has no residual blocks"):
            apply(model)
    with pytest.raises(UserError, match="the model has no residual blocks"):
        freeze(model, ["block:0"])
    with pytest.raises(UserError, match="needs a model with residual blocks, and this one has none"):
        parameter_groups(model, 1e-4, "none", layer_decay=0.75)


@pytest.mark.parametrize(("name", "head"), [("vgg16", "head.fc"), ("alexnet", "classifier.6")])
def test_stem_and_head(name, head):
    model = on_meta(name, join=NONE)
    assert heads_of(model) == [head]
    assert model_part(model, "stem") == [model.features[0]]
    freeze(model, ["stem", "head"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"features.0.weight", "features.0.bias", f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"join": {"name": "add"}},
            r"join\.name is 'add', but .* is a plain net .*model\.join\.name=none",
        ),
        ({"join": {"name": "gate"}}, r"model\.join\.name is 'gate', but"),
        ({"join": NONE, "drop_path": {"rate": 0.1}}, r"model\.drop_path\.rate is 0\.1, but .*no path to drop"),
        ({"join": NONE, "zero_init": True}, r"model\.zero_init is true, but"),
        ({"join": NONE, "blurpool": True}, r"model\.blurpool is an option of ResNets"),
    ],
)
def test_what_has_no_place_is_refused_by_name(name, change, message):
    with pytest.raises(UserError, match=message):
        on_meta(name, **change)


@pytest.mark.parametrize(("name", "least"), [("vgg16", 32), ("cifar_vgg16_bn", 32), ("alexnet", 63)])
def test_images_of_which_nothing_is_left_are_refused(name, least):
    section = {"name": name, "classes": 10, "join": NONE}
    with torch.device("meta"):
        model = build_model(section, sides=(least,)).eval()
        assert model(torch.empty(1, 3, least, least)).shape == (1, 10)
        with pytest.raises(RuntimeError):
            model(torch.empty(1, 3, least - 1, least - 1))
        with pytest.raises(
            UserError, match=rf"{name} takes images of {least} pixels or more.*these have {least - 1}\."
        ):
            build_model(section, sides=(least, least - 1))
