"""Other loaders, set up as their own documentation has it, for the same photographs and as far as they let one the same
crops. Each gives uint8 batches or what it gives instead: what it normalises on the device by itself is left out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from restrain.bench.photographs import KeyedCrop, Photographs
from restrain.data import images
from restrain.errors import UserError, nearest

SIZE = 224


def open_timm(photographs: Photographs, batch: int, workers: int, evaluation: bool = False) -> Iterable[Any]:
    """``timm.create_loader``: its ImageDataset, worker processes, PIL, its fast collation to uint8."""
    import torch
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader

    crop = KeyedCrop(photographs, SIZE)

    class Named(ImageDataset):
        def __getitem__(self, index: int) -> Any:
            crop.name = Path(str(self.filename(index))).stem
            return super().__getitem__(index)

    loader: Any = create_loader(
        Named(str(photographs.files)),
        (3, SIZE, SIZE),
        batch,
        is_training=not evaluation,
        re_prob=0.0,
        color_jitter=None,  # pyright: ignore[reportArgumentType]  # its documented way to leave it out
        interpolation="bilinear",
        crop_pct=SIZE / 256,
        num_workers=workers,
        device=torch.device("cpu"),
    )
    inner = loader.loader  # inside the prefetcher, which normalises
    if not evaluation:
        inner.dataset.transform.transforms[0].get_params = crop
    return inner


def open_torchvision(photographs: Photographs, batch: int, workers: int, evaluation: bool = False) -> Iterable[Any]:
    """torchvision's reference training: ImageFolder, transforms on PIL images, a DataLoader with worker processes."""
    from torch.utils.data import DataLoader
    from torchvision import datasets

    crop = KeyedCrop(photographs, SIZE)

    class Named(datasets.ImageFolder):
        def __getitem__(self, index: int) -> Any:
            crop.name = Path(self.samples[index][0]).stem
            return super().__getitem__(index)

    return DataLoader(
        Named(str(photographs.files), _transform(crop, evaluation)),
        batch,
        shuffle=not evaluation,
        drop_last=not evaluation,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def open_webdataset(photographs: Photographs, batch: int, workers: int, evaluation: bool = False) -> Iterable[Any]:
    """webdataset as its documentation has it: shuffled shards, a shuffle buffer, decode("pil"), batches in workers."""
    import webdataset

    wds: Any = webdataset

    crop = KeyedCrop(photographs, SIZE)
    transform = _transform(crop, evaluation)

    def prepare(sample: dict) -> tuple:
        crop.name = Path(sample["__key__"]).name
        return transform(sample["jpg"]), sample["cls"]

    set_of = wds.WebDataset(photographs.shards, shardshuffle=False if evaluation else 100, empty_check=False)
    set_of = (set_of if evaluation else set_of.shuffle(1000)).decode("pil").map(prepare).batched(batch)
    return wds.WebLoader(set_of, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def open_dali(photographs: Photographs, batch: int, workers: int, evaluation: bool = False) -> Iterable[Any]:
    """NVIDIA DALI's CPU operators, ``workers`` threads; its own crops, of the same distribution."""
    from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None, seed=0)  # pyright: ignore
    def graph() -> Any:
        files, labels = fn.readers.file(file_root=str(photographs.files), random_shuffle=not evaluation, name="files")
        if evaluation:
            pictures = fn.decoders.image(files, device="cpu", output_type=types.RGB)
            pictures = fn.resize(pictures, resize_shorter=256.0, interp_type=types.INTERP_TRIANGULAR)
            return fn.crop(pictures, crop=(SIZE, SIZE)), labels
        pictures = fn.decoders.image_random_crop(files, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0])
        pictures = fn.resize(pictures, size=(SIZE, SIZE), interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(pictures, horizontal=fn.random.coin_flip()), labels

    made: Any = graph()
    made.build()
    return _Repeated(lambda: (made.run() for _ in range(photographs.images // batch)))


def open_numpy(photographs: Photographs, batch: int, workers: int, evaluation: bool = False) -> Iterable[Any]:
    """The photographs decoded beforehand, end to end in one memory-mapped file: what is left is cropping, resizing by
    torch's integer kernel and mirroring, in a DataLoader's worker processes. The file is some ten times the JPEGs."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    paths = sorted(photographs.files.glob("*/*.jpg"))
    flat, places = _decoded(photographs, paths)
    crop = KeyedCrop(photographs, SIZE)

    class Decoded(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            first, height, width = places[index]
            pixels = flat[first : first + height * width * 3].reshape(height, width, 3)
            if evaluation:
                side = min(height, width)
                top, left, h, w = (height - side) // 2, (width - side) // 2, side, side
            else:
                crop.name = paths[index].stem
                top, left, h, w = crop.box(height, width)
            part = np.array(pixels[top : top + h, left : left + w])
            image = images.resize(part, SIZE, SIZE)
            if not evaluation and torch.rand(()) < 0.5:
                image = images.mirrored(image)
            return torch.from_numpy(np.ascontiguousarray(image)), int(paths[index].parent.name)

    return DataLoader(
        Decoded(),
        batch,
        shuffle=not evaluation,
        drop_last=not evaluation,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _decoded(photographs: Photographs, paths: list[Path]) -> tuple[Any, list[tuple[int, int, int]]]:
    """(all pixels, uint8, memory-mapped; where each image begins, its height, width). Copies of one share a place."""
    import numpy as np

    place, at, known, places = photographs.folder / "decoded.bin", 0, {}, []
    with open(place, "wb") as file:
        for path in paths:
            number = path.stem.partition("_")[0]
            if number not in known:
                pixels = images.decode(path.read_bytes())
                known[number] = (at, *pixels.shape[:2])
                at += file.write(pixels.tobytes())
            places.append(known[number])
    return np.memmap(place, np.uint8, "r"), places


PEERS: dict[str, Callable[..., Iterable[Any]]] = {
    "timm": open_timm,
    "torchvision": open_torchvision,
    "webdataset": open_webdataset,
    "numpy": open_numpy,
    "dali": open_dali,
}
MODULES = {"dali": "nvidia.dali"}


def choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(those that are installed, those that are not). Raises UserError for a name that is no peer."""
    wanted = list(names)
    for name in wanted:
        if name not in PEERS:
            raise UserError(f"--vs {name}: no such loader.{nearest(name, PEERS)} Known: {', '.join(PEERS)}.")
    there = [name for name in wanted if _installed(MODULES.get(name, name))]
    return there, [name for name in wanted if name not in there]


class _Repeated:
    """Something that can be iterated again and again."""

    def __init__(self, make: Callable[[], Iterator[Any]]):
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


def _transform(crop: KeyedCrop, evaluation: bool) -> Any:
    from torchvision import transforms

    if evaluation:
        return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIZE), transforms.PILToTensor()])
    cropping: Any = transforms.RandomResizedCrop(SIZE)
    cropping.get_params = crop
    return transforms.Compose([cropping, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False
