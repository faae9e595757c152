"""What a benchmark run found: one tree of plain values, to JSON and back; a number that is not known is None."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from lsm._texts import describe_error, printable
from lsm.bench.workloads import Case

FORMAT = 3
DISTURBED_PROCESSORS = 0.1  # what the system itself needs is less


def plural(n: int, word: str) -> str:
    """'1 thread', '2 threads'."""
    return f"{n} {word}{'' if n == 1 else 's'}"


@dataclass
class Limit:
    """What the machine itself takes for the bytes of a row."""

    name: str  # "streaming copy", "streaming add", ...
    us: float
    p20_us: float
    p80_us: float
    gb_s: float


@dataclass
class Entry:
    """One way to call one implementation, in one row."""

    name: str  # "lsm cython", "torch", ...
    library: str
    way: str  # "out": into a preallocated result; "new"
    call: str
    backend: str | None = None
    us: float | None = None
    samples_us: list[float] = field(default_factory=list)
    ratio: float | None = None  # its time over the reference's within a round
    p20_ratio: float | None = None
    p80_ratio: float | None = None
    gb_s: float | None = None
    share: float | None = None  # of the limit
    first_call_ms: float | None = None
    max_ulp: float | None = None  # in ulps of the exact value of each element
    max_frame_ulp: float | None = None  # in ulps of the largest of each frame
    max_abs_error: float | None = None
    bound_ulp: float | None = None
    bound_is_declared: bool = False  # then max_ulp is held to it, else, for peers declare none, max_frame_ulp
    is_right: bool = False
    extra_bytes: int | None = None
    error: str | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether it may be compared with others: it was timed to the end, and its result is right."""
        return self.us is not None and self.error is None and self.is_right

    @property
    def label(self) -> str:
        """The implementation, and how it is called where that is not the best way."""
        return self.name + (", new result" if self.way == "new" else "")


@dataclass
class Row:
    """One case, by every implementation."""

    case: Case
    threads: int
    device: str
    bytes: int  # each input read once, each result written once
    limit: Limit | None = None
    n_checked_frames: int = 0  # so many were held to the exact values
    others: float | None = None  # processors in use by the rest of the machine meanwhile
    implementations: list[Entry] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # implementation: reason

    @property
    def label(self) -> str:
        """A line that names it."""
        return f"{self.case.label}, {plural(self.threads, 'thread')}" + f", on {self.device}" * (self.device != "cpu")

    def best_first(self) -> list[Entry]:
        """The ranked ones, then those whose result is not right, then those that raised."""
        by_time = sorted(self.implementations, key=lambda entry: (entry.ratio or math.inf, entry.us or math.inf))
        return sorted(by_time, key=lambda entry: (entry.error is not None, not entry.is_ranked))

    def is_disturbed(self, n_processors: int) -> bool:
        """Whether others used processors meanwhile that the row's threads needed."""
        needed = min(self.threads, n_processors)
        return self.others is not None and self.others + needed > n_processors + DISTURBED_PROCESSORS


def reference(rows: Iterable[Row]) -> Entry | None:
    """What the ratios are relative to: the first backend of lsm, writing into a given result if it can."""
    entries = [e for row in rows for e in row.implementations if e.library == "lsm" and e.backend]
    return next((e for e in entries if e.way == "out"), entries[0] if entries else None)


@dataclass
class Header:
    """What was measured on, and with."""

    processor: str
    n_processors: int  # that the process might use
    system: str
    date: str
    caches: dict[str, int]  # bytes
    gpu: str | None
    versions: dict[str, str]
    commit: str | None
    command: str
    wanted: list[str]  # parts of names of implementations; empty for all
    threads: list[int]
    rounds: int
    environment: dict[str, str]
    pools: list[str]  # of threads, whose size was set and verified


@dataclass
class Result:
    """A whole run."""

    header: Header
    absent: dict[str, str] = field(default_factory=dict)  # implementation: reason, for the whole run
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of a file that `from_json` reads."""
        tree = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)  # an infinity, or none at all
        return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def from_json(text: str | bytes, name: str = "the file") -> Result:
    """Read what `Result.to_json` wrote, or raise a ValueError that says why not."""
    try:
        tree = json.loads(text, object_pairs_hook=_printable)
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']!r}; this lsm reads {FORMAT}: measure again, or use its lsm")
        for row in tree["rows"]:
            case: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row["case"].items()}
            row["case"] = Case(**case)
            row["limit"] = row["limit"] and Limit(**row["limit"])
            row["implementations"] = [Entry(**entry) for entry in row["implementations"]]
        rows = [Row(**row) for row in tree.pop("rows")]
        return Result(header=Header(**tree.pop("header")), rows=rows, **tree)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name!r}: {describe_error(error)}; accepted: what `lsm bench --json` wrote") from None


def _printable(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of an object, in whose texts are no control characters, which a terminal would obey."""
    return {printable(key): printable(item) if isinstance(item, str) else item for key, item in pairs}
