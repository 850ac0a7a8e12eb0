"""The data section: where samples come from and how they are augmented."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from restrain.recipe.base import AsTuple, Auto, NonNegative, Positive, PositiveFloat, Section, Threads, Unit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PACKAGE_NAME = r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$"
Channels = Annotated[tuple[Unit, ...], AsTuple, Field(min_length=1)]
Scales = Annotated[tuple[Annotated[float, Field(gt=0)], ...], AsTuple, Field(min_length=1)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AsTuple]


class RandomResizedCrop(Section):
    """A random part of the image, resized to `resolution.train` (Szegedy et al. 2015)."""

    name: Literal["random_resized_crop"]
    scale: Range = Field(default=(0.08, 1.0), description="Smallest and largest share of the image's area.")
    ratio: Range = Field(default=(3 / 4, 4 / 3), description="Narrowest and widest aspect ratio, width / height.")
    interpolation: Literal["bilinear", "bicubic", "random"] = Field(
        default="bilinear", description="Kernel of the resizing; random: either, drawn for each image (timm's default)."
    )


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


class RandomShortSide(Section):
    """Resize the shorter side to a random length, the aspect ratio kept: scale augmentation (He et al. 2015, section
    3.4; Simonyan and Zisserman 2014)."""

    name: Literal["random_short_side"]
    sizes: Annotated[tuple[Positive, Positive], AsTuple] = Field(
        default=(256, 480), description="Smallest and largest length in pixels, both included."
    )


class RandomCrop(Section):
    """A square at a random place."""

    name: Literal["random_crop"]
    size: Positive = Field(description="Pixels of a side.")


class CentreCrop(Section):
    """The square in the middle."""

    name: Literal["centre_crop"]
    size: Positive = Field(description="Pixels of a side.")


class RandAugment(Section):
    """`ops` operations drawn from a set, all at one magnitude (Cubuk et al. 2020, arXiv:1909.13719).

    `policy` is timm's short form (`rand-m7-mstd0.5-inc1`), whose operations and magnitudes it then takes; without it
    the operations are torchvision's.
    """

    name: Literal["rand_augment"]
    policy: str | None = Field(
        default=None, description="timm's form, such as rand-m9-mstd0.5-inc1; null: torchvision's operations."
    )
    ops: Positive = Field(default=2, description="Operations an image (with `policy`: its n).")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        default=9, description="Strength, of 30 (with `policy`: its m, of 10)."
    )


class TrivialAugment(Section):
    """One operation at a uniform strength, wide ranges (Mueller and Hutter 2021, arXiv:2103.10158)."""

    name: Literal["trivial_augment"]


class AutoAugment(Section):
    """One of 25 learned pairs of operations (Cubuk et al. 2019, arXiv:1805.09501)."""

    name: Literal["auto_augment"]
    policy: Literal["imagenet", "cifar10", "svhn"] = Field(default="imagenet", description="Which learned policy.")


class ThreeAugment(Section):
    """Grey, solarised or blurred, one of the three (Touvron et al. 2022, DeiT III, arXiv:2204.07118, section 3)."""

    name: Literal["three_augment"]


class ColorJitter(Section):
    """Brightness, contrast, saturation and hue, each by a random factor, in random order; torchvision's."""

    name: Literal["color_jitter"]
    brightness: NonNegative = Field(default=0.0, description="Factors from 1 - b to 1 + b.")
    contrast: NonNegative = Field(default=0.0, description="Factors from 1 - c to 1 + c.")
    saturation: NonNegative = Field(default=0.0, description="Factors from 1 - s to 1 + s.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, description="Turn of the hue, of a whole circle.")


class Lighting(Section):
    """Colour moved along ImageNet's principal components (Krizhevsky et al. 2012, section 4.1)."""

    name: Literal["lighting"]
    std: PositiveFloat = Field(default=0.1, description="Standard deviation of the shares, one a component.")


class RandomErasing(Section):
    """A random rectangle erased (Zhong et al. 2020, arXiv:1708.04896); last in the list."""

    name: Literal["random_erasing"]
    p: Unit = Field(default=0.25, description="Probability.")
    scale: Range = Field(default=(0.02, 1 / 3), description="Smallest and largest share of the image's area.")
    ratio: Range = Field(default=(0.3, 10 / 3), description="Narrowest and widest aspect ratio.")
    fill: Literal["mean", "noise"] = Field(
        default="mean", description="mean: `data.mean`, 0 once normalised; noise: normal, one draw a pixel and channel."
    )


Augmentation = Annotated[
    RandomResizedCrop
    | Flip
    | PadCrop
    | Shift
    | Resize
    | RandomShortSide
    | RandomCrop
    | CentreCrop
    | RandAugment
    | TrivialAugment
    | AutoAugment
    | ThreeAugment
    | ColorJitter
    | Lighting
    | RandomErasing,
    Field(discriminator="name"),
]


class _Data(Section):
    kind: ClassVar[str] = "images"
    context: ClassVar[int] = 0  # code for tokens asks

    augment: Annotated[tuple[Augmentation, ...], AsTuple] = Field(
        default=(), description="Augmentations of training images, in this order; each is a pure function of its key."
    )
    repeats: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1,
        description="Repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335): copies of an image in a step, each "
        "augmented on its own, in different groups. An epoch keeps its length and shows 1 / repeats of the images.",
    )
    threads: Auto | Threads = Field(
        default="auto", description="Threads that read and decode, a process. Changes no result."
    )
    processes: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="Processes that read, decode and augment training images in place of the threads, for what holds "
        "Python's lock: stages of one's own, some operations. 0: threads. Changes no result.",
    )
    decode: Literal["auto", "nvimgcodec", "torchvision", "pil", "gpu"] = Field(
        default="auto",
        description="Which library decodes images; auto: the first of nvimgcodec, torchvision and pil that works. gpu: "
        "nvimgcodec on the GPU, for training with a random resized crop and flips alone. A run keeps to one: another "
        "needs `--allow data.decode`.",
    )
    lanes: Auto | Positive = Field(
        default="auto", description="Shards read side by side; part of the order of samples."
    )
    window: Auto | Positive = Field(default="auto", description="Samples of a lane that are shuffled together.")
    shuffle: bool = Field(default=True, description="Another order each epoch; false: the order of the files.")
    max_bad: Unit = Field(
        default=1e-4,
        description="Share of samples that may be undecodable, each replaced by another, before the run stops.",
    )
    cache: str | None = Field(
        default=None,
        description="Folder for the index of a set that cannot be written to, and for shards of a remote root.",
    )


