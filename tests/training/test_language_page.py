"""The page on language models: its commands and its program run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from restrain.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "language.md"
LIGHTNING = ("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*lr_scheduler.*")


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path)
    threads = torch.get_num_threads()
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if "FOLDER" not in line]
    assert [shlex.split(line)[1] for line in lines] == ["train", "evaluate", "sample"]
    try:
        for line in lines:
            words = shlex.split(line)[1:]
            changes = ["parallel.threads=1"] if words[0] != "sample" else []
            assert run([*words[:2], *changes, *words[2:]]) == 0, line
    finally:
        torch.set_num_threads(threads)


@pytest.mark.filterwarnings(*LIGHTNING, "ignore:.*val_dataloader.*", "ignore:.*number of training batches.*")
def test_the_program_of_the_page() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(program, str(PAGE), "exec"), {})
