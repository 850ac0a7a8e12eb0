"""The task alone: losses and metrics against torch's, masks from keys, and a plain Lightning trainer."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from restrain import draws
from restrain.data.text.nothing import NOTHING
from restrain.models import build_model
from restrain.training.language import Language, MaskedTokens

V, T = 12, 8


def windows(rows: int, seed: int = 0) -> torch.Tensor:
    drawn = draws.integers(draws.mix(seed, torch.arange(rows * (T + 1)).numpy()), V)
    return torch.from_numpy(drawn).view(rows, T + 1)


def logits(rows: int) -> torch.Tensor:
    return torch.from_numpy(draws.normal(draws.mix(9, torch.arange(rows * T * V).numpy()))).view(rows, T, V)


def test_the_loss_of_a_row_is_the_mean_over_its_tokens() -> None:
    tokens, outputs = windows(3), logits(3)
    task = Language(nn.Identity())
    example = task.example(tokens, tokens)
    assert torch.equal(example.inputs, tokens[:, :-1])
    assert torch.equal(example.target, tokens[:, 1:])
    rows = task.rows(outputs, example.target)
    assert rows.dtype == torch.float64
    for row, target, found in zip(rows, tokens[:, 1:], outputs, strict=True):
        assert row == pytest.approx(F.cross_entropy(found, target).item(), rel=1e-12)
    assert task.rows(outputs.bfloat16(), example.target).dtype == torch.float32
    right = (outputs.argmax(-1) == tokens[:, 1:]).double().mean(1).sum()
    assert task.correct(outputs, example.answer) == pytest.approx(right.item())


def test_an_evaluation_counts_each_token_once_and_padding_nowhere() -> None:
    tokens, outputs = windows(4), logits(4)
    tokens[2, 5:] = NOTHING  # a window that ends early: four tokens are said
    outputs[2, 4:] = torch.nan
    outputs[3] = torch.nan  # a row of padding
    valid = torch.tensor([True, True, True, False])
    task = Language(nn.Identity(), smoothing=0.1)  # of training alone
    asked = task.question(tokens, tokens, torch.arange(4))
    assert asked.inputs.min() >= 0
    sums = task.sums(outputs, asked, valid)
    found = task.metrics(sums.tolist(), V)
    said = [(r, t) for r in range(3) for t in range(T) if tokens[r, t + 1] != NOTHING]
    losses = [F.cross_entropy(outputs[r, t], tokens[r, t + 1]).item() for r, t in said]
    assert (found["count"], sums[-1].item()) == (2 * T + 4, 3)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert found["perplexity"] == pytest.approx(torch.tensor(found["loss"]).exp().item(), rel=1e-6)
    right = [outputs[r, t].argmax() == tokens[r, t + 1] for r, t in said]
    assert found["top1"] == pytest.approx(100 * sum(map(bool, right)) / len(right))
    among = [tokens[r, t + 1] in outputs[r, t].topk(5).indices for r, t in said]
    assert found["top5"] == pytest.approx(100 * sum(among) / len(among))


def test_berts_rule() -> None:
    rule, rows, tokens = MaskedTokens(mask=V, rate=0.15), 4000, 40
    text = torch.arange(rows * tokens).view(rows, tokens) % V
    keys = draws.mix_torch(torch.arange(rows), 5)
    shown, target = rule(text, keys)
    chosen = target != NOTHING
    assert (chosen.sum(1) == 6).all()  # round(0.15 x 40)
    assert torch.equal(target[chosen], text[chosen])
    assert torch.equal(shown[~chosen], text[~chosen])
    assert chosen.double().mean(0).min() > 0.12  # everywhere alike
    assert chosen.double().mean(0).max() < 0.18
    masked = (shown == V) & chosen
    wrong = chosen & ~masked & (shown != text)
    assert masked.sum() / chosen.sum() == pytest.approx(0.8, abs=0.01)
    assert wrong.sum() / chosen.sum() == pytest.approx(0.1 * (V - 1) / V, abs=0.01)  # one in V draws the token itself
    again, _ = rule(text[100:200], keys[100:200])  # any micro-batch sees the same
    assert torch.equal(again, shown[100:200])


def test_padding_is_never_masked() -> None:
    text = windows(50)[:, :T].clone()
    text[:, 2:] = NOTHING
    shown, target = MaskedTokens(mask=V, rate=0.5)(text, draws.mix_torch(torch.arange(50)))
    assert (target[:, 2:] == NOTHING).all()
    assert (shown[:, 2:] == NOTHING).all()
    assert ((target[:, :2] != NOTHING).sum(1) == 1).all()  # round(0.5 x 2): the share is of the tokens that there are


def test_masks_follow_step_and_row_in_training_and_the_sample_in_evaluation() -> None:
    task = Language(nn.Identity(), masked=MaskedTokens(V, 0.3), seed=3)
    tokens = windows(6)
    whole = task.example(tokens, tokens, None, 4, 0)
    part = task.example(tokens[2:5], tokens[2:5], None, 4, 2)
    assert torch.equal(whole.target[2:5], part.target)
    assert torch.equal(whole.inputs[2:5], part.inputs)
    assert not torch.equal(whole.target, task.example(tokens, tokens, None, 5, 0).target)
    asked = task.question(tokens, tokens, torch.arange(6))
    assert torch.equal(asked.target[[3]], task.question(tokens[3:4], tokens, torch.tensor([3])).target)
    assert (asked.target != NOTHING).sum() == 6 * 2


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*lr_scheduler.*")
@pytest.mark.parametrize("masked", [None, MaskedTokens(V)])
def test_a_plain_trainer_trains_it(masked: MaskedTokens | None, tmp_path) -> None:
    name = "gpt" if masked is None else "bert"
    section = {"name": name, "classes": V + 1, "shape": {"depth": 2, "width": 16, "heads": 2, "context": T}}
    section |= {"drop_path": {"rate": 0.3}, "transformer": {"dropout": 0.1}}
    task = Language(build_model(section), masked=masked)
    loader = DataLoader(TensorDataset(windows(32)), batch_size=8)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = task.model.tok_embed.weight.detach().clone()  # pyright: ignore
    trainer.fit(task, loader, loader)
    assert trainer.global_step == 8
    assert not torch.equal(before, task.model.tok_embed.weight)  # pyright: ignore
    assert {"train/loss", "train/top1", "eval/loss", "eval/top1"} <= trainer.callback_metrics.keys()
    assert 0 < trainer.callback_metrics["eval/loss"] < 4