class _Photographs(_Data):
    """Sets of image files: the defaults are those of ImageNet's photographs."""

    root: str | None = Field(
        default=None,
        description="Folder of the set, or for shards http://, https://, s3:// or gs://. Usually from the site file or "
        "the command line.",
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
    mode: Literal["shards", "range", "stream"] = Field(
        default="shards",
        description="With a remote root: fetch whole shards into the cache, or only the samples that are read. stream: "
        "train on what has no index (.tar.gz, pipe:), shards drawn with replacement; the order is not exact then.",
    )
    index: str | None = Field(
        default=None, description="Folder with the index of a remote set that has none beside its shards."
    )
    samples_per_epoch: Positive | None = Field(
        default=None, description="With `mode: stream`: what is to count as an epoch, since nobody knows the number."
    )
    allow_pipe: bool = Field(
        default=False, description="With `mode: stream`: `train` may be pipe:COMMAND, which a shell runs."
    )
    stages: Annotated[tuple[Annotated[str, Field(pattern=PACKAGE_NAME)], ...], AsTuple] = Field(
        default=(),
        description="Webdataset stages for each sample before its image and label are taken, in this order: "
        "PACKAGE/NAME of entry points of the group `restrain.stages`. One sample in, one out.",
    )
    cache_bytes: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(MB|GB|TB)$")] | None = Field(
        default=None, description="Bound of the cache of a remote root, such as 200GB; null: none."
    )


class Package(_Photographs):
    """A set that an installed package reads: an entry point of the group `restrain.data`."""

    name: Literal["package"]
    set: Annotated[str, Field(pattern=PACKAGE_NAME)] = Field(description="PACKAGE/NAME of the entry point.")
    train: str = Field(default="train", description="What the package is asked for to train on.")
    eval: str | None = Field(default="val", description="What it is asked for to evaluate on; null: nothing.")


