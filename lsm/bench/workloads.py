"""Named workloads that users have, and the cases of a run: a workload, a dtype, an operation, a kind of data."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from lsm._check import at_least_float32
from lsm._operations import DERIVED
from lsm.bench.options import DTYPES, KINDS_OF_DATA, MAP, OPS, SCALE, OptionError, Options

FORWARD, BACKWARD, BOTH = OPS


class Signature(NamedTuple):
    """What the function of an operation is given beside the axis, and gives, by the names of `Data`."""

    given: str
    result: str  # "out": as many numbers as x has; "total": one for each frame; "best": k for each
    has_out: bool = True  # whether that of lsm writes into a given result
    limit: str = ""  # what the machine itself does with as many bytes


_COPY, _ADD = "streaming copy", "streaming add"
SIGNATURES = {
    FORWARD: Signature("x", "out", limit=_COPY),
    BACKWARD: Signature("dy, y", "out", limit=_ADD),
    BOTH: Signature("x, dy", "out", limit="streaming copy and add"),  # which writes y_out as well
    "softmax": Signature("x", "out", limit=_COPY),
    "softmax_backward": Signature("dy, p", "out", limit=_ADD),
    "logsumexp": Signature("x", "total"),
    "take_log_softmax": Signature("x, labels", "total"),
    "top_k_log_softmax": Signature("x, k", "best", has_out=False),
    "cross_entropy": Signature("x, labels", "total", has_out=False),
    "cross_entropy_value_and_grad": Signature("x, labels", "out", limit=_COPY),
    "entropy": Signature("x", "total", has_out=False),
    "kl_divergence": Signature("x, q", "total", has_out=False),
}


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    workload: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    out_dtype: str = ""  # that of x, if empty; another one is measured forward only
    order: str = "C"
    op: str = FORWARD
    data: str = "logits"
    k: int = 1  # of top-k
    chunks: tuple[int, ...] = ()  # in which Dask has it

    @property
    def result_dtype(self) -> str:
        """The dtype of the result."""
        dtype = self.out_dtype or self.dtype
        is_loss = SIGNATURES[self.op].result == "total" and self.op in DERIVED and DERIVED[self.op].is_loss
        return at_least_float32(dtype) if is_loss else dtype

    @property
    def n_classes(self) -> int:
        """The length of a frame."""
        return self.shape[self.axis]

    @property
    def inner(self) -> int:
        """How many numbers lie from one class of a frame to the next."""
        return math.prod(self.shape[self.axis :][1:])

    @property
    def n_frames(self) -> int:
        """How many frames x has."""
        return math.prod(self.shape) // self.n_classes

    @property
    def arrays(self) -> "Case":
        """The same for all operations on the same arrays."""
        return replace(self, op=FORWARD, k=1)

    @property
    def label(self) -> str:
        """A line that names it."""
        words = [self.workload, "x".join(map(str, self.shape))]
        words += [f"axis {self.axis}"] * (self.axis not in (-1, len(self.shape) - 1))
        words += ["Fortran order"] * (self.order == "F") + [self.dtype]
        words += [f"to {self.out_dtype}"] * bool(self.out_dtype)
        words += [f"in {'x'.join(map(str, self.chunks))}"] * bool(self.chunks)
        words += [self.data] * (self.data != "logits") + [f"k {self.k}"] * (self.op == "top_k_log_softmax")
        return " ".join(words) + f", {self.op}"


@dataclass(frozen=True)
class Workload(Case):
    """A shape that users have; it is in the named set, and of quick, usual and full in those that are larger."""

    dtypes: tuple[str, ...] = ("float32",)  # the quick set has the first, the full one all of DTYPES
    set: str = "quick"
    usual_ops: tuple[str, ...] = OPS
    quick_ops: tuple[str, ...] = (FORWARD,)
    ks: tuple[int, ...] = (1,)  # of top-k


# A decoder's frames of 32 characters; a recogniser's of 6,000 states; the next word for 64 texts; the words of whole
# texts; the pixels of an image; a million frames of ten classes and a single one; a mixture's 500 components; ten
# numbers; the scores of texts, and a step of training.
_LLM_DTYPES = ("float32", "float16", "bfloat16")
_FAMILY = ("softmax", "softmax_backward", "entropy", "kl_divergence")
_TOTAL, _GRAD, _SELECT = ("logsumexp",), ("cross_entropy_value_and_grad",), ("take_log_softmax", "top_k_log_softmax")
_LOSS = (*OPS, "cross_entropy")
WORKLOADS = (
    Workload("small", (32, 10), quick_ops=_LOSS, usual_ops=_LOSS),
    Workload("small", (10, 500), set="usual"),
    Workload("speech_frames", (1500, 32), usual_ops=OPS + _FAMILY, quick_ops=(FORWARD, *_FAMILY)),
    Workload("senones", (1000, 6000), quick_ops=(FORWARD, BACKWARD)),
    Workload("llm_step", (64, 128_256), quick_ops=OPS, dtypes=_LLM_DTYPES),
    Workload("llm_step", (1, 151_936), set="usual"),
    Workload("llm_eval", (256, 32_000), usual_ops=OPS + _SELECT, quick_ops=(FORWARD, *_SELECT), ks=(20,)),
    Workload("llm_eval", (256, 128_256), usual_ops=_SELECT, set="usual", ks=(1, 20)),
    Workload("llm_train", (64, 32_000), usual_ops=_GRAD, quick_ops=_GRAD),
    Workload("llm_train", (512, 128_256), usual_ops=_GRAD, set="usual", dtypes=("float32", "bfloat16")),
    Workload("llm_eval", (512, 32_000), set="usual", dtypes=_LLM_DTYPES),
    Workload("llm_eval", (4096, 50_257), set="full"),
    Workload("llm_eval", (512, 32_000), dtypes=("float16",), out_dtype="float32", set="full"),
    Workload("segmentation", (1, 21, 512, 512), 1, usual_ops=OPS + _GRAD, quick_ops=(FORWARD, *_GRAD)),
    Workload("segmentation", (8, 150, 128, 128), 1, set="full", usual_ops=OPS + _GRAD),
    Workload("rows", (500_000, 10)),
    Workload("rows", (1, 2**22)),
    Workload("rows", (1_000_000, 10), set="usual"),
    Workload("rows", (1, 2**24), set="usual"),
    Workload("mixture", (10_000, 500), dtypes=("float64",), usual_ops=OPS + _TOTAL, quick_ops=(FORWARD, *_TOTAL)),
    Workload("small", (10,), usual_ops=_TOTAL, quick_ops=_TOTAL),
    Workload("mixture", (100_000, 500), dtypes=("float64",), set="usual", usual_ops=OPS + _TOTAL),
    Workload("mixture", (100_000, 500), dtypes=("float64",), order="F", set="full", usual_ops=OPS + _TOTAL),
)
NESTED = ("quick", "usual", "full")  # each with all of those before it

_LLM = ((1, 151_936), (64, 128_256), (512, 32_000), (4096, 50_257))
_CPU = (
    *(("small", shape, -1) for shape in ((1, 10), (32, 10), (10, 500))),
    *(("frames", (1_000_000, n_classes), -1) for n_classes in (10, 32)),
    ("classifier", (1024, 1000), -1),
    *(("speech", shape, -1) for shape in ((1500, 32), (750, 5000), (1000, 6000))),
    ("giant", (1, 2**24), -1),
    *(("segmentation", shape, 1) for shape in ((1, 21, 512, 512), (8, 150, 128, 128))),
    ("columns", (50_000, 64), 0),
)

# Many frames of each length, few frames, the first axis, a middle one, fewer than 32 bytes side by side; and a call
# that is all launch.
_GPU_ELEMENTS = 2**26
_GPU_CLASSES = (10, 33, 100, 256, 1000, 1003, 4096, 4099, 16_384, 32_000, 50_257, 128_256, 262_144, 1_000_003, 2**24)
_GPU = (
    *(("rows", (_GPU_ELEMENTS // n, n), -1) for n in _GPU_CLASSES),
    *(("few", (8, n), -1) for n in (100, 1000, 32_000, 128_256, 1_000_003)),
    *(("columns", (n, _GPU_ELEMENTS // n), 0) for n in (10, 256, 1003, 2048, 4096, 6000, 8192, 32_000)),
    *(("images", (max(1, _GPU_ELEMENTS // (n * 2**16)), n, 256, 256), 1) for n in (21, 150, 1000)),
    ("narrow", (_GPU_ELEMENTS // 7000, 1000, 7), 1),
)

_SEPARATE = (FORWARD, BACKWARD)

# Cells of about as many elements, (outer, classes, inner); those that would have more are left out.
_MAP_CLASSES = (2, 3, 5, 10, 20, 40, 65, 130, 300, 1100, 12_000, 100_000)
_MAP_INNER = (1, 2, 5, 8, 13, 26, 40, 77, 200, 1000, 16_384)
_MAP_SHAPES = [(2_000_000 // (n * inner), n, inner) for n in _MAP_CLASSES for inner in _MAP_INNER]

SCALE_OPS = (FORWARD, "take_log_softmax", "logsumexp")
SETS_OF_THEIR_OWN = {
    "cpu": (
        *(Workload(*about, usual_ops=_SEPARATE) for about in _CPU),
        *(Workload("llm", shape, dtypes=_LLM_DTYPES, usual_ops=_SEPARATE) for shape in _LLM),
        *(Workload("llm", shape, dtypes=("float16",), out_dtype="float32") for shape in _LLM),
        *(Workload("mixture", (100_000, 500), dtypes=("float64",), order=o, usual_ops=_SEPARATE) for o in "CF"),
    ),
    "gpu": tuple(Workload(*about, dtypes=DTYPES, usual_ops=_SEPARATE) for about in _GPU),
    MAP: tuple(
        Workload(MAP, (outer, n, inner) if inner > 1 else (outer, n), 1 if inner > 1 else -1, usual_ops=_SEPARATE)
        for outer, n, inner in _MAP_SHAPES
        if outer
    ),
    SCALE: tuple(
        Workload(f"{cut}_in_chunks", (1024, 131_072), usual_ops=SCALE_OPS, chunks=chunks)
        for cut, chunks in (("frames", (64, 131_072)), ("classes", (256, 32_768)))
    ),
}
SWEEPS = {
    "classes": tuple(Workload("sweep_classes", (1, 10**power)) for power in range(1, 8)),
    "frames": tuple(Workload("sweep_frames", (10**power, 1000)) for power in range(6)),
}


def cases(options: Options) -> list[Case]:
    """What the options ask for, those on the same arrays one after the other."""
    found = []
    for w in _chosen(options):
        dtypes, ops = (w.dtypes[:1], w.quick_ops) if options.set == "quick" else (w.dtypes, w.usual_ops)
        if options.set == "full" and not (options.sweep or options.shape):
            dtypes = DTYPES
        dtypes, ops = options.dtype or dtypes, options.op or ((FORWARD,) if options.sweep else ops)
        if w.out_dtype:
            dtypes, ops = tuple({*w.dtypes} & {*dtypes}), tuple({FORWARD} & {*ops})
        about: dict[str, Any] = {field.name: getattr(w, field.name) for field in fields(Case)}
        found += [
            Case(**about | {"dtype": dtype, "data": data, "op": op, "k": k})
            for dtype in dtypes
            for data in options.data or (KINDS_OF_DATA[:4] if options.set == "full" else KINDS_OF_DATA[:1])
            for op in ops
            for k in (w.ks if op == "top_k_log_softmax" else (1,))
        ]
    return found


def _chosen(options: Options) -> tuple[Workload, ...]:
    """The workloads, or the sizes of a sweep, or one's own shape; an OptionError if there is no such workload."""
    if options.shape is not None:
        quarters = tuple(-(-n // 4) for n in options.shape) * (options.set == SCALE)
        return (Workload("own", options.shape, options.axis, quick_ops=OPS, chunks=quarters),)
    known = SETS_OF_THEIR_OWN.get(options.set)
    if options.sweep is not None:
        known = tuple(w for w in SWEEPS[options.sweep] if options.set != "quick" or math.prod(w.shape) <= 10**7)
    if known is None:
        known = tuple(w for w in WORKLOADS if NESTED.index(w.set) <= NESTED.index(options.set))
    for text in options.only:
        if not any(text in w.workload for w in known):
            names = ", ".join(dict.fromkeys(w.workload for w in known))
            raise OptionError("only", f"{text!r} matches none; accepted: {names}, or a part of a name")
    return tuple(w for w in known if not options.only or any(text in w.workload for text in options.only))
