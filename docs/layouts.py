"""Writes the tables of docs/parallel.md that say what each process of a layout holds.

``python docs/layouts.py``. The numbers are those that ``restrain check RECIPE --no-run parallel...`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from restrain.errors import UserError
from restrain.insight.units import size
from restrain.parallel.layout import layout_of
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.training import inspection, spans
from restrain.training.choosing import MOSTLY
from restrain.training.memory import held_of

PAGE = Path(__file__).parent / "parallel.md"
BEGIN, END = "<!-- layouts:begin -->", "<!-- layouts:end -->"
CARD = 80e9  # bytes of the GPU that the table supposes
MACHINES = {"1 GPU": (1, 1), "8 GPUs": (8, 1), "4 nodes of 8": (8, 4), "128 nodes of 8": (8, 128)}


@dataclass(frozen=True)
class Subject:
    """A model by its recipe; ``there``: what else is set on one of the machines."""

    title: str
    words: tuple[str, ...]
    there: dict[str, tuple[str, ...]] = field(default_factory=dict)


GPT_7B = (
    "gpt3_175b",
    "model.name=gpt",
    "model.shape={depth: 32, width: 4096, heads: 32, context: 2048}",
    "batch.global=1024",
)
SUBJECTS = (
    Subject("ResNet-50", ("imagenet_resnet50",)),
    Subject("ViT-B", ("imagenet_deit_b",), {"4 nodes of 8": ("batch.group=32",)}),
    Subject("ViT-L", ("imagenet_deit_b", "model.name=vit_large_patch16_224"), {"4 nodes of 8": ("batch.group=32",)}),
    Subject("ViT-H", ("imagenet_deit_b", "model.name=vit_huge_patch14_224"), {"4 nodes of 8": ("batch.group=32",)}),
    Subject("GPT-2 124M", ("gpt2_124m",)),
    Subject("GPT-3 6.7B", GPT_7B, dict.fromkeys(("4 nodes of 8", "128 nodes of 8"), ("parallel.strategy=hsdp",))),
    Subject(
        "GPT-3 175B",
        ("gpt3_175b", "batch.global=1536"),
        {"128 nodes of 8": ("parallel.strategy=fsdp", "parallel.tensor=8")},
    ),
)
SIDE_BY_SIDE = (  # of GPT_7B on four nodes of 8
    ("ddp",),
    ("zero1",),
    ("zero2",),
    ("hsdp",),
    ("zero3",),
    ("fsdp",),
    ("fsdp", "parallel.tensor=2"),
    ("ddp", "parallel.tensor=8"),
)


class Built:
    """A subject's model without memory, and what one process that has all of it holds."""

    def __init__(self, words: tuple[str, ...]):
        self.words = words
        recipe = load(words[0], list(words[1:])).recipe
        self.model = inspection.model_without_memory(recipe)
        self.whole = held_of(recipe, self.model).total
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def told(self, devices: int, nodes: int, *more: str) -> str:
        """The bytes that a process holds, as ``check`` prints them. Raises UserError where it refuses."""
        words = [*self.words[1:], *more, f"parallel.devices={devices}", f"parallel.nodes={nodes}"]
        recipe = load(self.words[0], words).recipe
        layout = layout_of(recipe.parallel, World(size=devices * nodes, local_size=devices))
        spans.check(recipe, layout.data)
        return size(held_of(recipe, self.model, layout).total)


def cell(built: Built, machine: str, more: tuple[str, ...]) -> str:
    devices, nodes = MACHINES[machine]
    if devices * nodes == 1:
        fits = built.whole < MOSTLY * CARD
        return f"`single` {size(built.whole)}" if fits else f"no: {size(built.whole)}"
    chosen = more
    if not any(word.startswith("parallel.strategy") for word in more):
        chosen = (*more, f"parallel.strategy={'ddp' if built.whole < MOSTLY * CARD else 'fsdp'}")
    try:
        held = built.told(devices, nodes, *chosen)
    except UserError:
        batch = load(built.words[0], list(built.words[1:])).recipe.batch
        return f"no: {batch.global_:,} samples a step"
    strategy = next(word.partition("=")[2] for word in chosen if word.startswith("parallel.strategy"))
    tensor = next((f" x tensor {word.partition('=')[2]}" for word in chosen if "tensor" in word), "")
    number, unit = held.split()
    much = float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    return f"`{strategy}`{tensor} {held}" if much < MOSTLY * CARD else f"no: {held}"


def machines() -> list[str]:
    rows = [f"| | parameters | {' | '.join(MACHINES)} |", f"|---|---|{'---|' * len(MACHINES)}"]
    for subject in SUBJECTS:
        built = Built(subject.words)
        cells = [cell(built, machine, subject.there.get(machine, ())) for machine in MACHINES]
        count = f"{built.parameters / 1e9:.3g} G" if built.parameters >= 1e9 else f"{built.parameters / 1e6:.3g} M"
        rows.append(f"| {subject.title} | {count} | {' | '.join(cells)} |")
    return rows


def side_by_side() -> list[str]:
    rows = ["| GPT-3 6.7B on 4 nodes of 8 | a process holds |", "|---|---|"]
    built = Built(GPT_7B)
    for strategy, *more in SIDE_BY_SIDE:
        held = built.told(8, 4, f"parallel.strategy={strategy}", *more)
        rows.append(f"| `{' '.join([f'parallel.strategy={strategy}', *more])}` | {held} |")
    return rows


def page() -> str:
    """The page with its tables made anew."""
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return "\n".join([before, "", *machines(), "", *side_by_side(), "", after])


def main() -> None:
    PAGE.write_text(page())
    print(f"written: {PAGE.name}")


if __name__ == "__main__":
    main()
