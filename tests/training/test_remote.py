"""A run whose shards come over a network that fails is the run whose shards lie on the disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from restrain.data import indexing
from tests import worlds
from tests.data import s3
from tests.data.faulty import FaultyServer
from tests.data.making import write_shards


@contextmanager
def http(root: Path, faults: dict[str, list]) -> Iterator[tuple[str, dict[str, str]]]:
    server = FaultyServer(root)
    server.faults = faults
    yield server.url, {}
    server.shutdown()
    server.server_close()


@contextmanager
def objects(root: Path, faults: dict[str, list]) -> Iterator[tuple[str, dict[str, str]]]:
    with s3.faulty_s3() as server:
        server.put("bucket", root)
        server.faults = faults
        yield "s3://bucket/set", s3.environment(server)


@pytest.mark.parametrize("serve", [http, objects])
def test_three_epochs_over_a_faulty_network_give_the_same_weights(tmp_path: Path, serve) -> None:
    root = write_shards(tmp_path / "set", 4, 8)
    names = indexing.match_shards(root, "*.tar")
    indexing.index_shards(root, names)
    faults = {name: ["reset", 503, "short"] for name in [*names, "restrain-index.bin"]}
    fixed = ["model={name: cifar_resnet20, classes: 5, in_chans: 3}", "resolution={train: 16}", "expect=null"]
    fixed += ["batch.global=8", "batch.group=2", "length=3ep", "track.pixels=true"]
    ends = []
    with serve(root, faults) as (url, env):
        for where, run in ((str(root), tmp_path / "disk"), (url, tmp_path / "net")):
            data = f"{{name: webdataset, root: '{where}', cache: {tmp_path / 'cache'}, eval: null, "
            data += "augment: [{name: random_resized_crop}]}"
            ended = worlds.train(run, [*fixed, f"data={data}"], env=env)
            assert ended.codes == [0], ended.text
            assert not any(word in ended.text for word in ("canary", s3.KEY))
            ends.append(next((run / "checkpoints").glob("step-12/**/model*.safetensors")).read_bytes())
        assert not any(faults.values())
    assert worlds.ledger(tmp_path / "net") == worlds.ledger(tmp_path / "disk")
    assert ends[0] == ends[1]
