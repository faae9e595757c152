"""Named workloads that users have, and the cases of a run: a workload, a dtype, an operation, a kind of data."""

import math
from dataclasses import dataclass, replace

from lsm.bench.options import DTYPES, KINDS_OF_DATA, OPS, SETS, OptionError, Options

FORWARD, BACKWARD, BOTH = OPS


@dataclass(frozen=True)
class Workload:
    """A shape that somebody has; it takes part in the named set, and those that are larger."""

    name: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    order: str = "C"
    set: str = "quick"
    ops: tuple[str, ...] = OPS
    quick_ops: tuple[str, ...] = (FORWARD,)
    more_dtypes: tuple[str, ...] = ()  # in the usual set too; the full one has all
    quick_dtypes: tuple[str, ...] = ()
    out_dtype: str = ""  # that of x, if empty
    sweep: str | None = None


# A decoder's frames of 32 characters; a recogniser's of 6,000 states; the next word for 64 texts; the words of whole
# texts; the pixels of an image; a million frames of ten classes and a single one; a mixture's 500 components.
WORKLOADS = (
    Workload("small", (32, 10), quick_ops=OPS),
    Workload("small", (10, 500), set="usual"),
    Workload("speech_frames", (1500, 32)),
    Workload("senones", (1000, 6000), quick_ops=(FORWARD, BACKWARD)),
    Workload("llm_step", (64, 128_256), quick_ops=OPS, more_dtypes=("float16", "bfloat16")),
    Workload("llm_step", (1, 151_936), set="usual"),
    Workload("llm_eval", (256, 32_000)),
    Workload("llm_eval", (512, 32_000), set="usual", more_dtypes=("float16", "bfloat16")),
    Workload("llm_eval", (4096, 50_257), set="full"),
    Workload("llm_eval", (512, 32_000), dtype="float16", out_dtype="float32", set="full", ops=(FORWARD,)),
    Workload("segmentation", (1, 21, 512, 512), axis=1),
    Workload("segmentation", (8, 150, 128, 128), axis=1, set="full"),
    Workload("rows", (500_000, 10)),
    Workload("rows", (1, 2**22)),
    Workload("rows", (1_000_000, 10), set="usual"),
    Workload("rows", (1, 2**24), set="usual"),
    Workload("mixture", (10_000, 500), dtype="float64"),
    Workload("mixture", (100_000, 500), dtype="float64", set="usual"),
    Workload("mixture", (100_000, 500), dtype="float64", order="F", set="full"),
)
SWEEPS = {
    "classes": tuple(Workload("sweep_classes", (1, 10**power), sweep="classes") for power in range(1, 9)),
    "frames": tuple(Workload("sweep_frames", (10**power, 1000), sweep="frames") for power in range(6)),
}
QUICK_SWEEP = 10**7  # elements: the larger ones take most of the time


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    workload: str
    shape: tuple[int, ...]
    axis: int = -1
    dtype: str = "float32"
    out_dtype: str = ""  # that of x, if empty
    order: str = "C"
    op: str = FORWARD
    data: str = "logits"
    sweep: str | None = None

    @property
    def result_dtype(self) -> str:
        """Of what the operation gives."""
        return self.out_dtype or self.dtype

    @property
    def size(self) -> int:
        """Elements of x."""
        return math.prod(self.shape)

    @property
    def n_classes(self) -> int:
        """The length of a frame."""
        return self.shape[self.axis]

    @property
    def n_frames(self) -> int:
        """How many there are."""
        return self.size // self.n_classes

    @property
    def arrays(self) -> "Case":
        """The same for all operations on the same arrays."""
        return replace(self, op=FORWARD)

    @property
    def label(self) -> str:
        """A line that names it."""
        words = [self.workload, "x".join(map(str, self.shape)), self.dtype]
        words += [f"to {self.out_dtype}"] * bool(self.out_dtype) + [f"axis {self.axis}"] * (self.axis != -1)
        words += ["Fortran order"] * (self.order == "F") + [self.op] + [self.data] * (self.data != "logits")
        return " ".join(words)


def cases(options: Options) -> list[Case]:
    """What the options ask for, those on the same arrays one after the other.

    Raises
    ------
    OptionError
        No workload has the name; the message says which there are.
    """
    found = []
    for workload in _chosen(options):
        for dtype in _dtypes(workload, options):
            for data in options.data or (KINDS_OF_DATA if options.set == "full" else KINDS_OF_DATA[:1]):
                for op in _ops(workload, options):
                    out_dtype = workload.out_dtype if workload.out_dtype != dtype else ""
                    about = (workload.name, workload.shape, workload.axis, dtype, out_dtype, workload.order)
                    found.append(Case(*about, op, data, workload.sweep))
    if not found:
        raise OptionError("ops", f"{', '.join(options.ops)}; none of the workloads chosen has them: choose others")
    return found


def _chosen(options: Options) -> tuple[Workload, ...]:
    """The workloads, or the sizes of a sweep, or one's own shape."""
    if options.shape is not None:
        return (Workload("own", options.shape, options.axis, quick_ops=OPS),)
    if options.sweep is not None:
        known = SWEEPS[options.sweep]
        if options.set == "quick":
            known = tuple(w for w in known if math.prod(w.shape) <= QUICK_SWEEP)
    else:
        known = tuple(w for w in WORKLOADS if SETS.index(w.set) <= SETS.index(options.set))
    names = dict.fromkeys(w.name for w in known)
    for text in options.workloads:
        if not any(text in name for name in names):
            raise OptionError("workloads", f"{text!r} is none; accepted: {', '.join(names)}, or a part of a name")
    return tuple(w for w in known if not options.workloads or any(text in w.name for text in options.workloads))


def _dtypes(workload: Workload, options: Options) -> tuple[str, ...]:
    if options.dtypes:
        return options.dtypes if not workload.out_dtype else tuple({workload.dtype} & set(options.dtypes))
    if workload.sweep or workload.out_dtype or options.shape is not None:
        return (workload.dtype,)
    if options.set == "full":
        return DTYPES
    more = workload.quick_dtypes if options.set == "quick" else workload.more_dtypes
    return (workload.dtype, *more)


def _ops(workload: Workload, options: Options) -> tuple[str, ...]:
    if options.ops:
        return tuple(op for op in options.ops if op in workload.ops)
    if workload.sweep:
        return (FORWARD,)
    return workload.quick_ops if options.set == "quick" else workload.ops