class Digits(_Data):
    """1,797 handwritten digits of 8 x 8 pixels from scikit-learn, 360 of them held out: nothing to download."""

    name: Literal["digits"]
    mean: Channels = Field(default=(0.3053,), description="Mean of the channel, pixels being 0 to 1.")
    std: Scales = Field(default=(0.3761,), description="Standard deviation of the channel, pixels being 0 to 1.")


class _Text(Section):
    """What sets of tokens share."""

    kind: ClassVar[str] = "tokens"

    threads: Auto | Threads = Field(default="auto", description="Threads that read, a process. Changes no result.")
    lanes: Auto | Positive = Field(
        default="auto", description="Shards read side by side; part of the order of windows."
    )
    window: Auto | Positive = Field(default="auto", description="Samples of a lane that are shuffled together.")
    shuffle: bool = Field(default=True, description="Another order each epoch; false: the order of the files.")

    # What code for images asks of every set. No keys: a recipe that names one is told that it is unknown.
    augment: ClassVar[tuple[Augmentation, ...]] = ()
    repeats: ClassVar[int] = 1
    processes: ClassVar[int] = 0
    decode: ClassVar[Literal["pil"]] = "pil"
    mean: ClassVar[Channels] = ()
    std: ClassVar[Scales] = ()


class Tokens(_Text):
    """Shards of tokens for language models, made by `restrain data tokens` and read in windows through a memory map."""

    name: Literal["tokens"]
    root: str | None = Field(
        default=None, description="Folder of the set. Usually from the site file or the command line."
    )
    train: str = Field(default="train-*.bin", description="Shards below `root` for training: * ? [] and {000..146}.")
    eval: str | None = Field(default="val-*.bin", description="Shards below `root` for evaluation; null: none.")
    context: Positive = Field(
        default=1024, description="Tokens that a model sees: a sample is a window of one more, for the targets."
    )
    documents: bool = Field(
        default=False, description="Give the number of each token's document too, for masks at their borders."
    )
    max_bad: Unit = Field(
        default=1e-4,
        description="Share of windows that may have rotted, each replaced by another, before the run stops.",
    )
    cache: str | None = Field(default=None, description="Folder for the index of a set that cannot be written to.")


class Text(_Text):
    """A plain text file as characters or bytes, in windows that begin at another place each epoch; held in memory."""

    name: Literal["text"]
    root: str | None = Field(
        default=None, description="Folder of the text. Usually from the site file or the command line."
    )
    train: str = Field(default="input.txt", description="File below `root`; its characters are the vocabulary.")
    eval: str | None = Field(
        default=None, description="File below `root` for evaluation; null: the end of `train` (`holdout`)."
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of `train`, its end, that is held out for evaluation where `eval` is null."
    )
    tokenizer: Literal["characters", "bytes"] = Field(
        default="characters", description="What a token is: a character of the text, or a byte of its UTF-8."
    )
    context: Positive = Field(
        default=256, description="Tokens that a model sees: a sample is a window of one more, for the targets."
    )

    documents: ClassVar[bool] = False
    max_bad: ClassVar[float] = 0.0
    cache: ClassVar[None] = None


class Sequences(_Text):
    """Made-up sequences that ask a recurrent network to remember (Hochreiter and Schmidhuber 1997)."""

    name: Literal["sequences"]
    task: Literal["adding", "copy"] = Field(
        description="adding: say the sum of the two numbers that were marked (task=regress). copy: say ten symbols "
        "again after a gap (task=language)."
    )
    length: Positive = Field(default=200, description="Steps of a sequence.")
    train: Annotated[int, Field(gt=0, le=2**40)] = Field(default=50_000, description="Sequences to train on.")
    eval: Annotated[int, Field(gt=0, le=2**40)] | None = Field(
        default=1000, description="Other sequences to evaluate on; null: none."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="Of the set: its sequences, whatever the seed of the run."
    )

    documents: ClassVar[bool] = False
    max_bad: ClassVar[float] = 0.0
    cache: ClassVar[None] = None

    @property
    def kind(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "tokens" if self.task == "copy" else "sequences"

    @property
    def context(self) -> int:
        """Tokens of a window of the copy problem."""
        return self.length


Data = Annotated[Folder | WebDataset | Package | Digits | Tokens | Text | Sequences, Field(discriminator="name")]
WITHOUT_ROOT = ("digits", "sequences")
"""Sets that are read from no folder."""
