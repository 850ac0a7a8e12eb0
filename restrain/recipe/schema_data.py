"""The data section: where samples come from and how they are augmented."""

from typing import Annotated, Literal

from pydantic import Field

from restrain.recipe.base import AsTuple, Auto, Positive, PositiveFloat, Section, Threads, Unit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Channels = Annotated[tuple[Unit, ...], AsTuple, Field(min_length=1)]
Scales = Annotated[tuple[Annotated[float, Field(gt=0)], ...], AsTuple, Field(min_length=1)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AsTuple]


class RandomResizedCrop(Section):
    """A random part of the image, resized to `resolution.train` (Szegedy et al. 2015)."""

    name: Literal["random_resized_crop"]
    scale: Range = Field(default=(0.08, 1.0), description="Smallest and largest share of the image's area.")
    ratio: Range = Field(default=(3 / 4, 4 / 3), description="Narrowest and widest aspect ratio, width / height.")


class Flip(Section):
    """Mirror left and right."""

    name: Literal["flip"]
    p: Unit = Field(default=0.5, description="Probability.")


class PadCrop(Section):
    """Pad each side with zeros, then crop at random to the old size (He et al. 2015, section 4.2)."""

    name: Literal["pad_crop"]
    padding: Positive = Field(default=4, description="Pixels on each side.")


class Shift(Section):
    """Move by a random whole number of pixels along each axis, zeros coming in."""

    name: Literal["shift"]
    pixels: Positive = Field(default=1, description="Largest move.")


class Resize(Section):
    """Resize the shorter side, the aspect ratio kept."""

    name: Literal["resize"]
    size: Positive = Field(description="Pixels of the shorter side.")


class CentreCrop(Section):
    """The square in the middle."""

    name: Literal["centre_crop"]
    size: Positive = Field(description="Pixels of a side.")


Augmentation = Annotated[RandomResizedCrop | Flip | PadCrop | Shift | Resize | CentreCrop, Field(discriminator="name")]


class _Data(Section):
    augment: Annotated[tuple[Augmentation, ...], AsTuple] = Field(
        default=(), description="Augmentations of training images, in this order; each is a pure function of its key."
    )
    repeats: Annotated[int, Field(ge=1, le=1)] = Field(default=1, description="How often an epoch shows each image.")
    threads: Auto | Threads = Field(
        default="auto", description="Threads that read and decode, a process. Changes no result."
    )
    decode: Literal["auto", "pil", "torchvision"] = Field(default="auto", description="Which library decodes images.")
    lanes: Auto | Positive = Field(
        default="auto", description="Shards read side by side; part of the order of samples."
    )
    window: Auto | Positive = Field(default="auto", description="Samples of a lane that are shuffled together.")
    shuffle: bool = Field(default=True, description="Another order each epoch; false: the order of the files.")
    max_bad: Unit = Field(
        default=1e-4,
        description="Share of samples that may be undecodable, each replaced by another, before the run stops.",
    )
    cache: str | None = Field(default=None, description="Folder for the index of a set that cannot be written to.")


class _Photographs(_Data):
    """Sets of image files: the defaults are those of ImageNet's photographs."""

    root: str | None = Field(
        default=None, description="Folder of the set. Usually from the site file or the command line."
    )
    augment: Annotated[tuple[Augmentation, ...], AsTuple] = Field(
        default=(RandomResizedCrop(name="random_resized_crop"), Flip(name="flip")),
        description="Augmentations of training images, in this order; each is a pure function of its key.",
    )
    mean: Channels = Field(default=IMAGENET_MEAN, description="Mean of each channel, pixels being 0 to 1.")
    std: Scales = Field(default=IMAGENET_STD, description="Standard deviation of each channel, pixels being 0 to 1.")


class Folder(_Photographs):
    """`train/class/image.jpg`: one folder a class."""

    name: Literal["folder"]
    train: str = Field(default="train", description="Folder below `root` with the training classes.")
    eval: str | None = Field(default="val", description="Folder below `root` with the evaluation classes; null: none.")


class WebDataset(_Photographs):
    """Tar shards of images with their labels (`.cls` or `.json`), read in place through a side index."""

    name: Literal["webdataset"]
    train: str = Field(default="train-*.tar", description="Shards below `root` for training: * ? [] and {000..146}.")
    eval: str | None = Field(default="val-*.tar", description="Shards below `root` for evaluation; null: none.")


class Digits(_Data):
    """1,797 handwritten digits of 8 x 8 pixels from scikit-learn, 360 of them held out: nothing to download."""

    name: Literal["digits"]
    mean: Channels = Field(default=(0.3053,), description="Mean of the channel, pixels being 0 to 1.")
    std: Scales = Field(default=(0.3761,), description="Standard deviation of the channel, pixels being 0 to 1.")


Data = Annotated[Folder | WebDataset | Digits, Field(discriminator="name")]
