"""The ledger: sums that do not depend on how rows are split, limbs that add exactly, audits that name what is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain import draws
from restrain.draws import MASK
from restrain.run import ledger

hashes = st.integers(0, MASK)


def rows(count, seed=0, epoch=3):
    return draws.mix(seed, np.arange(count), 7, 0xDEADBEEF, epoch), np.arange(100, 100 + count)


def test_golden():
    """Frozen: ledgers of finished runs are audited by later versions."""
    prefix, positions = rows(64)
    total = ledger.row_sum(prefix, positions)
    assert total == sum(draws.key(0, i, 7, 0xDEADBEEF, 3, 100 + i) for i in range(64)) & MASK
    assert f"{total:016x}" == GOLDEN
    assert (
        ledger.pixel_sum(np.array([5, 6], np.uint64), 1, np.array([8, 9]))
        == (draws.key(5, 1, 8) + draws.key(6, 1, 9)) & MASK
    )


GOLDEN = "601a39b48c6b1ae1"


@given(st.permutations(range(12)), st.integers(0, 12))
def test_any_split_in_any_order_gives_the_same_sum(order, cut):
    prefix, positions = rows(12)
    order = np.array(order)
    parts = [ledger.row_sum(prefix[part], positions[part]) for part in (order[:cut], order[cut:])]
    assert sum(parts) & MASK == ledger.row_sum(prefix, positions)


def test_every_part_of_a_row_counts():
    prefix, positions = rows(8)
    right = ledger.row_sum(prefix, positions)
    swapped = positions.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    other = prefix.copy()
    other[3] = draws.mix(0, 3, 7, 0xDEADBEEE, 3)  # one bit of one picture
    wrong = [
        ledger.row_sum(rows(8, epoch=2)[0], positions),
        ledger.row_sum(prefix, swapped),
        ledger.row_sum(other, positions),
        ledger.row_sum(prefix[:7], positions[:7]),
        ledger.row_sum(np.append(prefix, prefix[0]), np.append(positions, positions[0])),
    ]
    assert right not in wrong
    assert len(set(wrong)) == len(wrong)
    assert ledger.row_sum(prefix[:0], positions[:0]) == 0


@given(st.lists(hashes, min_size=1, max_size=8))
def test_limbs_add_up(values):
    total = np.sum([ledger.limbs(value) for value in values], axis=0)
    assert ledger.from_limbs(total) == sum(values) & MASK


def test_limbs_are_exact_for_four_billion_ranks():
    value, ranks = 0xFFFFFFFFFFFFFFFF, 2**32
    assert ledger.from_limbs([limb * float(ranks) for limb in ledger.limbs(value)]) == value * ranks & MASK
    assert all(ledger.from_limbs(ledger.limbs(v)) == v for v in (0, 1, MASK, 0x0123456789ABCDEF))
    with pytest.raises(ValueError):
        ledger.from_limbs([0.5, 0, 0, 0])
    with pytest.raises(ValueError):
        ledger.from_limbs([float("nan"), 0, 0, 0])


def test_lines_are_json():
    assert json.loads(ledger.line(5, 1, 64, 0xAB)) == {"step": 5, "epoch": 1, "rows": 64, "hash": "00000000000000ab"}
    assert json.loads(ledger.line(5, 1, 64, MASK, 1))["pixels"] == "0000000000000001"


def expected(step):
    return draws.key(99, step)


def good(*numbers):
    return [json.loads(ledger.line(n, 0, 8, expected(n))) for n in numbers]


def kinds(entries, steps=None):
    return [(problem.kind, problem.step) for problem in ledger.audit(entries, expected, steps)]


def test_audit():
    assert kinds(good(*range(10)), range(10)) == []
    assert kinds([]) == []
    assert kinds(good(0, 1, 4, 5, 7), range(9)) == [("missing", 2), ("missing", 6), ("missing", 8)]
    assert kinds(good(3, 4, 6)) == [("missing", 5)]
    assert kinds(good(0, 1, 1, 2)) == [("doubled", 1)]
    assert kinds(good(0, 2, 1, 3)) == [("out-of-order", 1)]
    assert kinds(good(0, 1, 2, 0, 1, 2)) == [("doubled", 0), ("doubled", 1), ("doubled", 2)]
    assert kinds(good(0, 1, 2), range(2)) == [("wrong", 2)]
    changed = good(0, 1, 2)
    changed[1]["hash"] = changed[1]["hash"][:-1] + ("0" if changed[1]["hash"][-1] != "0" else "1")
    assert kinds(changed) == [("wrong", 1)]
    assert kinds([{"step": 0}, *good(0)]) == [("malformed", None)]
    texts = [str(problem) for problem in ledger.audit(good(0, 4), expected, range(6))]
    assert texts == ["steps 1 to 3 are missing", "step 5 is missing"]
