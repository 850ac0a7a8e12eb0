"""The progress display: what it says, what it costs, and where it is silent."""

import io
import re
import time

import pytest
from rich.console import Console

from restrain.insight import progress as module
from restrain.insight.progress import Length, Progress, duration, fitted


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def text(console):
    return console.file.getvalue()


def test_the_line_has_everything(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    bar = Progress(Length(440, 220, 20, 22, 64), console=plain())
    clock[0] += 2.0
    bar.update(231, 10, 0.51234, accuracy=93.75, wait=0.034)
    bar.evaluated("98.9 % top-1")
    assert bar.line() == (
        "epoch 11/20  step 231/440  loss 0.5123  top-1 93.8 %  352 images/s  data wait 3 %  0:38 left  "
        "0:02 of the epoch  last evaluation 98.9 % top-1"
    )
    bar.evaluating(64, 360)
    assert "evaluating 64/360" in bar.line()
    bar.evaluated("99.2 % top-1")
    assert "evaluating" not in bar.line()
    bar.update(440, 19, float("nan"))
    assert "loss nan" in bar.line()
    assert "left" not in bar.line()


def test_an_epoch_that_is_cut_short_counts_as_one():
    line = Progress(Length(100, 99, 100 / 22), console=plain())
    line.update(100, 4, 0.5)
    assert line.line().startswith("epoch 5/5  step 100/100")


def test_the_speed_is_that_of_the_last_half_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    bar = Progress(Length(10_000), console=plain(), plain=False)
    assert bar.speed() == 0
    for second in range(1, 101):
        clock[0] = float(second)
        bar.update(second * 10 if second <= 50 else 500 + second - 50, 0, 1.0)
        bar.speed()
    assert bar.speed() == pytest.approx(1.0, rel=0.05)


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_plain_lines_come_every_ten_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    console = plain()
    with Progress(Length(1000), console=console) as bar:
        for tenth in range(1, 351):
            clock[0] = tenth / 10
            bar.update(tenth, 0, 1.0)
        bar.notice("checkpoint step-300")
    bar.close()
    lines = text(console).splitlines()
    assert [int(re.search(r"step (\d+)/1000", line)[1]) for line in lines if "/1000" in line] == [100, 200, 300, 350]
    assert "checkpoint step-300" in lines
    assert "\x1b" not in text(console)


def test_a_bar_on_a_terminal():
    console = terminal()
    with Progress(Length(100, epochs=2), console=console) as bar:
        bar.update(50, 0, 0.25)
        bar.notice("step 50: [not markup] 98.9 %")
        time.sleep(0.4)
    shown = text(console)
    assert "━" in shown
    assert "loss 0.25" in shown
    assert "step 50: [not markup] 98.9 %" in shown


def test_other_ranks_are_silent():
    for console in (terminal(), plain()):
        with Progress(Length(100), rank=1, console=console) as bar:
            bar.update(50, 0, 0.25)
            bar.evaluating(1, 2)
            bar.evaluated("98 %")
            bar.notice("hello")
        assert text(console) == ""


@pytest.mark.parametrize("console", [terminal(), plain()], ids=["terminal", "plain"])
def test_an_update_costs_microseconds(console):
    with Progress(Length(100_000, batch=64), console=console) as bar:
        times = []
        for step in range(20_000):
            begin = time.perf_counter_ns()
            bar.update(step, 0, 0.5, 90.0, 0.1)
            times.append(time.perf_counter_ns() - begin)
    assert sorted(times)[len(times) // 2] < 5_000
    assert module.REFRESH <= 10


class Known:
    """A throughput that is known at once."""

    def told(self, rate):
        return "1.5 TFLOP/s, 12 % of 12 (X, bf16 dense)"

    def memory(self):
        return "3.0 of 79 GiB"

    def close(self):
        pass


def drawn(width, monkeypatch):
    monkeypatch.setattr(module, "SETTLED", -1.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    bar = Progress(Length(1000, 0, 10, 100, 64), throughput=Known(), console=console, plain=False)  # type: ignore[arg-type]
    bar.update(150, 1, 0.5, accuracy=50.0, wait=0.1)
    bar._evaluation, bar._best = "top1 61.2", "top1 61.2 at step 100"
    with console.capture() as capture:
        console.print(bar._render())
    return capture.get().splitlines()


def test_narrow_terminals_drop_what_matters_least(monkeypatch):
    for width in (40, 80, 160):
        lines = drawn(width, monkeypatch)
        assert len(lines) == 3
        assert all(len(line) <= width for line in lines)
        assert "step 150/1000" in lines[1]
    assert "TFLOP/s" not in "".join(drawn(60, monkeypatch))
    wide = drawn(160, monkeypatch)
    assert "1.5 TFLOP/s, 12 % of 12 (X, bf16 dense)  3.0 of 79 GiB" in wide[2]
    assert "best top1 61.2 at step 100" in wide[2]


def test_fitted():
    assert fitted(["one", "two"], 8) == "one  two"
    assert fitted(["one", "two"], 7) == "one"
    assert fitted(["one"], 2) == ""
