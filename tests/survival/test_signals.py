"""Signals: a handler sets a flag and nothing else; a second Ctrl-C leaves at once; flags add up over ranks."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain.survival import signals
from restrain.survival.signals import EXIT_INTERRUPTED, EXIT_PREEMPTED, Flag


@pytest.fixture
def installed():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    signals.reset()
    signals.install()
    yield
    signals.reset()
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)


def child(body, *send, **options):
    """Run ``body`` after install() in a new interpreter; ``send``: (delay, signal) once it has printed ``ready``."""
    code = "from restrain.survival import signals\nsignals.install()\nimport time\n" + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout.readline() == "ready\n"
    for delay, number in send:
        time.sleep(delay)
        process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    return process.returncode, out


LOOP = """
    print("ready", flush=True)
    end = time.monotonic() + 10
    while not signals.flag() and time.monotonic() < end:
        time.sleep(0.01)
    print(signals.flag().name, flush=True)
    raise SystemExit(signals.exit_code(signals.flag()))
"""


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGTERM, "TERM", 75), (signal.SIGUSR1, "USR1", 75), (signal.SIGINT, "INT", 130)],
)
def test_a_signal_sets_its_flag(number, name, code):
    assert child(LOOP, (0, number)) == (code, name + "\n")


def test_the_highest_flag_counts(installed):
    for number, flag in ((signal.SIGTERM, Flag.TERM), (signal.SIGUSR1, Flag.TERM), (signal.SIGINT, Flag.INT)):
        os.kill(os.getpid(), number)
        assert signals.flag() == flag
    signals.reset()
    assert signals.flag() == Flag.NONE


def test_others_that_take_a_handler_are_noticed(installed):
    assert signals.installed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    assert not signals.installed()
    signals.reinstall()
    assert signals.installed()


BUSY = """
    print("ready", flush=True)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.01)
"""
IN_C_CODE = """
    import ctypes, os, signal
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.siginterrupt(number, False)
    print("ready", flush=True)
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""


@pytest.mark.parametrize("body", [BUSY, IN_C_CODE], ids=["python", "c"])
def test_a_second_interrupt_leaves_at_once(body):
    """Also out of a call into C code, a collective that hangs say, where no Python handler runs."""
    begin = time.monotonic()
    code, _ = child(body, (0.1, signal.SIGINT), (signals.ECHO + 0.3, signal.SIGINT))
    assert code == EXIT_INTERRUPTED
    assert time.monotonic() - begin < 8


def test_an_echo_of_the_first_interrupt_is_not_a_second_one():
    """The terminal and the launcher both deliver one Ctrl-C."""
    body = """
        print("ready", flush=True)
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            time.sleep(0.01)
        raise SystemExit(signals.exit_code(signals.flag()) if signals.flag() else 1)
    """
    assert child(body, (0.05, signal.SIGINT), (0.05, signal.SIGINT))[0] == EXIT_INTERRUPTED
    body = body.replace("SystemExit(", "SystemExit(7 + ")
    assert child(body, (0.05, signal.SIGINT), (0.05, signal.SIGINT))[0] == EXIT_INTERRUPTED + 7  # it was not cut off


def test_a_fork_has_its_own_watcher():
    body = """
        import os, signal
        print("ready", flush=True)
        pid = os.fork()
        if pid == 0:
            signals.install()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.7)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.1)
        raise SystemExit(0 if (code, signals.flag()) == (130, signals.Flag.NONE) else 1)
    """
    assert child(body)[0] == 0


def test_no_torch():
    code = "import sys; import restrain.survival.signals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(st.lists(st.sampled_from(list(Flag)), min_size=1, max_size=50))
def test_flags_of_ranks_are_summed(flags):
    assert signals.decode(sum(signals.encode(flag) for flag in flags)) == max(flags)


def test_sums_are_exact_for_many_ranks():
    ranks = 2**17 - 1
    for flag in Flag:
        assert signals.decode(signals.encode(flag) * ranks) == flag
    assert signals.decode(sum(signals.encode(flag) for flag in Flag) * ranks) == Flag.INT


def test_exit_codes():
    assert [signals.exit_code(flag) for flag in Flag] == [0, EXIT_PREEMPTED, EXIT_PREEMPTED, EXIT_INTERRUPTED]
    assert (EXIT_PREEMPTED, EXIT_INTERRUPTED) == (75, 130)
