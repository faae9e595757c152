"""What a benchmark run found: one tree of plain values, to JSON and back.

Every number that is not known, or not finite, is None: JSON has no infinity and no NaN.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

FORMAT = 1
LATER = {"is_later": True}  # of a field that came after the first files of the format, which lack it


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
    """One way to call one contestant, in one row.

    The errors are None where they were not measured, and where they are not finite; then `is_right` is False.
    """

    name: str  # "lsm cython", "torch", ...
    library: str
    way: str  # "out": into a preallocated result; "new"
    call: str
    backend: str | None = None
    us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    turns_us: list[float] = field(default_factory=list)
    ratio: float | None = None  # its time over the reference's within a turn
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


@dataclass
class Row:
    """One workload and operation, by every contestant."""

    workload: str
    op: str  # "forward", "backward", "forward+backward"
    dtype: str
    out_dtype: str
    data: str  # "logits", "peaked", "masked", "constant"
    shape: list[int]
    axis: int
    order: str
    threads: int
    device: str
    bytes: int  # each input read once, each result written once
    limit: Limit | None = None
    sweep: str | None = None  # "classes", "frames"
    n_frames: int = 0
    n_checked_frames: int = 0  # so many were held to the exact values
    others: float | None = None  # processors in use by the rest of the machine meanwhile
    contestants: list[Entry] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # contestant: reason


@dataclass
class Header:
    """What was measured on, and with."""

    processor: str
    n_processors: int  # that the process might use
    system: str
    date: str
    caches: dict[str, int]
    last_cache: int
    instruction_levels: dict[str, str]
    gpu: str | None
    versions: dict[str, str]
    commit: str | None
    command: str
    threads: list[int]
    rounds: int
    load_before: float | None
    environment: dict[str, str]
    openmp: list[str]  # the pools of threads whose size was set and verified
    n_cores: int | None = field(default=None, metadata=LATER)  # that the processors belong to


@dataclass
class Result:
    """A whole run."""

    header: Header
    absent: dict[str, str] = field(default_factory=dict)  # contestant: reason, for the whole run
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of a file that `from_json` reads."""
        return json.dumps(_finite(asdict(self)), indent=1, allow_nan=False) + "\n"


def from_json(text: str, name: str = "the file") -> Result:
    """Read what `Result.to_json` wrote.

    Raises
    ------
    ValueError
        It is not such a text; the message says where it differs, and `name` says which file it was.
    """
    try:
        tree = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({error}); accepted: what `lsm bench --json` wrote") from None
    if not isinstance(tree, dict) or "format" not in tree:
        raise ValueError(f"{name}: not the result of a benchmark run; accepted: what `lsm bench --json` wrote")
    if tree["format"] != FORMAT or isinstance(tree["format"], bool):
        raise ValueError(f"{name}: format {tree['format']!r}; this lsm reads {FORMAT}: measure anew, or use its lsm")
    result: Result = _built(Result, tree, f"{name}: result")
    return result


def load(file: Path) -> Result:
    """`from_json` of a file."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not text; accepted: what `lsm bench --json` wrote") from None
    return from_json(text, str(file))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(value: Any) -> Any:
    """The same with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _built(kind: Any, value: Any, where: str) -> Any:
    """The value as an object of the annotated kind, every part of it checked."""
    if isinstance(kind, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    origin = get_origin(kind) or kind
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_shown(value)}; it must be an object")
        hints = get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        missing = [f.name for f in fields(kind) if f.name not in value and not f.metadata.get("is_later")]
        if unknown or missing:
            raise ValueError(f"{where} lacks {missing or 'nothing'} and has {unknown or 'nothing'} beyond the format")
        return kind(**{key: _built(hints[key], item, f"{where}.{key}") for key, item in value.items()})  # type: ignore[operator]
    accepted: Any = (int, float) if origin is float else (origin,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and origin is not bool):
        raise ValueError(f"{where} is {_shown(value)}; it must be of type {origin.__name__}")
    items: Any = value
    if origin is list:
        (part,) = get_args(kind)
        return [_built(part, item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        _, part = get_args(kind)
        return {key: _built(part, item, f"{where}[{key!r}]") for key, item in items.items()}
    if origin is float and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; it must be finite or null")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
