"""FLOP/s: three forward passes of two FLOP a multiply-add, beside the dense peak of a device that is known."""

import time

import pytest

from restrain.insight.throughput import Hardware, Throughput, peak


def counted(hardware: Hardware, macs) -> Throughput:
    throughput = Throughput(hardware, macs)
    throughput.told(1.0)
    deadline = time.monotonic() + 5
    while throughput._counting is not None and throughput._counting.is_alive():
        assert time.monotonic() < deadline
    return throughput


def test_peaks_are_dense_and_of_the_most_special_name():
    assert peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak("NVIDIA L40S", "fp16") == 362e12
    assert peak("Voodoo 2", "bf16") is None


def test_what_is_told():
    h100 = Hardware("NVIDIA H100 80GB HBM3", 8, "bf16", cuda=True)
    assert counted(h100, lambda: 4_090_000_000).told(24_000) == (
        "589 TFLOP/s, 7 % of 7912 (8 x NVIDIA H100 80GB HBM3, bf16 dense)"
    )
    cpu = Hardware("CPU", 1, "fp32", cuda=False)
    assert counted(cpu, lambda: 41_000_000).told(1000) == "0.246 TFLOP/s"
    assert counted(cpu, lambda: 1).told(0.0) == ""
    assert counted(cpu, lambda: 1 // 0).told(1000) == ""


def test_memory_of_this_process():
    memory = Throughput(Hardware("CPU", 1, "fp32", cuda=False), lambda: 1).memory()
    assert float(memory.removesuffix(" GiB")) == pytest.approx(1.0, abs=20)


def test_nothing_is_counted_after_the_end():
    throughput = Throughput(Hardware("CPU", 1, "fp32", cuda=False), lambda: 10**9)
    throughput.close()
    assert throughput.told(1000) == ""
    assert throughput._counting is None
