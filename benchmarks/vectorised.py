"""Which loops of the kernels the compiler makes vectors of; exit status 1 if a hot one is not.

A loop is marked as hot in the Cython source, at its head::

    for k in range(N_LANES):  # hot
    for k in range(N_PEAKS):  # hot: 32

It must then be vectorised for float and for double, at every place that it is inlined into: with vectors of 32 bytes at
level v3 and of 64 at v4, or of as many as are stated, if those are fewer. Other words may follow after a comma.

The kernels are compiled as setup.py does it, in a temporary folder, and what gcc says of its optimisations is read
(-fsave-optimization-record), for it says for each loop into which function it was inlined; a loop that is vectorised
in one place may not be in another. A loop of few rounds may have been unrolled before gcc looks for loops: then
vectors made of its straight code count, or of the loop around it ("unrolled"). Of some straight code gcc makes vectors
without saying so; a loop of that kind cannot be marked.

    python -m pip install 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'
    python benchmarks/vectorised.py           a table of the hot loops
    python benchmarks/vectorised.py --all     of all innermost loops
    python benchmarks/vectorised.py --prove   that a loop which cannot be vectorised is found out
"""

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

LEVEL_BYTES = {"v3": 32, "v4": 64}

FOR = re.compile(r"^(\s*)for .* in .*:")
HOT = re.compile(r"#\s*hot(?::\s*(\d+))?\s*(?:,.*)?$")
FUNCTION = re.compile(r"^(?:cdef|cpdef|def)\b.*?(\w+)\(")
C_FUNCTION = re.compile(r"^static .*?\b(__pyx_\w+)\(.*\) \{$")
C_LINE = re.compile(r'^#line (\d+) "(.*)"')
MESSAGE = re.compile(
    r'"message": \["(?:(loop|basic block part) vectorized using (\d+) byte vectors|couldn\'t vectorize loop)'
)
FUSED = re.compile(r"__pyx_fuse_(\d+(?:_\d+)*)")

# The second loop depends on its last round, so that no compiler can make vectors of it.
PLANTED = """# Two loops for --prove.
ctypedef fused floating:
    float
    double


cdef void good(floating* x) noexcept nogil:
    cdef int k
    for k in range(1024):  # hot
        x[k] = x[k] + 1


cdef void bad(floating* x) noexcept nogil:
    cdef int k
    for k in range(1, 1024):  # hot
        x[k] = x[k] / x[k - 1]


def call(size_t at):
    good(<float*> at)
    good(<double*> at)
    bad(<float*> at)
    bad(<double*> at)
"""


@dataclass
class Loop:
    """An innermost loop in the source, from its head to its last line, and what each copy of it became."""

    file: str
    head: int
    end: int
    around: int  # the head of the loop around it, 0 if there is none
    text: str
    function: str
    is_hot: bool
    enough: int  # bytes
    copies: dict[tuple[str, str], dict[str, dict[str, int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: {"loop": 0, "straight": 0, "missed": 0}))
    )  # by (level, specialisation) and the place it was inlined into: bytes, or how often it was missed


def loops_of(folder: Path) -> list[Loop]:
    """Every for loop of the Cython sources that has no other within."""
    loops = []
    for file in sorted(folder.glob("*.p[xy][ix]")):
        lines = file.read_text().splitlines()
        function = ""
        heads: list[tuple[int, int]] = []  # of the loops that line i is in: the last line, and the line of the head
        for i, line in enumerate(lines):
            if found := FUNCTION.match(line):
                function = found[1]
            if not (found := FOR.match(line)):
                if HOT.search(line):
                    sys.exit(f"{file.name}:{i + 1}: '# hot' does not stand at the head of a for loop")
                continue
            end = i
            while end + 1 < len(lines) and (
                not lines[end + 1].strip() or len(lines[end + 1]) - len(lines[end + 1].lstrip()) > len(found[1])
            ):
                end += 1
            while heads and heads[-1][0] < i:
                heads.pop()
            around = heads[-1][1] if heads else 0
            heads.append((end, i + 1))
            hot = HOT.search(line)
            if any(FOR.match(inner) for inner in lines[i + 1 : end + 1]):
                if hot:
                    sys.exit(f"{file.name}:{i + 1}: '# hot' stands at a loop with another within; mark that one")
                continue
            text = line.partition("#")[0].strip()
            enough = int(hot[1]) if hot and hot[1] else 64
            loops.append(Loop(file.name, i + 1, end + 1, around, text, function, hot is not None, enough))
    return loops


