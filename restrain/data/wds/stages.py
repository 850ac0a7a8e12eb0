"""Webdataset stages on single samples: one dict in, one out. A stage that drops or raises makes a bad sample.

A stage is what webdataset calls one: a callable that takes an iterable of samples and gives one (``wds.decode(...)``,
``wds.map(f)``, ``wds.rename(...)``; webdataset's ``webdataset/filters.py``). No torch and no webdataset here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from restrain import packages
from restrain.errors import UserError

Stage = Callable[[Any], Any]

_ORDER = "would change the order, which is a function of seed and position so that a run can go on at any step"
_NUMBER = "would change the number of samples, which all ranks know before the first read"
_WORLD = "would split the samples once more: Restrain has dealt them out to the ranks already"
_SOURCE = "makes samples, it does not take them: Restrain reads the shards itself, through their index"
REFUSED = {
    **dict.fromkeys(("shuffle", "detshuffle", "randomized", "randommix"), _ORDER),
    **dict.fromkeys(
        (
            "select",
            "slice",
            "islice",
            "rsample",
            "batched",
            "unbatched",
            "unlisted",
            "listed",
            "repeatedly",
            "repeat",
            "with_epoch",
            "with_length",
            "resampled",
            "roundrobin",
            "cached",
            "lmdbcached",
        ),
        _NUMBER,
    ),
    **dict.fromkeys(("split_by_node", "split_by_worker", "single_node_only", "nodesplitter"), _WORLD),
    **dict.fromkeys(
        (
            "tarfile_to_samples",
            "tarfile_samples",
            "resampledshards",
            "simpleshardlist",
            "multishardsample",
            "webdataset",
            "fluiddataset",
            "datapipeline",
            "webloader",
            "fluidwrapper",
            "indexedsource",
        ),
        _SOURCE,
    ),
}
# What webdataset's decoders unpickle, compressed or not: content of the data that would be run as code.
PICKLED = re.compile(r"(^|\.)(pyd|pickle|pkl|pth)(\.gz|\.bz2|\.xz)?$")


class StageError(Exception):
    """The stages did not give one sample for one sample."""


def name_of(stage: Any) -> str:
    """What webdataset's users call it: ``shuffle`` for ``wds.shuffle(1000)``; a function's or a class's own name."""
    inner = getattr(stage, "f", stage)  # webdataset's FilterFunction keeps the function in ``f``
    found = getattr(inner, "__name__", None) or type(stage).__name__
    return found.lstrip("_").removesuffix("_")


def check_stages(stages: Sequence[Any], names: Sequence[str] | None = None) -> None:
    """Raises UserError for what is no stage, or one that cannot be one-to-one. names: what the recipe calls them."""
    for stage, called in zip(stages, names or [name_of(one) for one in stages], strict=True):
        name = name_of(stage)
        reason = REFUSED.get(name.lower())
        if reason is None and not isinstance(stage, type):
            reason = next((r for r in (REFUSED.get(c.__name__.lower()) for c in type(stage).__mro__) if r), None)
        if reason is not None:
            raise UserError(f"data.stages: {called} ({name}) cannot be a stage here: it {reason}. Leave it out.")
        if not callable(stage):
            raise UserError(
                f"data.stages: {called} is {type(stage).__name__}, not a webdataset stage. Give what wds.map(f), "
                f"wds.decode(...) or wds.rename(...) make."
            )
        if isinstance(stage, type) or type(stage).__name__ == "RestCurried":
            raise UserError(f"data.stages: {called} is not called yet. A stage is what wds.{name}(...) makes: call it.")


def script_names(stages: Sequence[Any]) -> list[str]:
    """What a recipe calls the stages of a script: ``script/NAME``, a second one of that name ``script/NAME-2``."""
    seen: Counter[str] = Counter()
    found = []
    for stage in stages:
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", name_of(stage))
        seen[name] += 1
        found.append(f"script/{name}" + (f"-{seen[name]}" if seen[name] > 1 else ""))
    return found


def find_stages(names: Sequence[str], given: Sequence[Stage] = ()) -> list[Stage]:
    """The stages that a recipe's ``data.stages`` name. given: those of a script, which ``script/NAME`` stand for.

    Raises UserError for names that no installed package declares, and for what :func:`check_stages` refuses.
    """
    script = dict(zip(script_names(given), given, strict=True))
    found = []
    for name in names:
        if not name.startswith("script/"):
            found.append(packages.find("data.stages", name))
        elif name in script:
            found.append(script[name])
        else:
            raise UserError(
                f"data.stages has {name}: its code is in the script that started the run, and nowhere else. Run that "
                f"script again, with the same run=, to go on with it."
            )
    check_stages(found, names)
    return found


def apply(stages: Sequence[Stage], sample: dict[str, Any]) -> Any:
    """The one sample that the stages make of one. Raises StageError that says what they did instead."""
    samples: Iterable[Any] = iter([{name: data for name, data in sample.items() if not PICKLED.search(name)}])
    try:
        for stage in stages:
            samples = stage(samples)
            if isinstance(samples, (dict, bytes, str)) or not isinstance(samples, Iterable):
                raise UserError(
                    f"data.stages: {name_of(stage)} gave {type(samples).__name__}, not samples. A stage takes an "
                    f"iterable of samples and gives one; wds.map(f) makes one of a function of a single sample."
                )
        made = list(samples)
    except UserError:
        raise
    except Exception as error:  # anything may happen in code that is not ours
        said = " ".join(str(_cause(error)).split())[:200]
        raise StageError(f"the stages raised {type(_cause(error)).__name__}: {said}") from error
    if len(made) != 1:
        raise StageError(f"the stages gave {len(made)} samples for it, not one")
    return made[0]


def _cause(error: BaseException) -> BaseException:
    """Webdataset's decoder wraps the error that says something."""
    return error.__cause__ if type(error).__name__ == "DecodingError" and error.__cause__ is not None else error
