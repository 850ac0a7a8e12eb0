"""Windows of tokens: each once, the same on any world and from any step, each read checked."""

import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restrain import draws
from restrain.data import index, sets
from restrain.data.expected import expected
from restrain.data.order import Order, Plan
from restrain.data.text import manifest, windows
from restrain.data.text.documents import Reading
from restrain.data.text.loader import TokenEvalLoader, TokenLoader
from restrain.data.text.packing import Settings, pack
from restrain.data.text.raw import describe
from restrain.data.text.source import TokenSource
from restrain.errors import UserError, WorldError
from tests.bad_input.harness import flip

WORLDS = [(1, 8, 1), (1, 4, 3), (2, 4, 2), (4, 2, 1)]


def raw_set(root, lengths, end=None, dtype="<u2"):
    """Shards of the given lengths of tokens below 50; every fifth token or so is ``end``."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for number, length in enumerate(lengths):
        rng.integers(0, 50, length).astype(dtype).tofile(root / f"train-{number:06d}.bin")
    describe(root, "u16" if dtype == "<u2" else "u32", 50, end)
    return root


def loader(source, *, batch=8, group=2, lanes=1, window=None, seed=5, **settings):
    samples = int(source.counts.sum())
    order = Order(source.counts, seed, lanes, window or samples)
    plan = Plan(samples, batch, group, lanes)
    settings = {"rank": 0, "world": 1, "micro": 8, "start": 0, "stop": 12, "threads": 2, **settings}
    return TokenLoader(source, order, plan, **settings)


def rows(made):
    """(step, row, tokens, documents, prefix) of everything that a loader hands over."""
    out = []
    for batch in made:
        for micro in batch.micros:
            documents = micro.documents
            for i in range(len(micro.tokens)):
                own = None if documents is None else tuple(documents[i].tolist())
                tokens = tuple(micro.tokens[i].tolist())
                out.append((batch.step, micro.row + i, tokens, own, int(micro.prefix[i])))
    return sorted(out)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return raw_set(tmp_path_factory.mktemp("tokens"), [95, 3, 201, 64, 33, 0x90], end=7)


@pytest.fixture(scope="module")
def source(root):
    return TokenSource(root, "train-*.bin", 8, documents=True)


def naive(root, context):
    """Every window, by slicing."""
    out = []
    for path in sorted(root.glob("train-*.bin")):
        tokens = np.fromfile(path, "<u2").tolist()
        out.append([tokens[p : p + context + 1] for p in range(0, len(tokens) - context, context)])
    return out


@given(
    st.lists(st.integers(2, 90), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 30),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_each_window_once(tmp_path_factory, lengths, context, lanes, window, data):
    """Whatever the shards, the context, the lanes; with any world, cut at any step."""
    root = raw_set(tmp_path_factory.mktemp("set"), [*lengths, 30])
    source = TokenSource(root, "*", context)
    every = naive(root, context)
    assert source.counts.tolist() == [len(found) for found in every]
    world = data.draw(st.sampled_from([1, 2]))
    steps = int(source.counts.sum()) // 2
    settings = {"batch": 2, "group": 1, "lanes": lanes, "window": window, "micro": 2 // world, "world": world}
    cut = data.draw(st.integers(0, steps))
    got = []
    for rank in range(world):
        got += rows(loader(source, rank=rank, start=0, stop=cut, **settings))
        got += rows(loader(source, rank=rank, start=cut, stop=steps, threads=1, **settings))
    order = Order(source.counts, 5, lanes, window)
    shard, j = order(0, np.arange(2 * steps))
    wanted = sorted(tuple(every[s][k]) for s, k in zip(shard.tolist(), j.tolist(), strict=True))
    assert sorted(row[2] for row in got) == wanted
    assert len({(s, k) for s, k in zip(shard.tolist(), j.tolist(), strict=True)}) == 2 * steps


@pytest.mark.parametrize(("world", "micro", "threads"), WORLDS)
def test_the_same_windows_on_any_world_and_from_any_step(source, world, micro, threads):
    straight = rows(loader(source, lanes=2, window=7))
    for start in range(0, 12, 5):
        parts = []
        for rank in range(world):
            settings = {"lanes": 2, "window": 7, "world": world, "rank": rank, "micro": micro, "threads": threads}
            parts += rows(loader(source, start=start, **settings))
        assert sorted(parts) == [row for row in straight if row[0] >= start]


def test_a_row_is_inputs_and_targets(source):
    micro = next(iter(loader(source))).micros[0]
    assert micro.tokens.shape == (8, 9)
    assert micro.tokens.dtype == torch.int64
    assert torch.equal(micro.inputs[:, 1:], micro.targets[:, :-1])
    assert micro.documents.dtype == torch.int32


def test_document_numbers_are_those_of_a_walk_through_the_text(root, source):
    for shard, name in enumerate(source.names):
        tokens = np.fromfile(root / name, "<u2").tolist()
        for j in range(int(source.counts[shard])):
            number, numbers = 0, []
            for i, place in enumerate(range(j * 8, j * 8 + 9)):
                number += i > 0 and tokens[place - 1] == 7
                numbers.append(number)
            assert source.read(shard, j).label.tolist() == numbers
    shard, j = Order(source.counts, 0, 1, 100)(0, np.arange(int(source.counts.sum())))
    together = source.rows(shard, j)[1]
    assert all(
        together[i].tolist() == source.read(int(s), int(k)).label.tolist()
        for i, (s, k) in enumerate(zip(shard, j, strict=True))
    )


def test_borders_of_packed_documents(tmp_path):
    texts = ["ab", "c", "defghij", "k"]
    (tmp_path / "text.txt").write_text("|".join(texts))
    pack(tmp_path / "text.txt", tmp_path / "set", Settings(shuffle=False, reading=Reading(separator="|")))
    source = TokenSource(tmp_path / "set", "train-*.bin", 14, documents=True)
    assert source.read(0, 0).label.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3]


def test_the_ledger_can_be_recomputed_without_reading(source):
    made = loader(source, world=2, rank=1, micro=2, lanes=2, window=7)
    other = loader(source, world=2, rank=0, micro=4, lanes=2, window=7)
    audit = expected(made.order, made.plan, source.crcs)
    for batches in zip(made, other, strict=True):
        total = 0
        for batch, one in zip(batches, (made, other), strict=True):
            _, parts = one.plan.local(batch.step, one.rank, 2, one.micro)
            for micro, (row, positions) in zip(batch.micros, parts, strict=True):
                assert micro.row == row
                total += int(draws.extend(micro.prefix, positions).sum(dtype=np.uint64))
        assert total % 2**64 == audit(batches[0].step)


def test_crcs_are_those_of_the_windows_bytes(root, source):
    for shard, found in enumerate(naive(root, 8)):
        assert source.crcs(shard).tolist() == [zlib.crc32(np.array(window, "<u2")) for window in found]


def test_wide_tokens(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    tokens = np.arange(100_000, 100_050, dtype="<u4")
    tokens.tofile(root / "train-000000.bin")
    describe(root, "u32", None, None)
    micro = next(iter(loader(TokenSource(root, "*", 4), batch=12, group=1, micro=12))).micros[0]
    assert sorted(micro.inputs.flatten().tolist()) == tokens[:48].tolist()


def test_each_window_is_evaluated_once(source):
    for world in (1, 3):
        found = []
        for rank in range(world):
            made = TokenEvalLoader(source, rank=rank, world=world, batch=5, threads=2)
            for batch in made:
                found += [
                    (int(i), tuple(t))
                    for i, t, ok in zip(batch.index, batch.tokens.tolist(), batch.valid, strict=True)
                    if ok
                ]
        wanted = [tuple(window) for part in naive(source.root, 8) for window in part]
        assert [tokens for _, tokens in sorted(found)] == wanted


def test_rot_is_replaced_in_training_and_refused_in_evaluation(tmp_path):
    root = raw_set(tmp_path / "set", [200])
    source = TokenSource(root, "*", 8)
    flip(root / "train-000000.bin", 2 * (3 * 8 + 4))
    again = TokenSource(root, "*", 8)  # the index is there already: only reading can tell
    steps = list(loader(again, batch=24, group=24, micro=24, stop=1, threads=1))
    (replaced,) = steps[0].replaced
    assert (replaced.shard, replaced.j, replaced.used_j) == (0, 3, 4)
    assert "checksum" in replaced.reason
    sound = rows(loader(again, batch=24, group=24, micro=24, stop=1))
    assert sum(row[2] == tuple(source.read(0, 4).data.tolist()) for row in sound) == 2
    with pytest.raises(WorldError, match="Evaluation stopped: sample 3"):
        list(TokenEvalLoader(again, rank=0, world=1, batch=8, threads=1))


@given(st.integers(0, 399))
@settings(max_examples=25, deadline=None)
def test_any_flipped_byte_is_found_in_its_windows(tmp_path_factory, at):
    root = raw_set(tmp_path_factory.mktemp("set"), [200])
    source = TokenSource(root, "*", 8)
    flip(root / "train-000000.bin", at)
    bad = {j for j in range(24) if 16 * j <= at < 16 * j + 18}
    found = set()
    for j in range(24):
        try:
            source.rows(np.array([0]), np.array([j]))
        except Exception as error:
            found.add(error.j)
    assert found == bad


def test_an_index_a_context_made_once(tmp_path, monkeypatch):
    root = raw_set(tmp_path / "set", [200, 90])
    first = TokenSource(root, "*", 8)
    assert (root / "restrain-index-8.bin").is_file()
    monkeypatch.setattr(windows, "_scan", lambda *given: pytest.fail("indexed again"))
    again = TokenSource(root, "train-000001.bin", 8)
    assert again.crcs(0).tolist() == first.crcs(1).tolist()
    assert TokenSource(root, "*", 8).fingerprint == first.fingerprint
    path = root / "restrain-index-8.bin"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    monkeypatch.undo()
    assert TokenSource(root, "*", 8).crcs(0).tolist() == first.crcs(0).tolist()


def test_a_folder_that_stays_as_it_is_has_its_index_in_the_cache(tmp_path):
    root = raw_set(tmp_path / "set", [200])
    root.chmod(0o555)
    try:
        TokenSource(root, "*", 8, cache=str(tmp_path / "cache"))
    finally:
        root.chmod(0o755)
    assert not list(root.glob("restrain-index*"))
    assert (index.places(root, str(tmp_path / "cache"))[1] / "restrain-index-8.bin").is_file()


def test_damage_is_said(tmp_path):
    root = raw_set(tmp_path / "set", [200, 90], end=7)
    TokenSource(root, "*", 8)
    path = root / "train-000000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(WorldError, match=r"has 398 bytes, restrain-tokens.json says 400 \(200 tokens of u16\)"):
        TokenSource(root, "*", 8)
    path.write_bytes(whole[:-2] + b"\0\0")
    with pytest.raises(WorldError, match="SHA-256"):
        TokenSource(root, "*", 9)  # a new context looks at all of it
    path.unlink()
    with pytest.raises(WorldError, match="No such file"):
        TokenSource(root, "*", 8)
    path.write_bytes(whole)
    (root / "train-000001.idx").write_bytes(b"\0" * 8)
    source = TokenSource(root, "*", 8, documents=True)
    with pytest.raises(WorldError, match=r"train-000001.idx is not what"):
        source.read(1, 0)


def test_a_manifest_that_lies_is_refused(tmp_path):
    root = raw_set(tmp_path / "set", [200])
    path = root / manifest.MANIFEST
    record = json.loads(path.read_text())
    for change, said in (
        ({"vocab_size": 20}, "beyond the vocabulary of 20"),
        ({"dtype": "u8"}, "do not fit together"),
        ({"vocab_size": 70_000}, "do not fit together"),
        ({"dtype": "u32"}, r"says 800 \(200 tokens of u32\)"),
        ({"version": 2}, "is of version 2"),
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(WorldError, match=said):
            TokenSource(root, "*", 8)


def test_another_context_is_another_set(source):
    other = TokenSource(source.root, "*", 9)
    other.check_same(other.identity())
    with pytest.raises(UserError, match="context 8, and the set is opened with 9"):
        other.check_same(source.identity())
    with pytest.raises(UserError, match="their content differs"):
        TokenSource(source.root, "train-000000.bin", 8).check_same(source.identity())


def test_what_cannot_be_opened_says_what_to_do(tmp_path):
    root = raw_set(tmp_path / "set", [20, 30])
    with pytest.raises(UserError, match=r"the longest has 30. Use a context of at most 29"):
        TokenSource(root, "*", 30)
    TokenSource(root, "*", 29)
    with pytest.raises(UserError, match=r"No shard of .* matches 'val-\*'. Its shards are train-000000.bin, train"):
        TokenSource(root, "val-*", 4)
    with pytest.raises(UserError, match=r"data.context=0: must be at least 1"):
        TokenSource(root, "*", 0)
    (root / manifest.MANIFEST).unlink()
    with pytest.raises(
        UserError, match=r"holds train-000000.bin but no restrain-tokens.json.* --raw u16 --vocab-size N"
    ):
        TokenSource(root, "*", 4)
    with pytest.raises(UserError, match=r"it is no token set\. Make one of text: restrain data tokens TEXT"):
        TokenSource(tmp_path, "*", 4)


def test_few_shards_stay_mapped(source, monkeypatch):
    straight = rows(loader(source))
    monkeypatch.setattr("restrain.data.text.source.MAPPED", 1)
    again = TokenSource(source.root, "*", 8, documents=True)
    assert rows(loader(again, threads=4)) == straight
    assert len(again._maps) == 1


def test_what_is_left_over_is_counted(tmp_path):
    source = TokenSource(raw_set(tmp_path / "set", [200, 5, 9]), "*", 8)
    assert source.counts.tolist() == [24, 0, 1]
    assert source.dropped == (200 - 193) + 5


def test_a_recipe_section_opens_it(tmp_path):
    from pydantic import TypeAdapter

    from restrain.data.known import known_samples
    from restrain.recipe.schema_data import Data

    root = raw_set(tmp_path / "set", [200])
    section = TypeAdapter(Data).validate_python({"name": "tokens", "root": str(root), "context": 8})
    source = sets.open_source(section, "train")
    assert source.counts.tolist() == [24]
    assert known_samples(section) == (24, f"the manifest in {root}")
    assert sets.open_source(section, "eval") is None
