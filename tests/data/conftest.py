import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test writes into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared_data():
    from tests.data.making import SHARED

    if not (SHARED / "imagenet-sample").is_dir():
        pytest.skip("needs the photographs of ../shared/data")
    return SHARED


@pytest.fixture
def photographs(shared_data):
    """The encoded bytes of a hundred photographs."""
    import tarfile

    with tarfile.open(shared_data / "imagenet-sample" / "train-000000.tar") as archive:
        return [archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg")]
