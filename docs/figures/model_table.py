"""Writes the table of docs/models.md: parameters and multiply-adds of our networks beside those that were published.

``python docs/figures/model_table.py`` counts on the meta device and writes the page's table between its two marks.
tests/models/test_model_table.py holds every row to its source, and the page to the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from restrain.insight.cost import forward_macs, input_macs
from restrain.models import build_model

PAGE = Path(__file__).parents[1] / "models.md"
BEGIN, END = "<!-- begin: docs/figures/model_table.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Row:
    """A network and what is published of it. ``params``: millions, ``macs``: 10^9 multiply-adds of one input, as the
    source prints them, "" where it does not; ``why``: why ours differ, where they do; ``section``: more of the recipe's
    ``model`` section; ``tokens``: of a language model's input; ``side``: of an image in pixels, where it is not that of
    its kind."""

    name: str
    source: str
    params: str = ""
    macs: str = ""
    why: str = ""
    section: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    side: int = 0

    @property
    def is_cifar(self) -> bool:
        """Images of 32 pixels and 10 classes, else 224 and 1000."""
        return self.name.startswith(("cifar_", "highway_"))


HE = "He et al. 2015, arXiv:1512.03385, table 1"
HE_CIFAR = "He et al. 2015, arXiv:1512.03385, table 6"
HE_PLAIN = "He et al. 2015, arXiv:1512.03385, section 3.3"
PREACT = "He et al. 2016, arXiv:1603.05027"
WRN = "He et al. 2016; Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 5"
TIMM = "timm's results/*.csv"
TORCHVISION = "torchvision's tables of weights"
DENSE = "Huang et al. 2016, arXiv:1608.06993, table 2"
SHARED = "Liao and Poggio 2016, arXiv:1604.03640"
VGG = "Simonyan and Zisserman 2014, arXiv:1409.1556, table 2; He et al. 2015, section 3.4"
ALEX = "Krizhevsky et al. 2012, abstract; Krizhevsky 2014, arXiv:1404.5997"
HIGHWAY = "Srivastava et al. 2015, arXiv:1507.06228, the comparison with FitNets"
VIT = "Dosovitskiy et al. 2020, arXiv:2010.11929, table 1"
DEIT = "Touvron et al. 2020, arXiv:2012.12877, table 1"
DEIT3 = "Touvron et al. 2022, arXiv:2204.07118, the table of its repository"
GPT2 = "Radford et al. 2019, table 2"
GPT3 = "Brown et al. 2020, arXiv:2005.14165, table D.1"
BERT = "Devlin et al. 2018, arXiv:1810.04805, section 3"

STRIDE = "the 3x3 convolution of a bottleneck strides (v1.5), in the paper the 1x1 before it"
NO_NORMS = "the source leaves BatchNorm out"
LINEAR = "linear layers count"
HEAD = "the paper's has another head"
MISCOUNTED = "the published files hold what ours hold, and openai/gpt-2 says that the table was wrong"
POOLER = "the paper counts the pooler of its second task, and rounds"
GPT2_INPUT: dict[str, Any] = {"section": {"classes": 50257}, "tokens": 1024}
BERT_INPUT: dict[str, Any] = {"section": {"classes": 30522}, "tokens": 512}

# Another network is a line here.
ROWS: Sequence[Row] = (
    Row("resnet18", HE, macs="1.8"),
    Row("resnet34", HE, macs="3.6"),
    Row("resnet34", HE_PLAIN, macs="3.6", section={"join": {"name": "none"}}),
    Row("resnet50", HE, macs="3.8", why=STRIDE),
    Row("resnet101", HE, macs="7.6", why=STRIDE),
    Row("resnet152", HE, macs="11.3", why=STRIDE),
    Row("cifar_resnet20", HE_CIFAR, params="0.27"),
    Row("cifar_resnet32", HE_CIFAR, params="0.46"),
    Row("cifar_resnet44", HE_CIFAR, params="0.66"),
    Row("cifar_resnet56", HE_CIFAR, params="0.85"),
    Row("cifar_resnet110", HE_CIFAR, params="1.7"),
    Row("cifar_resnet1202", HE_CIFAR, params="19.4"),
    Row("resnetv2_18", TIMM, params="11.69"),
    Row("resnetv2_34", TIMM, params="21.80"),
    Row("resnetv2_50", TIMM, params="25.55"),
    Row("resnetv2_101", TIMM, params="44.54"),
    Row("resnetv2_152", TIMM, params="60.19"),
    Row("resnetv2_200", PREACT),
    Row("cifar_preresnet20", PREACT),
    Row("cifar_preresnet56", PREACT),
    Row("cifar_preresnet110", WRN, params="1.7"),
    Row("cifar_preresnet164", WRN, params="1.7"),
    Row("cifar_preresnet1001", WRN, params="10.2", why=NO_NORMS),
    Row("cifar_shared_resnet20", SHARED),
    Row("cifar_shared_resnet56", SHARED),
    Row("cifar_shared_resnet110", SHARED),
    Row("densenet121", TORCHVISION, params="7.979", macs="2.834"),
    Row("densenet169", TORCHVISION, params="14.149", macs="3.360"),
    Row("densenet201", TORCHVISION, params="20.014", macs="4.291"),
    Row("densenet161", TORCHVISION, params="28.681", macs="7.728"),
    Row("cifar_densenet40_k12", DENSE, params="1.0"),
    Row("cifar_densenet100_k12", DENSE, params="7.0"),
    Row("cifar_densenetbc100_k12", DENSE, params="0.8"),
    Row("cifar_densenetbc190_k40", DENSE, params="25.6"),
    Row("vgg16", VGG, params="138", macs="15.3", why=LINEAR),
    Row("vgg19", VGG, params="144", macs="19.6"),
    Row("vgg16_bn", TORCHVISION, params="138.366", macs="15.470"),
    Row("vgg19_bn", TORCHVISION, params="143.678", macs="19.632"),
    Row("cifar_vgg16_bn", "the convolutions of vgg16_bn"),
    Row("alexnet", ALEX, params="60", why="the form for one processor, of other widths"),
    Row("highway_19", HIGHWAY, params="2.3"),
    Row("highway_32", HIGHWAY, params="1.25"),
    Row("vit_tiny_patch16_224", TIMM, params="5.72"),
    Row("vit_small_patch16_224", TIMM, params="22.05"),
    Row("vit_base_patch16_224", VIT, params="86"),
    Row("vit_large_patch16_224", VIT, params="307", why=HEAD),
    Row("vit_huge_patch14_224", VIT, params="632"),
    Row("vit_medium_patch16_reg4_gap_256", TIMM, params="38.88", side=256),
    Row("vit_base_patch16_reg4_gap_256", TIMM, params="86.62", side=256),
    Row("deit_tiny_patch16_224", DEIT, params="5"),
    Row("deit_small_patch16_224", DEIT, params="22"),
    Row("deit_base_patch16_224", DEIT, params="86"),
    Row("deit3_small_patch16_224", DEIT3, params="22.0", macs="4.6"),
    Row("deit3_medium_patch16_224", TIMM, params="38.85"),
    Row("deit3_base_patch16_224", DEIT3, params="86.6", macs="17.5"),
    Row("deit3_large_patch16_224", DEIT3, params="304.4", macs="61.6"),
    Row(
        "deit3_huge_patch14_224",
        DEIT3,
        params="632.1",
        macs="167.4",
        why="by 0.06 %, and the source does not say what it counts",
    ),
    Row("gpt2", GPT2, params="117", why=MISCOUNTED, **GPT2_INPUT),
    Row("gpt2_medium", GPT2, params="345", why=MISCOUNTED, **GPT2_INPUT),
    Row("gpt2_large", GPT2, params="762", why=MISCOUNTED, **GPT2_INPUT),
    Row("gpt2_xl", GPT2, params="1542", why=MISCOUNTED, **GPT2_INPUT),
    Row("gpt3_175b", GPT3, params="174600", why="the table rounds to 100 M", section={"classes": 50257}, tokens=2048),
    Row("bert_base", BERT, params="110", **BERT_INPUT),
    Row("bert_large", BERT, params="340", why=POOLER, **BERT_INPUT),
)


def model_of(row: Row) -> nn.Module:
    """The row's network on the meta device."""
    with torch.device("meta"):
        classes = 10 if row.is_cifar else 1000
        return build_model({"name": row.name, "classes": classes, **row.section}, sides=(row.side,) if row.side else ())


