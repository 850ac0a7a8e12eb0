"""The benchmark of packing runs at a tiny size and writes its JSON. Nothing is asserted about time."""

from pathlib import Path

from tests.benchmarks.test_benchmarks import results
from tests.data.making import write_shards


def test_packing(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 2, 60)
    found = results(tmp_path, "packing.py", str(shards), "--copies", "1", "--workers", "1")
    assert set(found) == {"list", "copy", "check", "short side 352, quality 90"}
    assert found["copy"]["anew"] == found["short side 352, quality 90"]["anew"] == 0
    assert found["copy"]["mb_per_s"] > 0
