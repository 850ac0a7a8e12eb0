"""The measured tables of the pages are those of the benchmarks' results."""

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "tables.py"


def test_the_pages_are_those_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location("tables", PATH)
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tables
    spec.loader.exec_module(tables)
    for marker in tables.TABLES:
        path, text = tables.filled(marker)
        assert path.read_text() == text, "run python docs/tables.py"
