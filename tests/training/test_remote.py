"""A run whose shards come over a network that fails is the run whose shards lie on the disk."""

from pathlib import Path

from restrain.data import indexing
from tests import worlds
from tests.data.faulty import FaultyServer
from tests.data.making import write_shards


def test_three_epochs_over_faulty_http_give_the_same_weights(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "set", 4, 8)
    names = indexing.match_shards(root, "*.tar")
    indexing.index_shards(root, names)
    server = FaultyServer(root)
    server.faults = {name: ["reset", 503, "short"] for name in [*names, "restrain-index.bin"]}
    fixed = ["model={name: cifar_resnet20, classes: 5, in_chans: 3}", "resolution={train: 16}", "expect=null"]
    fixed += ["batch.global=8", "batch.group=2", "length=3ep", "track.pixels=true"]
    ends = []
    for where, run in ((str(root), tmp_path / "disk"), (server.url, tmp_path / "http")):
        data = f"{{name: webdataset, root: '{where}', cache: {tmp_path / 'cache'}, eval: null, "
        data += "augment: [{name: random_resized_crop}]}"
        ended = worlds.train(run, [*fixed, f"data={data}"])
        assert ended.codes == [0], ended.text
        ends.append(next((run / "checkpoints").glob("step-12/**/model*.safetensors")).read_bytes())
    assert not any(server.faults.values())
    server.shutdown()
    server.server_close()
    assert worlds.ledger(tmp_path / "http") == worlds.ledger(tmp_path / "disk")
    assert ends[0] == ends[1]
