"""What to measure: the wishes of a benchmark run, checked."""

from dataclasses import dataclass

SETS = ("quick", "usual", "full")
OPS = ("forward", "backward", "forward+backward")
DTYPES = ("float16", "bfloat16", "float32", "float64")
KINDS_OF_DATA = ("logits", "peaked", "masked", "constant")
SWEEPS = ("classes", "frames")
DEVICES = ("cpu", "cuda")


class OptionError(ValueError):
    """A value of one of the options that no run could serve.

    Parameters
    ----------
    option : str
        The field of `Options`; a command that calls it otherwise can say so.
    problem : str
        What the value was, and what would be accepted.
    """

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option, self.problem = option, problem


@dataclass(frozen=True)
class Options:
    """A benchmark run; an empty tuple or None means what the set has.

    Raises
    ------
    OptionError
        A value is none of those that are accepted; the message names them.
    """

    set: str = "usual"  # "quick" ends within a minute, "full" is everything
    workloads: tuple[str, ...] = ()  # names, or parts of names
    ops: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None  # one's own workload instead of the named ones
    axis: int = -1  # of one's own workload
    threads: tuple[int, ...] = ()  # all that lsm would use, if empty
    sweep: str | None = None  # "classes" or "frames": time against work, instead of the named workloads
    rounds: int | None = None
    contestants: tuple[str, ...] = ()  # names, or parts of names
    with_memory: bool | None = None  # needs a process of its own: not in the quick set, unless asked for
    device: str = "cpu"
    command: str = ""  # as it stands in the header

    def __post_init__(self) -> None:
        """Refuse what no run could serve."""
        one_of = {
            "set": ((self.set,), SETS),
            "ops": (self.ops, OPS),
            "dtypes": (self.dtypes, DTYPES),
            "data": (self.data, KINDS_OF_DATA),
            "sweep": ((self.sweep,) if self.sweep is not None else (), SWEEPS),
            "device": ((self.device,), DEVICES),
        }
        for name, (given, accepted) in one_of.items():
            for value in given:
                if value not in accepted:
                    raise OptionError(name, f"{value!r}; accepted: {', '.join(accepted)}")
        for name, numbers in {"threads": self.threads, "rounds": (1 if self.rounds is None else self.rounds,)}.items():
            if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
                raise OptionError(name, f"{', '.join(map(str, numbers))}; accepted: whole numbers from 1")
        if self.shape is not None:
            if not self.shape or any(n < 1 for n in self.shape):
                raise OptionError("shape", f"{self.shape}; accepted: one whole number from 1 or more, as 64x128256")
            if not -len(self.shape) <= self.axis < len(self.shape):
                raise OptionError("axis", f"{self.axis}; accepted: {-len(self.shape)} to {len(self.shape) - 1}")
            if self.sweep is not None or self.workloads:
                raise OptionError(
                    "shape", "it is a workload by itself, beside which there is no sweep and no named one"
                )
