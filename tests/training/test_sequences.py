"""The regression and the recall of a sequence as tasks: loss, what counts as right, and what is left out."""

import pytest
import torch
from torch import nn

from restrain.data.sequences import MEMORY, SequenceSource
from restrain.data.text.nothing import NOTHING
from restrain.training.sequences import Recall, Regress


class Constant(nn.Module):
    """Says one number, or one token, whatever it reads."""

    def __init__(self, said: torch.Tensor):
        super().__init__()
        self.said = nn.Parameter(said)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.said.expand(*(x.shape[:2] if x.dim() == 2 else x.shape[:1]), -1)


def test_a_regression_counts_answers_less_than_0_04_away():
    task = Regress(Constant(torch.tensor([0.5])))
    labels = torch.tensor([0.5, 0.539, 0.541, 0.4, 7.0])
    asked = task.question(torch.zeros(5, 20, 2), labels)
    outputs = task.model(asked.inputs)
    wanted = (labels - 0.5).square()
    torch.testing.assert_close(task.rows(outputs, labels), wanted)
    assert task.correct(outputs, labels) == 2
    valid = torch.tensor([True, True, True, True, False])
    found = task.metrics(task.sums(outputs, asked, valid).tolist(), 1)
    assert found == {"loss": pytest.approx(wanted[:4].mean().item()), "top1": 50.0, "count": 4}
    labels[4] = float("nan")  # a padded row may hold anything
    sums = task.sums(outputs, task.question(torch.zeros(5, 20, 2), labels), valid)
    assert torch.isfinite(sums).all()


def test_recall_counts_the_symbols_that_are_said_again_and_nothing_else():
    logits = torch.zeros(10)
    logits[3] = 50.0  # says the symbol 3, always
    task = Recall(Constant(logits))
    stored, _, _ = SequenceSource("copy", "train", 40, 6).rows(torch.zeros(6).long().numpy(), torch.arange(6).numpy())
    tokens = torch.from_numpy(stored.astype("int64"))
    asked = task.question(tokens, tokens[:, :0], torch.arange(6))
    assert torch.equal(asked.inputs, tokens[:, :-1])
    assert (asked.target[:, :-MEMORY] == NOTHING).all()
    assert torch.equal(asked.target[:, -MEMORY:], tokens[:, :MEMORY])
    outputs, valid = task.model(asked.inputs), torch.tensor([True] * 5 + [False])
    found = task.metrics(task.sums(outputs, asked, valid).tolist(), 10)
    share = (tokens[:5, :MEMORY] == 3).double().mean().item()
    assert found["count"] == 5 * MEMORY
    assert found["top1"] == pytest.approx(100 * share)
    assert found["loss"] == pytest.approx(50 * (1 - share), rel=1e-6)
    torch.testing.assert_close(task.rows(outputs, asked.target).mean(), torch.tensor(50 * (1 - _share(tokens))))


def _share(tokens: torch.Tensor) -> float:
    return (tokens[:, :MEMORY] == 3).double().mean().item()


@pytest.mark.parametrize("kind", ["regress", "recall"])
def test_they_train_under_a_plain_trainer(kind, tmp_path):
    import warnings

    import lightning

    from restrain.models import build_model

    section = {"name": "lstm", "in_chans": 2, "classes": 1, "shape": {"width": 4}}
    if kind == "recall":
        section |= {"classes": 10, "recurrent": {"reads": "tokens"}}
    source = SequenceSource("adding" if kind == "regress" else "copy", "train", 24, 16)
    stored, labels, _ = source.rows(torch.zeros(16).long().numpy(), torch.arange(16).numpy())
    rows = torch.from_numpy(stored if kind == "regress" else stored.astype("int64"))
    pairs = torch.utils.data.TensorDataset(rows, torch.from_numpy(labels))
    loader = torch.utils.data.DataLoader(pairs, batch_size=8)
    task = (Regress if kind == "regress" else Recall)(build_model(section))
    before = [parameter.clone() for parameter in task.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(task, loader, loader)
    assert all((one != other).any() for one, other in zip(before, task.parameters(), strict=True))
    assert {"train/loss", "eval/loss", "eval/top1"} <= set(trainer.callback_metrics)
