"""The run itself: every row of the options, by every contestant, saved as it grows."""

from collections.abc import Callable
from typing import Protocol

from lsm.bench.options import Options
from lsm.bench.result import Header, Result, Row


class Progress(Protocol):
    """Who is told how far the run is; it prints, the engine does not."""

    def started(self, header: Header, n_rows: int) -> None:
        """Everything is ready, and so many rows follow."""

    def row_started(self, label: str) -> None:
        """A row is being measured; the label names it."""

    def row_done(self, row: Row) -> None:
        """A row is complete."""


class Silent:
    """A `Progress` that tells nobody."""

    def started(self, header: Header, n_rows: int) -> None:
        """Do nothing."""

    def row_started(self, label: str) -> None:
        """Do nothing."""

    def row_done(self, row: Row) -> None:
        """Do nothing."""


def run(options: Options, progress: Progress | None = None, save: Callable[[Result], object] | None = None) -> Result:
    """Measure what the options ask for.

    Parameters
    ----------
    options : Options
    progress : Progress, optional
        Told how far the run is.
    save : callable, optional
        Called with the result as it is: before the first row, after each, and at the end.

    Returns
    -------
    Result
        After a KeyboardInterrupt it holds the rows that were complete, and `interrupted` is True. Any other
        BaseException that is no Exception passes through, once `save` has been given the same.

    Raises
    ------
    ValueError
        No workload or no contestant fits the options.
    ModuleNotFoundError
        threadpoolctl is not installed.
    """
    raise NotImplementedError
