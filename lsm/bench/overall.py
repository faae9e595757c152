"""What many rows say together: the mean of the ratios, time against the number of threads and the amount of work."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

from lsm.bench.layout import BEST, Column, Line, Table
from lsm.bench.result import Entry, Result, Row
from lsm.bench.wording import best_first, number, plural, reference, shape, times, types, who


def tables(result: Result) -> Iterator[Table]:
    """For each operation who was fastest overall, and what more threads brought."""
    rows = [row for row in result.rows if row.sweep is None]
    for op in dict.fromkeys(row.op for row in rows):
        here = [row for row in rows if row.op == op]
        if means := geometric_means(here):
            yield _means_table(op, here, means)
    if len(result.header.threads) > 1:
        yield from _threads_table(rows)


def geometric_means(rows: Iterable[Row]) -> dict[str, tuple[float, int]]:
    """The mean of each contestant's ratios and their number, best first; of ranked ones only."""
    logs = defaultdict(list)
    for row in rows:
        for entry in row.contestants:
            if entry.is_ranked and entry.ratio:
                logs[who(entry)].append(math.log(entry.ratio))
    means = {name: (math.exp(sum(values) / len(values)), len(values)) for name, values in logs.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _means_table(op: str, rows: list[Row], means: dict[str, tuple[float, int]]) -> Table:
    firsts = [who(best_first(row)[0]) for row in rows if row.contestants]
    wrong = [who(e) for row in rows for e in row.contestants if e.error is None and not e.is_right]
    lines = []
    for i, (name, (mean, n)) in enumerate(means.items(), 1):
        cells = (str(i), name, times(mean), f"{n} of {len(rows)}", str(firsts.count(name)), str(wrong.count(name)))
        lines.append(Line(cells, BEST if i == 1 else ""))
    of = reference(rows)
    heads = (("ranked in rows", 2), ("fastest in", 1), ("wrong in", 3))
    columns = (Column("#"), Column("contestant", is_number=False), Column("mean ratio"))
    return Table(
        f"{op}: time over that of {of.name if of else 'lsm'}, geometric mean",
        (*columns, *(Column(head, dropped=dropped) for head, dropped in heads)),
        tuple(lines),
    )


def _key(row: Row, entry: Entry) -> tuple[object, ...]:
    """What stays the same when the number of threads changes."""
    return row.workload, row.op, row.dtype, row.out_dtype, row.data, *row.shape, row.axis, row.order, who(entry)


def speed_ups(rows: Iterable[Row]) -> dict[str, dict[int, float]]:
    """How many times as fast each contestant is with more threads than with the fewest, by the number; the mean."""
    found: dict[tuple[object, ...], dict[int, float]] = defaultdict(dict)
    for row in rows:
        for entry in row.contestants:
            if entry.is_ranked and entry.us:
                found[_key(row, entry)][row.threads] = entry.us
    logs: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, us in found.items():
        for n_threads, took in us.items():
            logs[str(key[-1])][n_threads].append(math.log(us[min(us)] / took))
    means = {n: {t: math.exp(sum(v) / len(v)) for t, v in sorted(by.items())} for n, by in logs.items()}
    return dict(sorted(means.items(), key=lambda item: -max(item[1].values())))


def _threads_table(rows: list[Row]) -> Iterator[Table]:
    for op in dict.fromkeys(row.op for row in rows):
        means = speed_ups(row for row in rows if row.op == op)
        counts = sorted({n for by in means.values() for n in by})
        if len(counts) > 1:
            lines = [Line((name, *(times(by.get(n)) for n in counts))) for name, by in means.items()]
            columns = (Column("contestant", is_number=False), *(Column(plural(n, "thread")) for n in counts))
            title = f"{op}: how many times as fast as with {plural(counts[0], 'thread')}, geometric mean"
            yield Table(title, columns, tuple(lines))


def sweep_tables(result: Result) -> Iterator[Table]:
    """Nanoseconds an element by size: where it stays the same down the column, time grows with the work."""
    swept: dict[tuple[str, str, str, str, str], list[Row]] = defaultdict(list)
    for row in result.rows:
        if row.sweep is not None:
            key = (f"more {row.sweep}", row.op, types(row), row.data, plural(row.threads, "thread"))
            swept[key].append(row)
    for key, unsorted in swept.items():
        rows = sorted(unsorted, key=elements)
        names = list(dict.fromkeys(who(e) for row in reversed(rows) for e in best_first(row) if e.is_ranked))
        columns = [Column("shape", is_number=False)]
        columns += [Column(name, dropped=i) for i, name in enumerate(names)]  # the slowest go first
        lines = []
        for row in rows:
            each = {who(e): number(e.us * 1e3 / elements(row)) for e in row.contestants if e.is_ranked and e.us}
            lines.append(Line((shape(row), *(each.get(name, "") for name in names))))
        yield Table(f"{', '.join(key)}: ns an element", tuple(columns), tuple(lines))


def elements(row: Row) -> int:
    """How much work a row is."""
    return math.prod(row.shape)
