"""How far a benchmark run is: a bar on a terminal, a line for each row elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from lsm.bench.result import Header, Row
from lsm.bench.wording import best_first, number, times, where, who


class Lines:
    """Tells of each row once it is complete; a `Progress` of the engine's."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._n_done = self._n_rows = 0

    def started(self, header: Header, n_rows: int) -> None:
        """Keep the number for later."""
        self._n_rows = n_rows

    def row_started(self, label: str) -> None:
        """Say nothing yet."""

    def row_done(self, row: Row) -> None:
        """Say who was fastest, and who came next."""
        self._n_done += 1
        ranked = [entry for entry in best_first(row) if entry.is_ranked]
        texts = [f"{who(e)} {number(e.us or 0)} us{f' ({times(e.ratio)})' if e.ratio else ''}" for e in ranked[:2]]
        says = ", ".join(texts) or "nobody ranked"
        print(f"[{self._n_done}/{self._n_rows}] {where(row)}: {says}", file=self._file, flush=True)


class Bar:
    """Shows the row that is measured and the time that is left; a `Progress` of the engine's."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("getting ready", total=None)
        bar.refresh()

    def started(self, header: Header, n_rows: int) -> None:
        """Give the bar its length."""
        self._bar.update(self._task, total=n_rows, refresh=True)

    def row_started(self, label: str) -> None:
        """Name the row."""
        self._bar.update(self._task, description=Text(label).plain, refresh=True)

    def row_done(self, row: Row) -> None:
        """Go one row on."""
        self._bar.update(self._task, advance=1, refresh=True)


@contextmanager
def shown(file: TextIO) -> Iterator[Lines | Bar]:
    """Whom to tell how far the run is."""
    if not file.isatty():
        yield Lines(file)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    # Drawn when there is news, and not by a thread of rich's: that would run beside what is measured.
    with Progress(*columns, console=Console(file=file), auto_refresh=False, transient=True) as bar:
        yield Bar(bar)
