"""What trying a hostile or mutated file led to: one row of the harnesses' tables."""

from typing import NamedTuple


class Result(NamedTuple):
    """What became of a file: "refused", "loaded", or what went wrong."""

    kind: str
    name: str
    outcome: str
    message: str
    seconds: float
    megabytes: float
