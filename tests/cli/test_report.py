"""``restrain report``: what the page says of real runs, and in a real browser with the network off."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import restrain
from restrain.cli.main import run
from restrain.training import build
from restrain.training.report import gather
from tests import worlds

SHORT = ["precision=fp32", "length=30st", "evaluate.every=10st", "checkpoint.every=10st", "track.probe=10st"]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on one process that was killed and went on with another learning rate, and one on two processes."""
    top = tmp_path_factory.mktemp("runs")
    worlds.train(top / "a", [*SHORT, "length=20st"])
    allowed = ["optimizer.lr=0.05", "--allow", "length", "--allow", "optimizer.lr"]
    worlds.train(top / "a", [*SHORT, *allowed])
    worlds.train(top / "b", SHORT, world=2)
    return top / "a", top / "b"


def test_mistakes_are_those_of_the_networks_own_logits(two: tuple[Path, Path]) -> None:
    folder = two[1]
    kept = json.loads((folder / "mistakes.json").read_text())
    assert kept["step"] == 30
    opened = restrain.open_run(folder)
    source = build.open_data(opened.recipe).evaluation
    assert source is not None
    images, labels, _ = source.rows(np.zeros(360, np.int64), np.arange(360))  # type: ignore[attr-defined]
    task = build.build_task(opened.recipe, build.open_data(opened.recipe), torch.device("cpu"))
    kept_tensors = ([*key.split("|"), value] for key, value in worlds.tensors(folder, 30).items())
    stored = {name: value for name, kind, value in kept_tensors if kind in ("param", "buffer")}
    task.model.load_state_dict({name: stored[name] for name in task.model.state_dict()})
    task.eval()
    with torch.no_grad():
        chances = task(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(-1)
    confidence, predicted = chances.max(-1)
    wrong = [n for n in range(360) if predicted[n] != labels[n]]
    assert len(kept["mistakes"]) == min(24, len(wrong))
    surest = sorted(wrong, key=lambda n: -float(confidence[n]))[: len(kept["mistakes"])]
    assert {one["index"] for one in kept["mistakes"]} == set(surest)
    for one in kept["mistakes"]:
        assert one["predicted"] == predicted[one["index"]]
        assert one["label"] == labels[one["index"]]
        assert one["confidence"] == pytest.approx(float(confidence[one["index"]]), rel=1e-4)


def test_what_is_gathered(two: tuple[Path, Path]) -> None:
    page = gather(two)
    a, b = page.runs
    assert (a.name, b.name) == ("a", "b")
    assert a.facts["state"] == "finished, 30 steps"
    assert "optimizer.lr=0.05" in a.facts["changed"]
    assert b.facts["hardware"].endswith("2 process(es)")
    assert ("optimizer.lr", "0.05", "0.1") in page.differences
    kinds = [(event.kind, event.step) for event in a.events]
    assert ("resume", 20) in kinds
    assert ("intervention", 20) in kinds
    assert not b.events
    journal = {line["step"]: line for line in worlds.journal(two[0])}
    loss = a.curves.series["train/loss"]
    assert {int(s): float(v) for s, v in zip(loss.step, loss.mean, strict=True)} == {
        step: line["train/loss"] for step, line in journal.items()
    }
    assert a.curves.axes["epoch"][-1] == pytest.approx(30 / 22)  # 1,437 samples in batches of 64
    assert len(page.samples) == 1
    assert page.samples[0].runs == (0, 1)
    assert all(gallery.pictures for gallery in page.mistakes)
    changed = [line.text for line in a.recipe if line.changed]
    assert "optimizer.lr=0.05" in changed


def test_skipped_steps_and_damage_are_said(two: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(two[1], copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    lines[6] = lines[6].replace('"train/loss": ', '"train/loss": "NaN", "was": ')
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n" + '{"step": 31, "tor')
    (copy / "mistakes.json").write_text("{")
    page = gather([copy])
    assert [(event.kind, event.step) for event in page.runs[0].events] == [("skip", 7)]
    assert "the next evaluation writes it anew" in page.mistakes[0].note


@pytest.mark.parametrize("kind", ["empty", "foreign", "absent", "no lock", "broken"])
def test_a_folder_without_a_readable_run(
    kind: str, two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "one", tmp_path / "report.html"
    if kind in ("empty", "foreign"):
        folder.mkdir()
    if kind == "foreign":
        (folder / "letter.txt").write_text("dear")
    if kind in ("no lock", "broken"):
        shutil.copytree(two[1], folder)
        (folder / "recipe.lock.yaml").unlink() if kind == "no lock" else (folder / "run.json").write_text('{"state": 3')
    assert run(["report", str(two[0]), str(folder), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(folder) in said
    assert not out.exists()


def test_data_out_of_reach_leave_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    for part in ("train", "val"):
        for label in "ab":
            (pictures / part / label).mkdir(parents=True)
            for n in range(8):
                _save(pictures / part / label / f"{n}.png", n + 8 * (label == "b"))
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "model: {name: cifar_resnet20, classes: 2}\ndata: {name: folder, root: ROOT}\n"
        "resolution: {train: 16, eval: 16}\nbatch: {global: 8, group: 8}\nlength: 2st\n"
        "optimizer: {name: sgd, lr: 0.1}\nschedule: {name: cosine}\n".replace("ROOT", str(pictures))
    )
    folder, out = tmp_path / "run", tmp_path / "report.html"
    assert run(["train", str(recipe), "--run", str(folder)]) == 0
    assert gather([folder]).samples[0].pictures
    shutil.rmtree(pictures)
    capsys.readouterr()
    assert run(["report", str(folder), "-o", str(out)]) == 0
    page = gather([folder])
    assert page.samples[0].note.startswith("No samples: ")
    assert page.mistakes[0].note.startswith(("No pictures: ", "The evaluation after step 2 made none"))
    assert run(["report", str(folder), "--no-images", "-o", str(out)]) == 0
    assert run(["report", str(folder), "-o", str(tmp_path)]) == 2


def _save(path: Path, seed: int) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


# -------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium here: make test installs Debian's as root, else install it by hand")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(two: tuple[Path, Path]) -> Path:
    out = two[0].parent / "report.html"
    assert run(["report", *map(str, two), "-o", str(out)]) == 0
    assert out.stat().st_size < 6_000_000
    return out


class Opened:
    """The page in a browser without a network, and what it complained of."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.asked: list[str] = []
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn]", timeout=60_000)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def curve(self, chart: str, number: int = 0) -> dict[str, Any]:
        """What is drawn: x and y of a chart's curve, as plotly has it."""
        shown = "t => t.hoverinfo !== 'skip'"
        found = self.page.evaluate(
            f"(() => {{ const t = document.getElementById('chart-{chart}').data.filter({shown})[{number}];"
            "return {x: [...t.x], y: [...t.y], name: t.name} })()"
        )
        return found

    def settle(self) -> None:
        self.page.wait_for_timeout(300)


def test_maps_are_drawn_from_what_probes_read(browser: Any, page_file: Path, two: tuple) -> None:
    lines = worlds.lines(two[1] / "probes.jsonl")
    with Opened(browser, page_file) as opened:
        assert opened.said == []
        for quantity in ("ratio", "cosine", "grad", "mean", "variance", "dead"):
            assert opened.page.locator(f"#map-{quantity}-1 .heatmaplayer image").count() == 1
        told = "(() => { const t = document.getElementById('map-grad-1').data[0]; return [t.x, t.y, t.customdata] })()"
        x, y, shown = opened.page.evaluate(told)
        assert (x, y) == ([1, 10, 20, 30], lines[0]["joins"])
        for n, line in enumerate(lines):
            assert [row[n] for row in shown] == pytest.approx(line["grad"], rel=1e-3)


def test_charts_are_drawn_from_the_journal_without_a_word(browser: Any, page_file: Path, two: tuple) -> None:
    with Opened(browser, page_file) as opened:
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        for chart in ("loss", "accuracy", "lr", "grad_norm", "throughput", "wait"):
            assert opened.page.locator(f"#chart-{chart} .scatterlayer .trace").count() >= 2
        drawn = opened.curve("loss")
        journal = worlds.journal(two[0])
        assert drawn["x"] == [line["step"] for line in journal]
        assert drawn["y"] == pytest.approx([line["train/loss"] for line in journal], rel=1e-5)
        assert opened.page.locator("#samples img").count() >= 12
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert opened.page.evaluate(broken) == 0


def test_the_controls(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file) as opened:
        page = opened.page
        raw = opened.curve("loss")["y"]
        page.select_option("#axis", "samples")
        opened.settle()
        assert opened.curve("loss")["x"][:3] == [64, 128, 192]
        page.locator("#smoothing").fill("0.9")
        opened.settle()
        smooth = opened.curve("loss")["y"]
        assert smooth[0] == pytest.approx(raw[0])
        assert smooth[1] == pytest.approx((0.9 * 0.1 * raw[0] + 0.1 * raw[1]) / (1 - 0.81))
        page.locator("input.logy[value=loss]").check()
        opened.settle()
        assert page.evaluate("document.getElementById('chart-loss').layout.yaxis.type") == "log"
        before = page.locator("#chart-loss .scatterlayer .trace").count()
        page.locator("input.run").first.uncheck()
        opened.settle()
        assert page.locator("#chart-loss .scatterlayer .trace").count() < before
        assert opened.said == []


def test_one_cursor_and_one_zoom_for_all_charts(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file) as opened:
        page = opened.page
        page.locator("#chart-loss").scroll_into_view_if_needed()
        box = page.locator("#chart-loss").bounding_box()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])
        opened.settle()
        labels = page.evaluate(
            "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('.hoverlayer .hovertext').length)"
        )
        assert min(labels) >= 2
        page.evaluate("Plotly.relayout('chart-loss', {'xaxis.range[0]': 5, 'xaxis.range[1]': 10})")
        opened.settle()
        ranges = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.layout.xaxis.range)")
        assert ranges == [[5, 10]] * len(ranges)
        assert opened.said == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_narrow_and_dark(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    with Opened(browser, page_file, width, scheme) as opened:
        assert opened.said == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        paper, ink = opened.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, document.getElementById('chart-loss').layout.font.color]"
        )
        assert (paper == "rgb(20, 23, 27)") == (scheme == "dark")
        assert (ink == "#e6e8eb") == (scheme == "dark")
        opened.page.locator("#theme").click()  # light, whatever the system has
        opened.settle()
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert opened.page.evaluate("document.getElementById('chart-loss').layout.font.color") == "#1c1e21"
