"""Which keys define a run, and which only say where it happens."""

_SECTIONS = ("parallel", "track", "profile", "expect")
_KEYS = (
    "batch.micro",
    "data.threads",
    "data.processes",
    "data.root",
    "data.cache",
    "data.cache_bytes",
    "data.index",
    "data.mode",
    "checkpoint.every",
    "checkpoint.keep",
)


def is_placement(key: str) -> bool:
    """Whether a dotted key may change when a run goes on: layout, reporting and where the data lies.

    Everything else defines the run.
    """
    return key in _KEYS or key.split(".")[0] in _SECTIONS
