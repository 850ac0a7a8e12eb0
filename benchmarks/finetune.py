"""What pretrained weights are worth: a ResNet-50 on handwritten digits, from scratch and from a run on CIFAR-10.

``python benchmarks/finetune.py --cifar ROOT [--work DIR] [--json FILE]``. ROOT holds CIFAR-10 as WebDataset shards
(``train-*.tar``, ``test-*.tar``). A ResNet-50 is trained on it at 32 pixels for ``--pretrain`` steps and exported to a
safetensors file. Then the same network is trained for ``--steps`` steps on scikit-learn's digits, written as a folder
of 32-pixel images: once from fresh weights, once from that file with a fresh head. Both get the same samples, the same
steps, and the same choice of learning rates, of which each keeps its best. Every run is a command that anyone can type.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import reporting
from PIL import Image
from sklearn.datasets import load_digits

from restrain import open_run

RECIPE = """
task: classify
model: {{name: resnet50, classes: 10}}
data:
  {data}
  augment:
    - {{name: pad_crop, padding: 4}}
  mean: [0.4914, 0.4822, 0.4465]
  std: [0.2470, 0.2435, 0.2616]
resolution: {{train: 32, eval: 32, eval_resize: 32}}
loss: {{name: cross_entropy}}
batch: {{global: 64, group: 64}}
length: {length}st
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 5.0e-4, no_decay: norm_and_bias}}
schedule: {{name: cosine, warmup: 10%}}
evaluate: {{every: {length}st}}
"""
HELD_OUT = 5  # every fifth digit is evaluated on


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cifar", required=True, help="folder of CIFAR-10's shards")
    arguments.add_argument("--work", help="where runs and images go; what is there already is not done again")
    arguments.add_argument("--pretrain", type=int, default=600, help="steps of 64 on CIFAR-10")
    arguments.add_argument("--steps", type=int, default=40, help="steps of 64 on the digits")
    arguments.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.08, 0.32])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--json")
    given = arguments.parse_args()
    work = Path(given.work or tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)

    cifar = 'name: webdataset\n  train: "train-*.tar"\n  eval: "test-*.tar"'
    (work / "pretrain.yaml").write_text(RECIPE.format(data=cifar, length=given.pretrain))
    (work / "digits.yaml").write_text(RECIPE.format(data="name: folder", length=given.steps))
    write_digits(work / "digits")
    restrain("train", work / "pretrain.yaml", f"data.root={given.cifar}", "--run", work / "pretrained")
    weights = work / "pretrained.safetensors"
    if not weights.exists():
        restrain("export", work / "pretrained", "--to", "safetensors", "-o", weights)

    starts = {"from scratch": [], "pretrained": [f"model.init.from={weights}", "model.init.reset=[head]"]}
    reached: dict[str, dict[str, list[float]]] = {}
    for start, overrides in starts.items():
        reached[start] = {}
        for rate in given.rates:
            runs = [work / f"{start.replace(' ', '-')}-{rate:g}-{seed}" for seed in range(given.seeds)]
            for seed, run in enumerate(runs):
                words = [f"data.root={work / 'digits'}", f"optimizer.lr={rate}", f"seed={seed}", *overrides]
                restrain("train", work / "digits.yaml", *words, "--run", run)
            reached[start][f"{rate:g}"] = [open_run(run).summary.metrics["eval/top1"] for run in runs]

    rows = []
    for start, rates in reached.items():
        for rate, values in rates.items():
            told = reporting.spread(values)
            rows.append((start, rate, *(f"{told[name]:.2f}" for name in ("median", "min", "max"))))
    reporting.table(("start", "lr", "top-1, median", "lowest", "highest"), rows)
    pretrained = open_run(work / "pretrained").summary.metrics
    reporting.write(given.json, vars(given) | {"work": None}, {"cifar10_jpeg_q75": pretrained, "digits_top1": reached})


def write_digits(folder: Path) -> None:
    """The 8 x 8 digits as 32-pixel colour images: ``train/CLASS/*.png`` and ``val/CLASS/*.png``."""
    rows, labels = load_digits(return_X_y=True)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        place = folder / ("val" if number % HELD_OUT == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((row.reshape(8, 8) * 255 / 16).round().astype("uint8")).convert("RGB")
        picture.resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{number:04d}.png")


def restrain(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "restrain", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