def compile_kernels(folder: Path, levels: list[str], to: Path) -> None:
    """Build as setup.py does; the C, with the line numbers of the Cython source, and the records go to `to`."""
    os.chdir(ROOT)  # setup.py names its files from there
    from setuptools import Distribution

    import setup as build

    # Without -g the same code is made in less time. gcc keeps its records in memory, 13 GB for a level: so one level at
    # a time, and the passes without their copies for 16 bits, which are the same loops after loads by name.
    os.environ["CFLAGS"] = os.environ.get("CFLAGS", "") + " -g0 -fsave-optimization-record -DLSM_WIDENS=0"
    modules = build.extensions(levels, folder, build_dir=str(to / "c"), emit_linenums=True, force=True, quiet=True)
    for module in modules:
        module.include_dirs.append(str(build.KERNELS))
    command = build.BuildKernels(Distribution({"ext_modules": modules}))
    command.build_temp, command.build_lib = str(to / "objects"), str(to / "lib")
    command.ensure_finalized()
    command.parallel = 1
    command.run()


def compiled_loops(c_file: Path) -> Iterator[tuple[str, str, int]]:
    """(C function, source file, line) of every for loop in the C code: a branch on the type leaves some out."""
    function, file, line = "", "", 0
    for text in c_file.read_text().splitlines():
        if found := C_FUNCTION.match(text):
            function = found[1]
        elif found := C_LINE.match(text):
            line, file = int(found[1]), Path(found[2]).name
        elif text.lstrip().startswith("for (") and function:
            yield function, file, line


def specialisation(c_function: str) -> str:
    """'float' or 'double'; else the numbers that Cython gives to the types of the fused type, or ''."""
    found = FUSED.search(c_function)
    return {"0": "float", "1": "double"}.get(found[1], found[1]) if found else ""


def records_of(level: str, folder: Path) -> Iterator[tuple[str, int, list[tuple[str, str, int]]]]:
    """(what became of a loop or of straight code, bytes, [(C function, source file, line), ...] innermost first)."""
    files = list(folder.rglob(f"{level}*.opt-record.json.gz"))
    if not files:
        sys.exit("the compiler wrote no record of its optimisations; gcc 9 or later does: CC=gcc python ...")
    # Some 200 MB of JSON, of which only these records are of use.
    text = gzip.decompress(files[0].read_bytes()).decode()
    for match in MESSAGE.finditer(text):
        what = {"loop": "loop", "basic block part": "straight", None: "missed"}[match[1]]
        record, _ = json.JSONDecoder().raw_decode(text, text.rindex('{"kind": ', 0, match.start()))
        if "location" not in record:
            continue
        chain = record.get("inlining_chain") or [{"fndecl": record["function"]}]
        sites = [record["location"], *(link.get("site") for link in chain[1:])]
        frames = [
            (link["fndecl"], Path(site["file"]).name, site["line"])
            for link, site in zip(chain, sites, strict=True)
            if site is not None
        ]
        yield what, int(match[2] or 0), frames


