"""List the loops of the kernels that the compiler vectorises; exit status 1 if it does not vectorise a hot one.

A loop is marked as hot in the Cython source, at its head::

    for k in range(N_LANES):  # hot
    for k in range(N_PEAKS):  # hot: 32

It must then be vectorised for float and for double: with vectors of 32 bytes at level v3 and of 64 at v4, or of the
stated size, if smaller. Other words may follow after a comma. A loop that is inlined into several functions passes if
one of its copies is vectorised: gcc's record of each copy (-fsave-optimization-record) would take 2 GB.

The kernels are compiled as in setup.py, in a temporary folder. A loop of few iterations may have been unrolled before
gcc vectorises loops: then vectors of its straight-line code count, or of the loop around it ("unrolled").

    python -m pip install 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'
    python benchmarks/vectorised.py           print a table of the hot loops
    python benchmarks/vectorised.py --all     print a table of all innermost loops
    python benchmarks/vectorised.py --prove   check that a loop that cannot be vectorised is detected
"""

import argparse
import os
import re
import sys
import tempfile
from collections import defaultdict
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
MESSAGE = re.compile(r":(\d+):\d+: optimized:\s+(loop|basic block part) vectorized using (\d+) byte vectors")
FUSED = re.compile(r"__pyx_fuse_(\d+(?:_\d+)*)")

# Each iteration of the second loop depends on the last one, so that no compiler can vectorise it.
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
    """An innermost loop in the source, from its head to its last line, and its vectors."""

    file: str
    head: int
    end: int
    around: int  # the head of the enclosing loop, 0 if there is none
    text: str
    function: str
    is_hot: bool
    enough: int  # bytes
    vectors: dict[tuple[str, str], list[tuple[int, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )  # by (level, specialisation): the bytes of the vectors, and whether of a loop or of straight-line code


def loops_of(folder: Path) -> list[Loop]:
    """Every innermost for loop of the Cython sources."""
    loops = []
    for file in sorted(folder.glob("*.p[xy][ix]")):
        lines = file.read_text().splitlines()
        function = ""
        heads: list[tuple[int, int]] = []  # of the loops around line i: the last line, and the line of the head
        for i, line in enumerate(lines):
            if found := FUNCTION.match(line):
                function = found[1]
            if not (found := FOR.match(line)):
                if HOT.search(line):
                    sys.exit(f"{file.name}:{i + 1}: '# hot' is not at the head of a for loop")
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
                    sys.exit(f"{file.name}:{i + 1}: '# hot' is at a loop that contains another; mark the inner one")
                continue
            text = line.partition("#")[0].strip()
            enough = int(hot[1]) if hot and hot[1] else 64
            loops.append(Loop(file.name, i + 1, end + 1, around, text, function, hot is not None, enough))
    return loops


def compile_kernels(folder: Path, level: str, to: Path) -> tuple[list[str], str]:
    """Build a level as setup.py does; returns the lines of the C code, and the compiler's messages on vectors."""
    os.chdir(ROOT)  # setup.py uses paths relative to it
    from setuptools import Distribution

    import setup as build

    modules = build.extensions([level], folder, build_dir=str(to / "c"), emit_linenums=True, force=True, quiet=True)
    c_file, messages = Path(modules[0].sources[0]), to / "vectors.txt"
    code = c_file.read_text().splitlines()
    # Without the line numbers of the Cython source, gcc gives those of the C code, which show whether a loop is float.
    c_file.write_text("\n".join("" if C_LINE.match(line) else line for line in code))
    flags = os.environ.get("CFLAGS", "")
    os.environ["CFLAGS"] = f"{flags} -g0 -fopt-info-vec-optimized={messages}"
    modules[0].include_dirs.append(str(build.KERNELS))
    command = build.BuildKernels(Distribution({"ext_modules": modules}))
    command.build_temp, command.build_lib = str(to / "objects"), str(to / "lib")
    command.ensure_finalized()
    command.run()
    os.environ["CFLAGS"] = flags
    if not messages.exists():
        sys.exit("the compiler does not report vectorised loops; use gcc: CC=gcc python ...")
    return code, messages.read_text()


def places_of(code: list[str]) -> dict[int, tuple[str, str, int, bool]]:
    """For each line of the C code: its function, the source file and line, and whether a for loop begins there."""
    function, file, line = "", "", 0
    places = {}
    for number, text in enumerate(code, 1):
        if found := C_FUNCTION.match(text):
            function = found[1]
        elif found := C_LINE.match(text):
            line, file = int(found[1]), Path(found[2]).name
        places[number] = function, file, line, text.lstrip().startswith("for (")
    return places


def specialisation(c_function: str) -> str:
    """'float' or 'double'; otherwise Cython's numbers for the types of the fused type, or ''."""
    found = FUSED.search(c_function)
    return {"0": "float", "1": "double"}.get(found[1], found[1]) if found else ""


def examine(folder: Path, levels: list[str], to: Path) -> list[Loop]:
    """Compile the sources, and record the vectors that the compiler uses in each loop."""
    loops = loops_of(folder)
    by_line = {(loop.file, line): loop for loop in loops for line in range(loop.head, loop.end + 1)}
    for level in levels:
        code, messages = compile_kernels(folder, level, to / level)
        places = places_of(code)
        for function, file, line, is_loop in places.values():
            loop = by_line.get((file, line))
            if is_loop and loop is not None and line == loop.head:
                _ = loop.vectors[level, specialisation(function)]  # an entry: the loop is compiled
        for found in MESSAGE.finditer(messages):
            function, file, line, _ = places[int(found[1])]
            loop = by_line.get((file, line))
            if loop is not None:
                loop.vectors[level, specialisation(function)].append((int(found[3]), found[2]))
            for outer in loops:  # a short inner loop is unrolled first
                if found[2] == "loop" and (outer.file, outer.around) == (file, line):
                    outer.vectors[level, specialisation(function)].append((int(found[3]), "basic block part"))
    return loops


def show(loops: list[Loop], with_all: bool) -> list[str]:
    """Print the table; returns the complaints."""
    complaints = []
    head = ("function", "line", "type", "level", "bytes", "how", "")
    rows = []
    for loop in loops:
        if not (loop.is_hot or with_all):
            continue
        at = f"{loop.file}:{loop.head}"
        if not loop.vectors:
            complaints.append(f"{at}: {loop.text}  in {loop.function} is not compiled")
        for (level, kind), vectors in sorted(loop.vectors.items()):
            widest = max((n_bytes for n_bytes, _ in vectors), default=0)
            how = sorted({"loop" if what == "loop" else "unrolled" for n_bytes, what in vectors if n_bytes == widest})
            rows.append((loop.function, at, kind, level, str(widest), ", ".join(how), loop.text))
            if loop.is_hot and widest < min(loop.enough, LEVEL_BYTES[level]):
                found = f"vectors of {widest} bytes" if widest else "not vectorised"
                complaints.append(f"{at}: {loop.text}  in {loop.function}, {kind}, {level}: {found}")
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
            sys.exit("the loop that cannot be vectorised was not detected, or the other was reported")
        print("Detected, as expected.")
    elif complaints or not n_hot:
        sys.exit(f"{len(complaints)} complaints; {n_hot} loops are marked as hot")
    else:
        print(f"All {n_hot} hot loops are vectorised.")


if __name__ == "__main__":
    main()
