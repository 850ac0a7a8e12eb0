"""Our own networks by family: their names, and the keys of ``model.shape`` and ``model.transformer`` that they take.

restrain/models/build.py builds them; a test holds the two equal. No torch here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """``names``: of its sizes. ``shape``, ``transformer``, ``recurrent``: the keys of these sections that do something;
    ``needed``: those of ``shape`` that a name does not settle. ``join``: that of a recipe that names none."""

    names: tuple[str, ...]
    shape: tuple[str, ...] = ()
    transformer: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    recurrent: tuple[str, ...] = ()
    join: str = "add"


# restrain/models/transformers/spec.py
TRANSFORMER_SHAPE = ("depth", "width", "heads", "mlp")
TRANSFORMER_OPTIONS = ("norm", "order", "position", "activation", "qk_norm", "bias", "dropout")

FAMILIES: dict[str, Family] = {
    "resnet": Family(
        (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet110"),
            "cifar_resnet1202",
        )
    ),
    "preact": Family(
        (
            *("resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101", "resnetv2_152", "resnetv2_200"),
            *("cifar_preresnet20", "cifar_preresnet56", "cifar_preresnet110"),
            *("cifar_preresnet164", "cifar_preresnet1001"),
        )
    ),
    "shared": Family(("cifar_shared_resnet20", "cifar_shared_resnet56", "cifar_shared_resnet110")),
    "densenet": Family(
        (
            *("densenet121", "densenet169", "densenet201", "densenet161"),
            *("cifar_densenet40_k12", "cifar_densenet100_k12"),
            *("cifar_densenetbc100_k12", "cifar_densenetbc190_k40"),
        ),
        join="concat",
    ),
    "plain": Family(("vgg16", "vgg19", "vgg16_bn", "vgg19_bn", "cifar_vgg16_bn", "alexnet"), join="none"),
    "highway_mlp": Family(("highway_mlp",), shape=("depth", "width"), needed=("depth",), join="gate"),
    "highway_mlp_tanh": Family(("highway_mlp_tanh",), shape=("depth", "width"), needed=("depth",), join="gate"),
    "highway": Family(("highway_19", "highway_32"), join="gate"),
    "skip_perceptron": Family(("skip_perceptron",), shape=("depth", "width"), needed=("width",)),
    "rnn": Family(("rnn",), shape=("depth", "width"), needed=("width",), recurrent=("reads",), join="none"),
    "lstm1997": Family(("lstm1997",), shape=("depth", "width"), needed=("width",), recurrent=("reads", "input_bias")),
    "lstm": Family(
        ("lstm",), shape=("depth", "width"), needed=("width",), recurrent=("reads", "input_bias", "forget_bias")
    ),
    "vit": Family(
        (
            "vit",
            *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
            "vit_huge_patch14_224",
            *("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"),
            *("deit3_small_patch16_224", "deit3_medium_patch16_224", "deit3_base_patch16_224"),
            *("deit3_large_patch16_224", "deit3_huge_patch14_224"),
            *("vit_medium_patch16_reg4_gap_256", "vit_base_patch16_reg4_gap_256"),
        ),
        (*TRANSFORMER_SHAPE, "patch"),
        (*TRANSFORMER_OPTIONS, "pool", "registers"),
    ),
    "gpt": Family(
        ("gpt", "gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl", "gpt3_175b"),
        (*TRANSFORMER_SHAPE, "context"),
        (*TRANSFORMER_OPTIONS, "tied"),
    ),
    "bert": Family(
        ("bert", "bert_base", "bert_large"), (*TRANSFORMER_SHAPE, "context"), (*TRANSFORMER_OPTIONS, "tied")
    ),
}
NAMES = tuple(name for family in FAMILIES.values() for name in family.names)


def family_of(name: str) -> tuple[str, Family] | None:
    """The family of one of our names; None for a name of other code."""
    return next(((key, family) for key, family in FAMILIES.items() if name in family.names), None)
