"""Time lsm on the CPU beside PyTorch, ONNX Runtime and the limit of the machine, on shapes that users have.

    python benchmarks/cpu.py                        # everything: about a quarter of an hour
    python benchmarks/cpu.py --quick --only llm     # a few rounds; no shape of more than 2^25 elements
    python benchmarks/cpu.py --json t.json --markdown t.md --chart t.svg
    python benchmarks/cpu.py --sweep --only sweep   # time against the amount of work, and nothing else
    python benchmarks/cpu.py --from t.json --chart t.svg   # report what was measured before

The contestants take turns within one run, on the same memory and with the same number of threads. A ratio is taken
within a turn; the median counts, with the 20th and 80th percentile beside it. The *peer* of a row is the faster one
there. The *limit* is a copy (forward) or an addition (backward) of the same bytes past the caches; its share is
given where x and the result, or dy, y and dx, are larger than the last-level cache together.

Peers are optional: `python -m pip install '.[peers]'`. On AVX2, with ONNX Runtime left out because nothing holds it
back to that:

    LSM_FORCE_ISA=v3 ATEN_CPU_CAPABILITY=avx2 python benchmarks/cpu.py --peers torch
"""

import argparse
import contextlib
import gc
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cpu_chart
import cpu_report
import lsm
from cpu_contestants import LIMIT, PEERS, taking_part
from cpu_workloads import QUICK_SIZE, SWEEP, WORKLOADS, Workload
from lsm._threads import cpu_limit
from lsm.bench import contestants, machine
from lsm.bench.data import Data
from lsm.bench.files import write
from lsm.bench.limits import is_out_of_cache
from lsm.bench.threads import check_threads, equal_threads
from lsm.bench.timing import PAUSE, TURN, in_turns


def absent_dtype(workload: Workload) -> str | None:
    """Say why a workload cannot be measured here, if so."""
    is_missing = workload.case.dtype == "bfloat16" and find_spec("ml_dtypes") is None
    return "ml_dtypes is not installed" if is_missing else None


def header(threads: list[int], n_rounds: int, peers: list[str], absent: dict[str, str]) -> dict[str, Any]:
    """What was measured on and with."""
    sizes = machine.caches()
    return {
        "processor": machine.processor(),
        "n_processors": cpu_limit(),
        "system": platform.system(),
        "date": machine.today(),
        "load_before": machine.load(),
        "caches": sizes,
        "last_cache": machine.last_cache(sizes),
        "levels": machine.instruction_levels(),
        "threads": threads,
        "rounds": n_rounds,
        "pause_s": PAUSE,
        "turn_s": TURN,
        "versions": machine.versions(peers),
        "absent_peers": absent,
        "environment": machine.environment(),
    }


def measure(
    workload: Workload, data: Data, op: str, n_threads: int, n_rounds: int, peers: Sequence[str], last_cache: int
) -> dict[str, Any]:
    """One row."""
    case = workload.of(op)
    with_limit = is_out_of_cache(case, data, last_cache)
    found, absent = taking_part(workload, data, op, n_threads, peers, with_limit)
    others = machine.Others()
    times = in_turns(found, n_rounds)
    absent |= {name: error for (name, _), error in times.errors.items()}
    turns_us = {name: turns for (name, way), turns in times.turns_us.items() if (name, way) not in times.errors}
    row = {
        "workload": workload.name,
        "group": case.workload,
        "shape": case.shape,
        "axis": case.axis,
        "types": workload.types,
        "is_16_bit": case.dtype in ("float16", "bfloat16"),
        "op": op,
        "threads": n_threads,
        "size": case.size,
        "bytes": data.n_bytes(case.op),
        "calls": {one.name: one.code for one in found},
        "absent": absent,
        "others": others.processors(),
        "turns_us": {name: [round(t, 4) for t in turns] for name, turns in turns_us.items()},
    }
    return row | cpu_report.figures(turns_us, row["bytes"], LIMIT)


def chosen(arguments: argparse.Namespace) -> list[Workload]:
    """The workloads that were asked for."""
    workloads = WORKLOADS + (SWEEP if arguments.sweep else [])
    if arguments.only:
        unknown = [text for text in arguments.only if not any(text in workload.name for workload in workloads)]
        if unknown:
            names = "\n  ".join(workload.name for workload in workloads)
            raise SystemExit(f"--only {' '.join(unknown)}: no such workload. There are:\n  {names}")
        workloads = [workload for workload in workloads if any(text in workload.name for text in arguments.only)]
    return [workload for workload in workloads if not arguments.quick or workload.case.size <= QUICK_SIZE]


