"""The surest wrong predictions: the same whatever the batches, and what a plain sort over all samples finds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from restrain.insight.mistakes import Mistakes


@given(st.integers(1, 60), st.integers(1, 17), st.integers(0, 2**31))
def test_any_batches_find_what_one_sort_finds(samples: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few distinct confidences, so that ties are common
    logits = torch.randint(0, 3, (samples, 4), generator=generator).float()
    labels = torch.randint(0, 4, (samples,), generator=generator)
    valid = torch.rand(samples, generator=generator) > 0.2
    mistakes = Mistakes(torch.device("cpu"), most=5)
    for start in range(0, samples, batch):
        part = slice(start, start + batch)
        mistakes.add(logits[part], labels[part], valid[part], torch.arange(samples)[part])
    found = mistakes.of_all_ranks(1)

    confidence, predicted = logits.double().softmax(-1).max(-1)
    wrong = [n for n in range(samples) if valid[n] and predicted[n] != labels[n]]
    wanted = sorted(wrong, key=lambda n: (-float(confidence[n]), n))[:5]
    assert [one["index"] for one in found] == wanted
    for one in found:
        n = one["index"]
        assert (one["label"], one["predicted"]) == (int(labels[n]), int(predicted[n]))
        assert one["confidence"] == float(confidence[n])