def examine(folder: Path, levels: list[str], to: Path) -> list[Loop]:
    """Compile the sources, and note at each loop what became of its copies."""
    loops = loops_of(folder)
    by_line = {(loop.file, line): loop for loop in loops for line in range(loop.head, loop.end + 1)}
    compile_kernels(folder, levels, to)
    for level in levels:
        records = list(records_of(level, to / "objects"))
        for c_function, file, line in compiled_loops(next((to / "c").rglob(f"{level}.c"))):
            loop = by_line.get((file, line))
            if loop is not None and line == loop.head:
                _ = loop.copies[level, specialisation(c_function)]  # is there, if nowhere inlined
        for what, n_bytes, frames in records:
            # A loop is reported at its own line, straight code at a line of a function that may stand in the loop.
            for i, (c_function, file, line) in enumerate(frames if what == "straight" else frames[:1]):
                loop = by_line.get((file, line))
                if loop is None:
                    continue
                place = " < ".join([c_function, *(f"{name}:{at}" for name, _, at in frames[i + 1 :])])
                copy = loop.copies[level, specialisation(c_function)][place]
                copy[what] = copy[what] + 1 if what == "missed" else max(copy[what], n_bytes)
            c_function, file, line = frames[0]
            for loop in loops:
                if what == "loop" and (loop.file, loop.around) == (file, line):
                    place = " < ".join([c_function, *(f"{name}:{at}" for name, _, at in frames[1:])])
                    copy = loop.copies[level, specialisation(c_function)][place]
                    copy["straight"] = max(copy["straight"], n_bytes)
    return loops


def verdict(copy: dict[str, int]) -> int:
    """The bytes of the vectors of one copy of a loop; 0 if it is a loop that was not vectorised."""
    return 0 if copy["missed"] else copy["loop"] or copy["straight"]


def show(loops: list[Loop], with_all: bool) -> list[str]:
    """Print the table; the complaints."""
    complaints = []
    head = ("function", "line", "type", "level", "bytes", "copies", "how", "")
    rows = []
    for loop in loops:
        if not (loop.is_hot or with_all):
            continue
        at = f"{loop.file}:{loop.head}"
        if not loop.copies:
            complaints.append(f"{at}: {loop.text}  in {loop.function} is not compiled")
        for (level, kind), copies in sorted(loop.copies.items()):
            widths = [verdict(copy) for copy in copies.values()]
            good = [width for width in widths if width >= min(loop.enough, LEVEL_BYTES[level])]
            how = {"loop" if copy["loop"] else "unrolled" for copy in copies.values() if verdict(copy)}
            share = f"{len(good)} of {len(widths)}"
            row = (
                loop.function,
                at,
                kind,
                level,
                "/".join(map(str, sorted(set(widths)))),
                share,
                ", ".join(sorted(how)),
            )
            rows.append((*row, loop.text))
            if not loop.is_hot:
                continue
            name = f"{at}: {loop.text}  in {loop.function}, {kind}, {level}"
            if not widths:
                complaints.append(f"{name}: the compiler says nothing of it: not used, or unrolled without vectors")
            for place, copy in copies.items():
                if verdict(copy) < min(loop.enough, LEVEL_BYTES[level]):
                    found = f"vectors of {verdict(copy)} bytes" if verdict(copy) else "not vectorised"
                    complaints.append(f"{name}: {found}, at {place}")
    columns = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, columns, strict=True)).rstrip())
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="all innermost loops, not only those marked as hot")
    parser.add_argument("--prove", action="store_true", help="run on a source with a loop that cannot be vectorised")
    parser.add_argument("--levels", default="v3,v4", help="instruction levels (default: %(default)s)")
    options = parser.parse_args()
    levels = options.levels.split(",")
    if not set(levels) <= set(LEVEL_BYTES):
        parser.error(f"--levels: {options.levels!r}; accepted: any of {', '.join(LEVEL_BYTES)}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if options.prove:
            for level in levels:
                (work / f"{level}.pyx").write_text(PLANTED)
        folder = work if options.prove else ROOT / "lsm" / "backends" / "_kernels"
        loops = examine(folder, levels, work / "build")
    complaints = show(loops, options.all)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    n_hot = sum(loop.is_hot for loop in loops)
    if options.prove:
        missed = {complaint for complaint in complaints if "in bad" in complaint}
        if len(missed) != 2 * len(levels) or len(complaints) != len(missed):
            sys.exit("the loop that cannot be vectorised was not found out, or the other was held to be one")
        print("Found out, as it should be.")
    elif complaints or not n_hot:
        sys.exit(f"{len(complaints)} complaints; {n_hot} loops are marked as hot")
    else:
        print(f"All {n_hot} hot loops are vectorised.")


if __name__ == "__main__":
    main()
