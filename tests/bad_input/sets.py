# ruff: noqa: E501  (a paragraph is longer than a line)
"""Bad data sets and images: folders that are not as they should be."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bad_input.harness import Case, Outcome, Place, folder_set, members, shard

NO_IMAGE = b"this is no image"


def _set(place: Place, path: str = "") -> Path:
    found = place.folder / "set" / path
    found.mkdir(parents=True)
    return found


def _no_root(place: Place) -> Outcome:
    return place.cli("train", "imagenet_resnet50", "--run", "{dir}/run")


def _root_is_a_file(place: Place) -> Outcome:
    (place.folder / "set").write_text("")
    return place.pictures()


def _empty(path: str, *argv: str):
    def do(place: Place) -> Outcome:
        _set(place, path)
        return (place.shards if "shards" in argv else place.pictures)(*[a for a in argv if a != "shards"])

    return do


def _class_without_images(place: Place) -> Outcome:
    folder_set(place)
    (place.folder / "set/train/emu").mkdir()
    return place.pictures("model.classes=3")


def _other_classes(place: Place) -> Outcome:
    folder_set(place)
    folder_set(place, "val", ("cat", "emu"))
    return place.pictures()


def _eval_that_is_not_there(place: Place) -> Outcome:
    folder_set(place)
    return place.pictures("data.eval=tset")


def _classes(place: Place) -> Outcome:
    folder_set(place)
    return place.pictures("model.classes=7")


def _dangling(place: Place) -> Outcome:
    (folder_set(place) / "cat" / "9.jpg").symlink_to("gone.jpg")
    return place.pictures()


def _pipe(place: Place) -> Outcome:
    os.mkfifo(folder_set(place) / "cat" / "9.jpg")
    return place.pictures()


def _sizes(place: Place) -> Outcome:
    folder_set(place)
    return place.pictures("data.augment=[{name: pad_crop}]")


def _small_evaluation(place: Place) -> Outcome:
    folder_set(place)
    folder_set(place, "val", count=2)
    return place.pictures("resolution.eval_resize=null")


def _one_undecodable(place: Place) -> Outcome:
    (folder_set(place) / "cat" / "3.jpg").write_bytes(NO_IMAGE)
    return place.pictures("length=4st", "data.shuffle=false")


def _undecodable_evaluation(place: Place) -> Outcome:
    folder_set(place)
    (folder_set(place, "val", count=3) / "cat" / "1.jpg").write_bytes(NO_IMAGE)
    return place.pictures()


def _many_undecodable(place: Place) -> Outcome:
    root = folder_set(place)
    for name in ("cat/0", "cat/2", "dog/1", "dog/3"):
        (root / f"{name}.jpg").write_bytes(NO_IMAGE)
    return place.pictures("length=30st", "data.shuffle=false")


def _all_undecodable(place: Place) -> Outcome:
    root = folder_set(place, count=9)
    for path in root.glob("*/*.jpg"):
        path.write_bytes(NO_IMAGE)
    return place.pictures("data.shuffle=false")


def _pattern(pattern: str):
    def do(place: Place) -> Outcome:
        shard(place, members(12))
        return place.shards(f"data.train={pattern}")

    return do


ROOTS = [
    Case(
        "data.root is missing",
        "data.root is not set: data.name=webdataset needs the folder of the data set. Give data.root=FOLDER on the command line, or write it into the site file.",
        2,
        "Give data.root=FOLDER, or write it into the site file.",
        _no_root,
    ),
    Case(
        "data.root does not exist",
        "data.root=set: there is no such folder. Name the folder of the data set.",
        2,
        "Correct the path.",
        lambda place: place.pictures(),
    ),
    Case(
        "data.root is a file",
        "data.root=set is a file. Name the folder of the data set.",
        2,
        "Name the folder.",
        _root_is_a_file,
    ),
    Case(
        "The folder of shards is empty",
        "No file of set matches data.train='train-*.tar'. Correct the pattern, or data.root; for a folder of images a class use data.name=folder.",
        2,
        "Correct data.root or data.train.",
        _empty("", "shards"),
    ),
    Case(
        "The folder of images is empty",
        "set/train does not exist. A folder set is data.root/train/class/image.jpg; name the folder that holds the classes with data.train (data.train=. for data.root itself).",
        2,
        "Correct data.root or data.train.",
        _empty(""),
    ),
    Case(
        "The folder of classes is empty",
        "set/train has no class folders. A folder set is FOLDER/class/image.jpg, one folder a class; for tar shards use data.name=webdataset.",
        2,
        "Put a folder a class into it.",
        _empty("train"),
    ),
    Case(
        "A class has no images",
        "set/train/emu holds no images (.jpg, .jpeg, .png, .bmp, .webp, .ppm, .pgm, .tif, .tiff), so its class would have none. Add images or remove the folder.",
        2,
        "Add images, or remove the folder.",
        _class_without_images,
    ),
    Case(
        "The evaluation set has other classes",
        "set/val and set/train must have the same class folders, since a label is a folder's number: dog, emu are in one only.",
        2,
        "Make the folders the same, or set data.eval=null.",
        _other_classes,
    ),
    Case(
        "An evaluation set is named that is not there",
        "Nothing in set matches data.eval='tset'. Correct it, or set data.eval=null to evaluate on nothing.",
        2,
        "Correct the name, or set data.eval=null.",
        _eval_that_is_not_there,
    ),
    Case(
        "model.classes is not the number of class folders",
        "model.classes=7, but set/train has 2 class folders. Set model.classes=2.",
        2,
        "Set model.classes as said.",
        _classes,
    ),
    Case(
        "A pattern has an open brace",
        "The pattern 'train-{000..003.tar' has a brace without its other half.",
        2,
        "Close it.",
        _pattern("train-{000..003.tar"),
    ),
    Case(
        "A pattern lists a shard that is not there",
        "set/train-001.tar is missing: 'train-{000..001}.tar' lists it. Restore it, or correct the pattern.",
        1,
        "Restore the shard, or correct the pattern.",
        _pattern("train-{000..001}.tar"),
    ),
    Case(
        "A pattern lists a billion files",
        "The pattern 'train-{000000000..999999999}.tar' lists more than 1,000,000 files. Use * where all of them are meant.",
        2,
        "Use a *.",
        _pattern("train-{000000000..999999999}.tar"),
    ),
    Case(
        "A pattern leaves data.root",
        "The pattern '../elsewhere/*.tar' leaves set. Name shards below that folder, or another data.root.",
        2,
        "Set data.root to a folder above.",
        _pattern("../elsewhere/*.tar"),
    ),
]
IMAGES = [
    Case(
        "Images of different sizes and no step that resizes them",
        "An image is 20 x 16 pixels after its augmentations, but the resolution is 8: images of a batch have one size. Put a resizing step into data.augment (random_resized_crop, or resize and centre_crop; resolution.eval_resize for evaluation), or set resolution to the size of the images. [sample 0 (cat/0.jpg) of cat]",
        2,
        "Add random_resized_crop, or resize and centre_crop.",
        _sizes,
    ),
    Case(
        "Evaluation images are not of the size of the crop",
        "An image is 20 x 16 pixels after its augmentations, but the resolution is 8: images of a batch have one size. Put a resizing step into data.augment (random_resized_crop, or resize and centre_crop; resolution.eval_resize for evaluation), or set resolution to the size of the images. [sample 0 (cat/0.jpg) of cat]",
        2,
        "Set resolution.eval_resize.",
        _small_evaluation,
    ),
    Case(
        "An image cannot be decoded",
        "step 1: sample 3 (cat/3.jpg) of cat replaced by sample 4: cannot be decoded: no image format that PIL knows",
        0,
        "Nothing: the next one takes its place, and bad_samples.jsonl names it. Repair it when you can.",
        _one_undecodable,
    ),
    Case(
        "An image of the evaluation set cannot be decoded",
        "evaluation: sample 1 (cat/1.jpg) of cat left out: cannot be decoded: no image format that PIL knows",
        0,
        "Nothing: it is left out and counted; eval/count says how many were used.",
        _undecodable_evaluation,
    ),
    Case(
        "More images than the budget cannot be decoded",
        "Too many bad samples: 12 of 44 had to be replaced; data.max_bad=0.0001 allows 10. The last was sample 3 (dog/3.jpg) of dog: cannot be decoded: no image format that PIL knows. Repair the data, or raise data.max_bad.",
        1,
        "Repair them, or raise data.max_bad.",
        _many_undecodable,
    ),
    Case(
        "No image can be decoded",
        "No usable sample: sample 0 (cat/0.jpg) of cat: cannot be decoded: no image format that PIL knows; and the 8 samples after it are bad too. Restore cat from its origin, or leave it out of the data set.",
        1,
        "Restore the data.",
        _all_undecodable,
    ),
    Case(
        "A file of a class folder is a broken link",
        "set/train/cat/9.jpg cannot be read: No such file or directory. Restore it, or move it away.",
        1,
        "Restore it, or move it away.",
        _dangling,
    ),
    Case(
        "A pipe is named like an image",
        "set/train/cat/9.jpg is named like an image and is no file. Move it away.",
        1,
        "Move it away.",
        _pipe,
    ),
]