@contextlib.contextmanager
def progress(n_rows: int) -> Iterator[Callable[[str], None]]:
    """A function that tells of one row more; with a bar where tqdm is installed and somebody looks."""
    try:
        if not sys.stderr.isatty():
            raise ModuleNotFoundError
        from tqdm import tqdm
    except ModuleNotFoundError:
        rows = iter(range(1, n_rows + 1))
        yield lambda text: print(f"[{next(rows)}/{n_rows}] {text}", file=sys.stderr, flush=True)
        return
    tqdm.monitor_interval = 0  # no thread beside the measurement
    with tqdm(total=n_rows, unit="row", file=sys.stderr) as bar:

        def tell(text: str) -> None:
            bar.write(text, file=sys.stderr)
            bar.update()

        yield tell


def report(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    text = cpu_report.markdown(result)
    if arguments.markdown:
        write(arguments.markdown, text)
    else:
        print(text)
    if arguments.chart:
        write(arguments.chart, cpu_chart.svg(result))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", metavar="N,...", help="numbers of threads; as they come, 1 and all")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant (15; with --quick 5)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads with one of these in their name")
    parser.add_argument("--quick", action="store_true", help="few rounds, and no very large shape")
    parser.add_argument("--sweep", action="store_true", help="also time against the amount of work")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="NAME,...", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--json", metavar="FILE", help="everything, written after each row")
    parser.add_argument("--markdown", metavar="FILE", help="the tables; else they are printed")
    parser.add_argument("--chart", metavar="FILE.svg", help="needs matplotlib")
    parser.add_argument("--from", type=Path, dest="measured", metavar="FILE", help="report this JSON, measure nothing")
    arguments = parser.parse_args()
    arguments.peers = [name for name in arguments.peers.split(",") if name]
    if not set(arguments.peers) <= set(PEERS):
        parser.error(f"--peers: accepted: {', '.join(PEERS)}")
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 15)
    texts = arguments.threads.split(",") if arguments.threads else ["1", str(lsm.get_num_threads())]
    if not all(text.isdecimal() and int(text) for text in texts):
        parser.error("--threads: accepted: whole numbers from 1, separated by commas")
    arguments.threads = list(dict.fromkeys(map(int, texts)))
    if arguments.chart:
        cpu_chart.need_matplotlib()  # before an hour of measuring, and not after it
    return arguments


def measure_all(
    result: dict[str, Any], workloads: list[Workload], peers: list[str], arguments: argparse.Namespace
) -> None:
    """Add the rows to the result, and to its file after each, so that an interruption loses one at most."""
    with progress(len(arguments.threads) * sum(len(workload.ops) for workload in workloads)) as tell:
        for workload in workloads:
            data = Data(workload.case, workload.ops)
            for n_threads in arguments.threads:
                with equal_threads(n_threads, peers):
                    for op in workload.ops:
                        last_cache = result["header"]["last_cache"]
                        row = measure(workload, data, op, n_threads, arguments.rounds, peers, last_cache)
                        result["rows"].append(row)
                        if arguments.json:
                            write(arguments.json, json.dumps(result, indent=1) + "\n")
                        tell(cpu_report.one_line(row))
            del data  # before the next one is made: some take gigabytes
            gc.collect()


def main() -> int:
    arguments = parsed()
    if arguments.measured:
        report(json.loads(arguments.measured.read_text(encoding="utf-8")), arguments)
        return 0
    try:
        check_threads(arguments.threads)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    found, reasons = contestants.usable(arguments.peers or ["lsm"], "cpu")
    peers = [name for name in PEERS if name in found]
    absent = {name: reasons[name] for name in PEERS if name not in found}
    workloads = chosen(arguments)
    reasons = {workload.name: absent_dtype(workload) for workload in workloads}
    result = {
        "header": header(arguments.threads, arguments.rounds, peers, absent),
        "absent_workloads": {name: reason for name, reason in reasons.items() if reason},
        "rows": [],
    }
    print(cpu_report.first_lines(result["header"]), file=sys.stderr)
    try:
        measure_all(result, [workload for workload in workloads if not reasons[workload.name]], peers, arguments)
    except KeyboardInterrupt:
        print("interrupted; what was measured is reported", file=sys.stderr)
        report(result, arguments)
        return 130
    report(result, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
