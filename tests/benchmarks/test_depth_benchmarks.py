"""The benchmarks of depth and of stochastic depth run at a tiny size; their figure is drawn from what they wrote."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_benchmarks import ROOT, results


def test_depth(tmp_path: Path) -> None:
    tiny = ["--families", "resnet,transformer", "--blocks", "3,6", "--steps", "2", "--no-full"]
    found = results(tmp_path, "depth.py", *tiny)
    assert set(found) == {"resnet", "resnet, remat", "transformer", "transformer, remat"}
    for series in found.values():
        assert [row["blocks"] for row in series["depths"]] == [3, 6]
        assert all(row["peak_mb"] >= row["built_mb"] > 0 for row in series["depths"])
        assert len(series["per_block"]) == 1


@pytest.mark.parametrize(("network", "modes"), [("resnet110", ["sample", "batch"]), ("vit_s", ["sample", "subset"])])
def test_stochastic_depth(tmp_path: Path, network: str, modes: list[str]) -> None:
    tiny = ["--networks", network, "--rounds", "1", "--warmup", "0"]
    found = results(tmp_path, "stochastic_depth.py", *tiny)[network]
    assert sum(found["stages_ms"].values()) > 0
    assert found["none"]["trunk_ratio"] == 1.0
    assert found["sample"]["p"] == 0.0
    assert 0.0 < found[modes[1]]["p"] < 1.0
    assert found[modes[1]]["bound"] < 1.0


def test_the_figure_is_that_of_the_results() -> None:
    path = ROOT / "docs" / "figures" / "depth.py"
    spec = importlib.util.spec_from_file_location("depth_figure", path)
    assert spec is not None
    assert spec.loader is not None
    figure = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = figure
    spec.loader.exec_module(figure)
    written = json.loads(figure.FIGURES.read_text())["results"]
    assert figure.IMAGE.read_text() == figure.drawing(written), "run python docs/figures/depth.py"
