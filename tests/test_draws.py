"""The draws: golden values, the two back ends bit-equal, and the distributions they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from restrain import draws

words = st.integers(0, 2**64 - 1)

# Frozen: a change here changes the samples, the augmentation and the initial weights of every run ever made.
GOLDEN_0, GOLDEN_123, GOLDEN_MAX, GOLDEN_DROP = (
    0x6E789E6AA1B965F4,
    0x48CF5028B6DF10DB,
    0xCC3A20B6DE03AE0A,
    0x31DB1D56CAFC4246,
)
GOLDEN_PERM = [6, 1, 5, 7, 3, 0, 4, 2]
GOLDEN_NAME = 0xFC1ED3655FEA0B8D
GOLDEN_INT = 730
GOLDEN_UNIFORM = 0.6468696686288944


def test_golden_values():
    assert [int(draws.mix(*xs)) for xs in [(0,), (1, 2, 3), (2**64 - 1, 0, 7), (0, draws.Purpose.DROP_PATH, 41)]] == [
        GOLDEN_0,
        GOLDEN_123,
        GOLDEN_MAX,
        GOLDEN_DROP,
    ]
    assert draws.permutation(8, 5, draws.Purpose.WINDOW, 0).tolist() == GOLDEN_PERM
    assert draws.name_key("layer1.0.conv1.weight") == GOLDEN_NAME
    assert draws.integers(draws.key(3, 4), 1000) == GOLDEN_INT
    assert draws.uniform(draws.key(3, 4)) == GOLDEN_UNIFORM


def test_purposes_are_frozen():
    assert {p.name: p.value for p in draws.Purpose} == {
        "SHARDS": 1,
        "STAGGER": 2,
        "WINDOW": 3,
        "AUGMENT": 4,
        "MIX": 5,
        "DROP_PATH": 6,
        "INIT": 7,
        "HELD_OUT": 8,
        "DROPOUT": 9,
        "OFFSET": 10,
        "MASKED": 11,
        "MASKED_EVAL": 12,
        "SAMPLE": 13,
    }


@given(st.lists(words, min_size=1, max_size=5), st.integers(1, 2**53 - 1))
def test_the_back_ends_are_bit_equal(xs, n):
    array = draws.mix(*(np.asarray([x, x ^ 1], np.uint64) for x in xs))
    tensor = draws.mix_torch(*(torch.tensor([draws.signed(x), draws.signed(x ^ 1)]) for x in xs))
    assert array.view(np.int64).tolist() == tensor.tolist()
    assert draws.key(*xs) == int(array[0])
    assert draws.uniform(array).tolist() == draws.uniform_torch(tensor).tolist()
    assert draws.uniform(draws.key(*xs)) == draws.uniform(array)[0]
    assert draws.integers(array, n).tolist() == draws.integers_torch(tensor, n).tolist()
    assert draws.integers(draws.key(*xs), n) == draws.integers(array, n)[0]
    np.testing.assert_allclose(draws.normal(array), draws.normal_torch(tensor).numpy(), rtol=1e-12, atol=1e-14)


@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=1, max_size=4))
def test_a_chain_can_be_hashed_in_parts(a, b):
    assert int(draws.mix(*a, *b)) == int(draws.extend(draws.mix(*a), *b))
    array = np.arange(5)
    assert draws.extend_array(draws.mix(*a, array), array).tolist() == draws.mix(*a, array, array).tolist()
    assert draws.key(*a, *b) == draws.extend_key(draws.key(*a), *b) == int(draws.mix(*a, *b))
    tail = torch.tensor([draws.signed(b[-1])])
    assert draws.mix_torch(*a, *b[:-1], tail).item() == draws.signed(draws.key(*a, *b))


@given(st.integers(1, 200), words)
def test_a_permutation_is_one(n, seed):
    assert sorted(draws.permutation(n, seed, 1).tolist()) == list(range(n))


def test_distributions():
    h = draws.mix(1, np.arange(100_000))
    assert stats.kstest(draws.uniform(h), "uniform").pvalue > 1e-3
    assert stats.kstest(draws.normal(h), "norm").pvalue > 1e-3
    assert stats.kstest(draws.beta(h, 0.4, 0.4), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert stats.chisquare(np.bincount(draws.integers(h, 7), minlength=7)).pvalue > 1e-3
    # neighbouring keys are as unrelated as distant ones
    assert abs(np.corrcoef(draws.uniform(h[:-1]), draws.uniform(h[1:]))[0, 1]) < 0.02


def test_torch_needs_a_tensor():
    with pytest.raises(TypeError, match="at least one tensor"):
        draws.mix_torch(1, 2)
