"""The page on token sets: its commands run, and its program prints what it says."""

import re
from pathlib import Path

from restrain.cli.main import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tokens.md"


def test_the_program_of_the_page(tmp_path, monkeypatch, capsys, shared):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinyshakespeare.txt").write_bytes((shared / "tinyshakespeare.txt").read_bytes())
    text = PAGE.read_text()
    (command, said) = re.search(r"^\$ restrain (data tokens tiny.*)\n(.*)$", text, re.MULTILINE).groups()
    assert run(command.split()) == 0
    assert capsys.readouterr().err.strip() == said
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(program, str(PAGE), "exec"), {})
    (printed,) = re.findall(r"^prints `([^`]+)`", text, re.MULTILINE)
    assert capsys.readouterr().out.strip() == printed
