"""What a rank sets in its environment: never over what a user has set, and all of it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain.errors import WorldError
from restrain.parallel import environment
from restrain.parallel.environment import Surroundings, chosen, near, numbers, prepare, record_into, spans
from restrain.parallel.world import World
from restrain.recipe import Site
from tests import worlds

TWO_NODES = World(rank=3, size=4, local_rank=1, local_size=2, node=1, launcher="slurm")
SITE = Site(interface="ib0", nccl={"NCCL_IB_HCA": "mlx5"})


@pytest.fixture
def interfaces(tmp_path: Path) -> Path:
    for name in ("eth0", "ib0", "lo"):
        (tmp_path / "net" / name).mkdir(parents=True)
    return tmp_path / "net"


def test_a_single_process_sets_nothing() -> None:
    env = {"OMP_NUM_THREADS": "3", "HOME": "/root"}
    found = prepare(World(), SITE, 8, env)
    assert (found.set, found.kept) == ({}, {"OMP_NUM_THREADS": "3"})
    assert env == {"OMP_NUM_THREADS": "3", "HOME": "/root"}


def test_what_is_set_on_several_nodes(interfaces: Path) -> None:
    env: dict[str, str] = {}
    found = prepare(TWO_NODES, SITE, 6, env, interfaces)
    assert env == found.set == {
        "OMP_NUM_THREADS": "6",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "NCCL_IB_HCA": "mlx5",
        "NCCL_SOCKET_IFNAME": "ib0",
        "GLOO_SOCKET_IFNAME": "ib0",
    }  # fmt: skip


def test_on_one_node_the_interface_is_the_libraries_own(interfaces: Path) -> None:
    found = prepare(World(size=2, local_size=2), SITE, 6, {}, interfaces)
    assert not [name for name in found.set if name.endswith("IFNAME")]


@pytest.mark.parametrize(
    "name", [*environment.ALIASES, *environment.ALIASES.values(), "NCCL_IB_HCA", "OMP_NUM_THREADS"]
)
def test_what_a_user_has_set_stands(tmp_path: Path, interfaces: Path, name: str) -> None:
    env = {name: "mine"}
    found = prepare(TWO_NODES, SITE, 6, env, interfaces)
    record_into(tmp_path, found, env)
    assert env[name] == "mine"
    assert found.kept == {name: "mine"}
    older = {**environment.ALIASES, **{old: new for new, old in environment.ALIASES.items()}}
    assert name not in found.set
    assert older.get(name) not in env


def test_dumps_of_the_flight_recorder_go_to_the_attempt(tmp_path: Path) -> None:
    env: dict[str, str] = {}
    found = Surroundings()
    record_into(tmp_path, found, env)
    assert env == dict.fromkeys(found.set, f"{tmp_path}/collectives-")
    assert set(found.set) == {"TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"}


def test_an_interface_that_is_not_there(interfaces: Path) -> None:
    site = Site(interface="ib0,ib1")
    with pytest.raises(WorldError, match=r"interface: ib0,ib1, and .* has no ib1, but eth0, ib0, lo"):
        prepare(TWO_NODES, site, 6, {}, interfaces)
    mine = {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}
    assert "NCCL_SOCKET_IFNAME" not in prepare(TWO_NODES, site, 6, mine, interfaces).set
    assert prepare(TWO_NODES, site, 6, {}, Path("/nowhere")).set["NCCL_SOCKET_IFNAME"] == "ib0,ib1"


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two memory nodes of eight processors, a GPU on each, and one of which nobody knows."""
    for node, cpus in enumerate(("0-3,8-11\n", "4-7,12-15\n")):
        (tmp_path / f"devices/system/node/node{node}").mkdir(parents=True)
        (tmp_path / f"devices/system/node/node{node}/cpulist").write_text(cpus)
    for address, node in (("0000:3b:00.0", 0), ("0000:af:00.0", 1), ("0000:d8:00.0", -1)):
        (tmp_path / "bus/pci/devices" / address).mkdir(parents=True)
        (tmp_path / "bus/pci/devices" / address / "numa_node").write_text(f"{node}\n")
    return tmp_path


def test_processors_near_a_gpu(sysfs: Path) -> None:
    assert near("0000:3B:00.0", sysfs) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert near("0000:d8:00.0", sysfs) == set()
    assert near("0000:00:00.0", sysfs) == set()


def test_a_rank_is_bound_where_its_share_is_there() -> None:
    close = set(range(8))
    assert chosen(set(range(16)), close, cores=4, sharing=2) == close
    assert chosen(set(range(16)), close, cores=8, sharing=2) is None  # both ranks would lose half
    assert chosen({12, 13}, close, cores=2, sharing=1) is None  # Slurm gave it others
    assert chosen({0, 1}, close, cores=2, sharing=1) is None  # it has none but these


def test_binding(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cpus: bound.append(cpus))
    addresses = ["0000:3b:00.0", "0000:af:00.0", "0000:d8:00.0"]
    found = Surroundings()
    environment.bind(addresses, 1, 5, found, sysfs)
    environment.bind(addresses, 2, 5, Surroundings(), sysfs)
    assert bound == [{4, 5, 6, 7, 12, 13, 14, 15}]
    assert found.cpus == "4-7,12-15"


@given(st.sets(st.integers(0, 300), max_size=40))
def test_lists_of_processors_read_back(cpus: set[int]) -> None:
    assert numbers(spans(cpus)) == cpus


def test_run_json_tells_all_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["length=1st", "evaluate.every=1st"]
    ended = worlds.train(run, words, 2, env={"TORCH_FR_BUFFER_SIZE": "77"})
    assert ended.codes == [0, 0], ended.text
    (attempt,) = json.loads((run / "run.json").read_text())["attempts"]
    told = attempt["environment"]
    assert told["kept"]["TORCH_FR_BUFFER_SIZE"] == "77"
    assert told["set"]["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3"
    assert told["set"]["MASTER_ADDR"] == "127.0.0.1"  # by the launcher
    assert not [name for name in told["kept"] if name.startswith("MASTER_")]
    assert told["set"]["TORCH_FR_DUMP_TEMP_FILE"] == f"{run}/attempts/1/collectives-"
    assert told["collective_timeout"] == 600
