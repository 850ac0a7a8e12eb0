"""Which sample stands at which position of an epoch, and which positions each step, rank and micro-batch takes.

Both are pure functions of plain integers: nothing here knows files, threads or torch, and only :meth:`Plan.local` knows
the world. `Order` maps a position to a sample without an array over all samples; `Plan` cuts positions into steps and
steps into groups. Both are frozen: ``tests/golden/order_v1.json`` holds their values.

Legend: N samples, C lanes, W window, B global batch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from restrain import draws
from restrain.data.repeats import check_repeats, dealt
from restrain.draws import Purpose
from restrain.errors import UserError

ORDER_VERSION = 1
FULL_SHUFFLE = 2_000_000  # up to here an epoch is one full shuffle: lanes would tie a group to one part of a small set
LANES, WINDOW = 64, 16384


def resolve_shuffle(samples: int, lanes: int | str = "auto", window: int | str = "auto") -> tuple[int, int]:
    """``data.lanes`` and ``data.window`` with ``auto`` resolved from the size of the set, never from the machine."""
    small = samples <= FULL_SHUFFLE
    resolved_lanes = (1 if small else LANES) if isinstance(lanes, str) else lanes
    resolved_window = (max(samples, 1) if small else WINDOW) if isinstance(window, str) else window
    return resolved_lanes, resolved_window


@dataclass(frozen=True)
class _Epoch:
    shards: np.ndarray  # the shards in this epoch's order
    starts: np.ndarray  # [shards + 1]: where each begins on the line of N slots
    stagger: np.ndarray  # [C]: how far a lane's first window is cut short


class Order:
    """A bijection from the positions [0, N) of an epoch to (shard, sample in shard), random access.

    1. The shards are permuted; end to end they are a line of N slots.
    2. The line is cut into C lanes of equal length (+-1).
    3. Inside a lane, windows of W slots are permuted. The first window of each lane is cut short by a keyed amount, so
       that the lanes do not all need new shards at the same step; not where one window holds the whole lane, because
       cutting a full shuffle in two would keep its halves apart.
    4. Position p is slot p // C of lane p % C.

    With ``repeats`` = r, positions p r to p r + r - 1 are the r copies of the sample that stands at p without, so an
    epoch shows the first N / r of its shuffled samples.

    Memory: three int64 a shard and epoch in use, and two windows a lane in use. Safe to call from several threads.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        seed: int,
        lanes: int,
        window: int,
        shuffle: bool = True,
        repeats: int = 1,
    ):
        """counts: samples of each shard. Raises UserError for lanes or windows below 1."""
        for name, value in (("data.lanes", lanes), ("data.window", window)):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1, or auto.")
        self.counts = np.asarray(counts, np.int64)
        self.samples = int(self.counts.sum())
        self.seed, self.lanes, self.window, self.shuffle, self.repeats = seed, lanes, window, shuffle, repeats
        lane = np.arange(lanes + 1, dtype=np.int64)
        self._base = lane * (self.samples // lanes) + np.minimum(lane, self.samples % lanes)
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], tuple[int, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, sample in shard), int64 of the shape of ``positions``. Raises IndexError outside [0, N)."""
        shape = np.shape(positions)
        position = np.asarray(positions, np.int64).reshape(-1)
        if position.size and not 0 <= position.min() <= position.max() < self.samples:
            raise IndexError(f"position {position.max()} in an epoch of {self.samples} samples")
        if self.repeats > 1:
            position = position // self.repeats
        with self._lock:
            line = self._epoch(epoch)
            lane, slot = position % self.lanes, position // self.lanes
            if self.shuffle and position.size:
                slot = self._shuffled(line, epoch, lane, slot)
        on_line = self._base[lane] + slot
        at = np.searchsorted(line.starts, on_line, side="right") - 1
        return line.shards[at].reshape(shape), (on_line - line.starts[at]).reshape(shape)

    def ahead(self, epoch: int, positions: np.ndarray) -> list[int]:
        """Shards of the windows that these positions are in, then those of the next window of each of their lanes, in
        the next epoch where a lane ends. What is to be fetched before it is asked for, and kept meanwhile."""
        position = np.asarray(positions, np.int64).reshape(-1) // self.repeats
        lanes, at = np.unique(position % self.lanes, return_index=True)
        slots = position[at] // self.lanes
        with self._lock:
            line, following = self._epoch(epoch), self._epoch(epoch + 1)
            now, later = [], []
            for lane, slot in zip(lanes.tolist(), slots.tolist(), strict=True):
                last = int(self._base[lane + 1] - self._base[lane])
                window = (slot + int(line.stagger[lane])) // self.window
                now += self._window_shards(line, lane, window)
                if (window + 1) * self.window - int(line.stagger[lane]) < last:
                    later += self._window_shards(line, lane, window + 1)
                else:
                    later += self._window_shards(following, lane, int(following.stagger[lane]) // self.window)
        return list(dict.fromkeys([*now, *later]))

    def _window_shards(self, line: _Epoch, lane: int, window: int) -> list[int]:
        first, last = self._span(line, lane, window)
        base = int(self._base[lane])
        a, b = np.searchsorted(line.starts, [base + first, base + last - 1], side="right") - 1
        return line.shards[a : b + 1].tolist()

    def _span(self, line: _Epoch, lane: int, window: int) -> tuple[int, int]:
        """First slot of a window of a lane, and the first after it."""
        stagger, length = int(line.stagger[lane]), int(self._base[lane + 1] - self._base[lane])
        return max(0, window * self.window - stagger), min(length, (window + 1) * self.window - stagger)

    def lane_shards(self, epoch: int, lane: int) -> np.ndarray:
        """The shards that a lane's samples of an epoch are in, in the order in which its windows come to them."""
        first, last = int(self._base[lane]), int(self._base[lane + 1])
        if first == last:
            return np.empty(0, np.int64)
        with self._lock:
            line = self._epoch(epoch)
        a, b = np.searchsorted(line.starts, [first, last - 1], side="right") - 1
        return line.shards[a : b + 1]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            n = len(self.counts)
            shards = draws.permutation(n, self.seed, Purpose.SHARDS, epoch) if self.shuffle else np.arange(n)
            starts = np.concatenate(([0], np.cumsum(self.counts[shards])))
            stagger = draws.mix(self.seed, Purpose.STAGGER, epoch, np.arange(self.lanes)) % np.uint64(self.window)
            whole = np.diff(self._base) <= self.window
            self._epochs[epoch] = _Epoch(shards, starts, np.where(whole, 0, stagger.astype(np.int64)))
            while len(self._epochs) > 2:  # read-ahead crosses one epoch border
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _shuffled(self, line: _Epoch, epoch: int, lane: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """The slots that the permuted windows hold at ``slot`` of ``lane``."""
        window = (slot + line.stagger[lane]) // self.window
        code = lane * (int(window.max()) + 1) + window
        by_code = np.argsort(code, kind="stable")
        cuts = np.flatnonzero(np.diff(code[by_code])) + 1
        out = np.empty_like(slot)
        for run in np.split(by_code, cuts):
            first, permuted = self._permuted(line, epoch, int(lane[run[0]]), int(window[run[0]]))
            out[run] = first + permuted[slot[run] - first]
        return out

    def _permuted(self, line: _Epoch, epoch: int, lane: int, window: int) -> tuple[int, np.ndarray]:
        """First slot of a window, and the permutation of its slots."""
        name = (epoch, lane, window)
        if name not in self._windows:
            first, last = self._span(line, lane, window)
            permuted = draws.permutation(last - first, self.seed, Purpose.WINDOW, epoch, lane, window)
            self._windows[name] = (first, permuted.astype(np.uint32) if last - first < 1 << 32 else permuted)
            while len(self._windows) > 2 * self.lanes:
                self._windows.popitem(last=False)
        self._windows.move_to_end(name)
        return self._windows[name]


@dataclass(frozen=True)
class Segment:
    """From step ``from_step`` on, steps of ``batch`` samples start at ``position`` of ``epoch``.

    An untouched run has one; an intervention that moves data appends another.
    """

    from_step: int
    epoch: int
    position: int
    batch: int
    group: int


class Plan:
    """Steps cut into groups, the same on every world.

    A step takes B consecutive positions of an epoch, sorted by lane (stably) and cut into B / group groups. An epoch
    has N // B steps; its tail is dropped (other samples each epoch). ``row`` is the index in a step's flattened list
    of groups.

    With ``repeats`` = r, the copies of a sample (`Order`) are dealt out to r groups that follow each other, so that
    those of a step are never in one group. Where r does not divide B, one sample's copies span two steps.
    """

    def __init__(
        self, samples: int, batch: int, group: int, lanes: int, segments: Sequence[Segment] = (), repeats: int = 1
    ):
        """segments: those that interventions appended. Raises UserError where the sizes do not fit."""
        self.samples, self.batch, self.group, self.lanes, self.repeats = samples, batch, group, lanes, repeats
        self.segments = [Segment(0, 0, 0, batch, group), *segments]
        for segment in self.segments:
            _check_batch(samples, segment.batch, segment.group)
            check_repeats(segment.batch, segment.group, repeats)

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.batch

    def segment(self, step: int) -> Segment:
        """The segment that ``step`` belongs to: the last one that has begun."""
        return next(s for s in reversed(self.segments) if s.from_step <= step)

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, first position) of a step."""
        s = self.segment(step)
        after, rest = step - s.from_step, (self.samples - s.position) // s.batch
        if after < rest:  # the epoch that the segment began in
            return s.epoch, s.position + after * s.batch
        epochs, index = divmod(after - rest, self.samples // s.batch)
        return s.epoch + 1 + epochs, index * s.batch

    def step_at(self, epochs: float) -> int:
        """The step at which ``epochs`` epochs are done, whatever batches they had: how every duration is counted."""
        whole = int(epochs)
        first = self._first_step(whole)
        return first + round((epochs - whole) * (self._first_step(whole + 1) - first))

    def _first_step(self, epoch: int) -> int:
        for s in reversed(self.segments):
            if epoch > s.epoch:
                rest = (self.samples - s.position) // s.batch
                return s.from_step + rest + (epoch - s.epoch - 1) * (self.samples // s.batch)
        return 0

    def epochs(self, steps: int) -> float:
        """How many epochs the first ``steps`` steps are."""
        epoch, position = self.place(steps)
        return epoch + position / self.samples

    def seen(self, steps: int) -> int:
        """Samples that the first ``steps`` steps train on."""
        if len(self.segments) == 1:
            return steps * self.batch
        ends = [s.from_step for s in self.segments[1:]] + [steps]
        return sum(s.batch * max(0, min(end, steps) - s.from_step) for s, end in zip(self.segments, ends, strict=True))

    def steps_together(self, step: int, most: int) -> int:
        """How many steps from ``step`` on, at most ``most``, are of its epoch and segment."""
        s = self.segment(step)
        left = (self.samples - self.place(step)[1]) // s.batch
        following = [t.from_step for t in self.segments if t.from_step > step]
        return max(1, min([most, left, *(f - step for f in following)]))

    def rows(self, step: int, count: int = 1, rank: int = 0, world: int = 1) -> tuple[int, np.ndarray]:
        """(epoch, positions int64 [count, B / world]) of the rank's rows of ``count`` steps of one epoch.

        ``count`` must be at most :meth:`steps_together`.
        """
        s = self.segment(step)
        epoch, first = self.place(step)
        positions = np.arange(first, first + count * s.batch, dtype=np.int64).reshape(count, s.batch)
        if self.lanes > 1:
            by_lane = np.argsort(positions // self.repeats % self.lanes, axis=1, kind="stable")
            positions = np.take_along_axis(positions, by_lane, axis=1)
        if self.repeats > 1:
            positions = positions[:, dealt(s.batch, s.group, self.repeats)]
        share = s.batch // world
        return epoch, positions[:, rank * share : (rank + 1) * share]

    def groups(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, positions int64 [B / group, group]): the step's canonical list of groups."""
        epoch, positions = self.rows(step)
        return epoch, positions.reshape(-1, self.segment(step).group)

    def local(self, step: int, rank: int, world: int, micro: int) -> tuple[int, list[tuple[int, np.ndarray]]]:
        """(epoch, [(first row, positions int64 [micro]), ...]): the micro-batches of one rank.

        Raises UserError where the world or the micro-batch does not divide the step into whole groups, or each group
        into equal parts.
        """
        s = self.segment(step)
        check_world(s.batch, s.group, world)
        check_micro(s.batch, s.group, world, micro)
        epoch, positions = self.rows(step, 1, rank, world)
        first = rank * (s.batch // world)
        mine = positions[0].reshape(-1, micro)
        return epoch, [(first + i * micro, part) for i, part in enumerate(mine)]


def allowed_worlds(batch: int, group: int) -> list[int]:
    """The numbers of ranks that each get the same number of whole groups."""
    return _divisors(batch // group)


def spanning_worlds(batch: int, group: int) -> list[int]:
    """The larger numbers of ranks, up to ``batch``, of which k > 1 that follow each other share each group equally."""
    return [k * (batch // group) for k in _divisors(group)[1:]]


def ranks_a_group(batch: int, group: int, world: int) -> int:
    """Over how many ranks each group lies; 1 where ranks have whole ones. ``world`` is one that works."""
    return max(1, world * group // batch)


def allowed_micro(batch: int, group: int, world: int) -> list[int]:
    """The micro-batches (samples a rank) that hold whole groups and divide a rank's share of the batch; where groups
    span ranks, a rank's part of one, which is all that it has."""
    if ranks_a_group(batch, group, world) > 1:
        return [batch // world]
    return [group * k for k in _divisors(batch // group // world)]


def check_world(batch: int, group: int, world: int) -> None:
    """Raises UserError, naming the sizes that work, when ``world`` ranks cannot share the step's groups."""
    allowed, spanning = allowed_worlds(batch, group), spanning_worlds(batch, group)
    if world not in allowed and world not in spanning:
        beyond = f"; with groups that span processes, {_listed(spanning)}" if spanning else ""
        raise UserError(
            f"{world} processes cannot share a step of batch.global={batch} in groups of batch.group={group}: there "
            f"are {batch // group} groups, and each process takes the same number of whole ones, or as large a part of "
            f"one as the others. Numbers of processes that work: {_listed(allowed)}{beyond}. Otherwise change "
            f"batch.group or batch.global (that defines another run)."
        )


def check_micro(batch: int, group: int, world: int, micro: int) -> None:
    """Raises UserError, naming the sizes that work, when micro-batches of ``micro`` cannot make up a rank's share."""
    if micro in (allowed := allowed_micro(batch, group, world)):
        return
    if (ranks := ranks_a_group(batch, group, world)) > 1:
        raise UserError(
            f"batch.micro={micro}: with batch.global={batch}, batch.group={group} and {world} processes, a group spans "
            f"{ranks} processes, each of which takes its {allowed[0]} rows at once. Use batch.micro=auto."
        )
    raise UserError(
        f"batch.micro={micro}: with batch.global={batch}, batch.group={group} and {world} process(es), a process "
        f"has {batch // world} samples a step and a micro-batch holds whole groups. "
        f"Sizes that work: {_listed(allowed)}."
    )


def _check_batch(samples: int, batch: int, group: int) -> None:
    if batch < 1 or group < 1 or batch % group:
        works = f" Groups that work: {_listed(_divisors(batch))}." if batch > 0 else ""
        raise UserError(f"batch.group={group} does not divide batch.global={batch}.{works}")
    if samples < batch:
        raise UserError(
            f"batch.global={batch} is more than the {samples} training samples of the data set: an epoch would have no "
            f"step. Use a batch of at most {samples}."
        )


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _listed(numbers: list[int]) -> str:
    shown = numbers if len(numbers) <= 16 else [*numbers[:8], "...", *numbers[-4:]]
    return ", ".join(map(str, shown))