@cache
def counted(index: int) -> tuple[int, int]:
    """Parameters and multiply-adds of the row of this index."""
    row = ROWS[index]
    model = model_of(row)
    params = sum(parameter.numel() for parameter in model.parameters())
    if row.tokens:
        return params, input_macs(model, torch.empty(1, row.tokens, dtype=torch.int64, device="meta"))
    side = row.side or (32 if row.is_cifar else 224)
    return params, forward_macs(model, 3, side, side)


def agrees(count: int, unit: float, printed: str) -> bool:
    """Whether a count is what a source prints: to one unit of its last digit, as some round and some cut."""
    return not printed or abs(count / unit - float(printed)) < 10.0 ** -len(printed.partition(".")[2])


def shown(number: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{number:#.3g}" if number < 100 else f"{number:,.0f}"


def table() -> str:
    """The rows as Markdown."""
    lines = [
        "| `model.name` | parameters, 10^6 | published | multiply-adds, 10^9 | published | source |",
        "|---|---|---|---|---|---|",
    ]
    for index, row in enumerate(ROWS):
        params, macs = counted(index)
        join = row.section.get("join")
        name = f"`{row.name}`" + (f", join `{join['name']}`" if join else "")
        source = row.source + (f". Ours differ: {row.why}" if row.why else "")
        cells = (name, f"{params / 1e6:,.2f}", row.params, shown(macs / 1e9), row.macs, source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(before: str) -> str:
    """The page with its table renewed."""
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + "\n" + table() + "\n" + END + tail


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
