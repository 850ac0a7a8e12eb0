"""Says when training waits for its data, where the time goes, and what to do about it."""

from __future__ import annotations

from collections import deque

from restrain.data.laps import Laps, Sums

BOUND = 0.05  # share of a step's time
WINDOW = 30.0  # seconds that are looked at together
AGAIN = 1800.0  # seconds after which it is said again
NETWORK = (
    "The network is the bound: a nearer store, a cache that keeps the set from one epoch to the next (data.cache, "
    "data.cache_bytes), or smaller photographs (restrain data pack --short-side)"
)
CURES = {
    "read": "The storage is the bound: bring the set nearer (a local disk), or set more data.threads, which wait side "
    "by side",
    "decode": "The decoder is the bound: more cores and data.threads, or photographs stored smaller",
    "augment": "Augmenting is the bound: more cores and data.threads, or fewer and cheaper operations in data.augment",
    "collate": "Memory is the bound: fewer processes a node, or a smaller batch",
}
WORDS = {"read": "reading", "decode": "decoding", "augment": "augmenting", "collate": "writing rows"}


class Waiting:
    """Fed each step's seconds and wait, gives a notice now and then. laps: of the loader that is waited for. remote: it
    reads over a network."""

    def __init__(self, laps: Laps, data_threads: int, remote: bool = False):
        self.laps, self.data_threads, self.remote = laps, data_threads, remote
        self._before: Sums = laps.sums()
        self._steps: deque[tuple[float, float]] = deque()
        self._quiet = 0.0

    def step(self, seconds: float, wait: float) -> str | None:
        """What there is to say after a step that took ``seconds``, ``wait`` of them waiting for its batch."""
        self._steps.append((seconds, min(wait, seconds)))
        self._quiet -= seconds
        total = sum(one for one, _ in self._steps)
        if total < WINDOW:
            return None
        share = sum(waited for _, waited in self._steps) / total
        shares = self.laps.sums().since(self._before).shares()
        steps = len(self._steps)
        self._steps.clear()
        self._before = self.laps.sums()
        if share <= BOUND or self._quiet > 0 or not shares:
            return None
        self._quiet = AGAIN
        waited = f"data wait: {100 * share:.0f} % of the last {steps} steps went by waiting for data."
        return f"{waited} {self._cause(shares)}"

    def _cause(self, shares: dict[str, float]) -> str:
        most = max(shares, key=lambda stage: shares[stage])
        cure = NETWORK if self.remote and most == "read" else CURES[most]
        parts = ", ".join(
            f"{WORDS[stage]} {100 * share:.0f} %" for stage, share in sorted(shares.items(), key=lambda one: -one[1])
        )
        return (
            f"The {self.data_threads} data thread(s) of this process spend their time {parts}. {cure}. "
            f"restrain bench data measures each part."
        )
