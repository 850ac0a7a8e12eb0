"""``restrain sample``: text from a run, the same for the same seed, in its own characters; and who has none."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from restrain.cli.main import run
from tests import worlds
from tests.training.speech import RECIPE, overrides, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("sample")
    write_text(top)
    ended = worlds.train(top / "run", overrides(top, 20, optimizer="{name: adamw, lr: 0.02}"), recipe=RECIPE)
    assert ended.codes == [0], ended.text
    return top / "run"


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert run(["sample", *argv]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.removesuffix("\n")


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert run(["sample", *argv]) == 2
    return capsys.readouterr().err


def test_same_seed_same_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    text = said(capsys, str(folder), "--prompt", "to be", "--tokens", "60")
    assert text.startswith("to be")
    assert len(text) == 65
    assert text == said(capsys, str(folder), "--prompt", "to be", "--tokens", "60")
    assert text != said(capsys, str(folder), "--prompt", "to be", "--tokens", "60", "--seed", "1")
    shorter = said(capsys, str(folder), "--prompt", "to be", "--tokens", "20")
    assert text.startswith(shorter)
    assert torch.equal(state, torch.get_rng_state())


def test_text_is_written_while_it_is_drawn_and_ctrl_c_says_one_line(folder: Path) -> None:
    words = [sys.executable, "-m", "restrain", "sample", str(folder), "--prompt", "to be", "--tokens", "1000000"]
    drawing = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert drawing.stdout is not None
    assert drawing.stdout.read(50).startswith(b"to be")  # of a text that would take minutes
    drawing.send_signal(signal.SIGINT)
    _, told = drawing.communicate(timeout=60)
    assert drawing.returncode == 130
    assert told.decode().split("\n") == ["", "stopped by Ctrl-C before the command was done", ""]


def test_greedy_text_has_no_seed_and_top_k_one_is_greedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = said(capsys, str(folder), "--temperature", "0", "--tokens", "40")
    assert greedy.startswith("\n")
    assert greedy == said(capsys, str(folder), "--temperature", "0", "--tokens", "40", "--seed", "5")
    assert greedy == said(capsys, str(folder), "--top-k", "1", "--tokens", "40")


def test_the_data_need_not_be_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = folder.parent / "text.txt"
    before = said(capsys, str(folder), "--prompt", "to", "--tokens", "10")
    text.rename(folder.parent / "away.txt")
    try:
        assert said(capsys, str(folder), "--prompt", "to", "--tokens", "10") == before
    finally:
        (folder.parent / "away.txt").rename(text)


def test_tokens_in_place_of_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = json.loads((folder / "run.json").read_text())["tokenizer"]["vocabulary"]
    numbers = ",".join(str(vocabulary.index(c)) for c in "to be")
    assert said(capsys, str(folder), "--prompt-tokens", numbers) == said(capsys, str(folder), "--prompt", "to be")


def test_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "has the character 'X' (U+0058)" in error(capsys, str(folder), "--prompt", "X")
    assert "prompt is empty" in error(capsys, str(folder), "--prompt", "")
    assert "give one of them" in error(capsys, str(folder), "--prompt", "to", "--prompt-tokens", "1")
    assert "whole numbers with commas" in error(capsys, str(folder), "--prompt-tokens", "a,b")
    assert "another vocabulary" in error(capsys, str(folder), "--prompt-tokens", "99")
    assert "A temperature of -1" in error(capsys, str(folder), "--temperature", "-1")
    assert "no tokenizer" in error(capsys, str(folder), "--tokenizer", str(folder / "run.json"))


def test_raw_tokens_have_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set of raw tokens knows no tokenizer: numbers go in and come out, or a tokenizer is named."""
    info = json.loads((folder / "run.json").read_text())
    try:
        (folder / "run.json").write_text(json.dumps(info | {"tokenizer": {"name": "raw", "sha256": ""}}))
        told = error(capsys, str(folder), "--prompt", "to")
        assert "raw tokens, and nobody says what they mean. Give --tokenizer FILE" in told
        numbers = said(capsys, str(folder), "--prompt-tokens", "1,2", "--tokens", "5").split()
        assert numbers[:2] == ["1", "2"]
        assert len(numbers) == 7
        assert isinstance(
            said(capsys, str(folder), "--prompt-tokens", "1", "--tokenizer", "bytes", "--tokens", "3"), str
        )
    finally:
        (folder / "run.json").write_text(json.dumps(info))


def test_a_damaged_run_json_is_not_called_raw_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "run.json").read_text()
    try:
        (folder / "run.json").write_text("{")
        told = error(capsys, str(folder), "--prompt", "to")
        assert "its run.json, which says what its tokens mean, is missing or damaged. Give --tokenizer" in told
    finally:
        (folder / "run.json").write_text(whole)


def test_other_commands_say_that_they_are_for_images(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for argv in (["look", str(folder)], ["predict", str(folder), str(tmp_path)], ["bench", "data", str(folder)]):
        assert run(argv) == 2
        assert "is for images, and this is a language model (task=language)" in capsys.readouterr().err
    assert run(["export", str(folder), "--to", "timm", "-o", str(tmp_path / "model")]) == 2
    assert "timm has models of images alone" in capsys.readouterr().err


def test_evaluate_report_and_export_work(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["evaluate", str(folder), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = min(line["eval/loss"] for line in lines if "eval/loss" in line)
    assert found["eval/loss"] == pytest.approx(best, rel=1e-6)
    assert run(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "eval/perplexity" in page
    assert re.search(r"windows of 16: [\d,]+ tokens/s", page)
    assert "images/s" not in page
    assert run(["export", str(folder), "--to", "safetensors", "-o", str(tmp_path / "model.safetensors")]) == 0
    sidecar = json.loads((tmp_path / "model.safetensors.json").read_text())
    assert sidecar["input"] == {"dtype": "int64", "shape": ["batch", 16]}
    assert sidecar["preprocessing"]["tokenizer"]["name"] == "chars"
