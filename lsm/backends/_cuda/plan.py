"""Which kernel serves a call, on what grid and with how much shared memory: pure functions, no GPU needed.

The family of kernels depends on the number of classes, the dtypes, whether anything lies behind the classes
(n_inner > 1) and the device; never on the number of frames, strides or alignment. The bits do not depend on the family
either: every kernel adds in the same order (sums.cu).
"""

from typing import Literal, NamedTuple

Op = Literal["log_softmax", "log_softmax_backward"]

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_TYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}

MAX_GRID_BLOCKS = 2**31 - 1
GROUP_BLOCK_THREADS = 128  # of a block that has several frames a warp, or a warp a frame
IN_FLIGHT_PIECES = 4  # of a thread that has frames one after the other, which is more bytes under way as well
SPLIT_BLOCK_WARPS = 8  # of a block that has a part of a frame: a slice for each
SYSTEM_SHARED_BYTES = 1024  # bytes that the system takes of every block's shared memory
SHARED_MAX_SLICES = 128  # of a frame in shared memory: merge<3> in rows.cu has no more
MAX_MERGING_BLOCKS = 256  # of one frame: every one of them merges all its slices
TILE_THREADS = 256
LARGE_TILE_THREADS = 512  # of a tile that is alone on a multiprocessor: fewer have too few loads under way


class Limits(NamedTuple):
    """What a device has."""

    shared_per_block: int  # bytes that a block may opt in to
    shared_per_multiprocessor: int
    n_multiprocessors: int
    l2_bytes: int
    architecture: int  # 90 for compute capability 9.0


class Family(NamedTuple):
    """Kernels that are compiled as one module, and the numbers that they are compiled with."""

    name: str
    numbers: tuple[int, ...] = ()


class Launch(NamedTuple):
    """One kernel to launch. The last two integers are its last two arguments."""

    kernel: str
    grid: int
    block: int
    shared: int
    first_frame: int = 0
    n_frames: int = 0


class Plan(NamedTuple):
    """What to launch, one after the other, and the bytes that they pass on to each other."""

    launches: tuple[Launch, ...]
    workspace: int
    family: Family


class _Call(NamedTuple):
    """What kernels must know of a call."""

    op: Op
    size: int  # bytes of an element that is read
    is_double: bool  # computed in double
    n_classes: int

    @property
    def n_leaf(self) -> int:
        return 2 if self.is_double else 4

    @property
    def n_slice(self) -> int:
        return 256 * self.n_leaf

    @property
    def n_slices(self) -> int:
        return -(-self.n_classes // self.n_slice)

    @property
    def n_piece(self) -> int:
        """Consecutive elements of a thread."""
        return self.n_leaf * (2 if self.size == 2 else 1)

    @property
    def record(self) -> int:
        """Bytes that are known of a slice: Record in sums.cu, or Part in gradient.cu."""
        return 24 if self.is_double or self.op == "log_softmax_backward" else 16


def plan(op: Op, dtype: str, out_dtype: str, n_outer: int, n_classes: int, n_inner: int, limits: Limits) -> Plan:
    """The launches for an array seen as (outer, classes, inner); none where it is empty."""
    call = _Call(op, SIZES[dtype], "float64" in (dtype, out_dtype), n_classes)
    n_frames = n_outer * n_inner
    if n_frames == 0 or n_classes == 0:
        return Plan((), 0, Family("none"))
    if n_inner == 1:
        family = rows_family(call.op, dtype, out_dtype, n_classes, limits)
        if family.name == "split":
            return _split_rows(call, family, n_frames, limits)
        return Plan(_rows(call, family, n_frames), 0, family)
    family = columns_family(call.op, dtype, out_dtype, n_classes, limits)
    if family.name == "columns_split":
        return _split_columns(call, family, n_frames, limits)
    n_columns = family.numbers[0]
    shared = columns_shared(call, family.numbers, call.n_slices)
    return Plan(_over(n_frames, n_columns, op, n_columns * family.numbers[1], shared), 0, family)


def module_key(op: Op, dtype: str, out_dtype: str, family: Family) -> tuple[str, ...]:
    """The options that the source is compiled with for one family: the key of its module."""
    names = {
        "group": ("LSM_LANES", "LSM_PIECES", "LSM_FRAMES"),
        "shared": ("LSM_THREADS", "LSM_BLOCKS"),
        "split": ("LSM_DEPTH",),
        "columns": ("LSM_COLUMNS", "LSM_TEAM", "LSM_LEAVES"),
        "columns_split": ("LSM_COLUMNS", "LSM_TEAM", "LSM_LEAVES", "LSM_DEPTH"),
    }.get(family.name, ())
    way = "BACKWARD" if op == "log_softmax_backward" else "FORWARD"
    return (
        "--std=c++17",
        "-fmad=false",  # every FMA is written as one
        f"-DLSM_X={_TYPES[dtype]}",
        f"-DLSM_Y={_TYPES[out_dtype]}",
        f"-DLSM_{way}",
        "-DLSM_" + {"columns": "COLUMNS_ON_CHIP"}.get(family.name, family.name.upper()),
        *(f"-D{name}={number}" for name, number in zip(names, family.numbers, strict=True)),
    )


# -- inner = 1 ------------------------------------------------------------------------------------------------------


def rows_family(op: Op, dtype: str, out_dtype: str, n_classes: int, limits: Limits) -> Family:
    """How frames of consecutive classes are served.

    group: 2 to 16 lanes of a warp, or all of it, have a frame in registers; shared: a block has it in shared memory,
    two blocks or more a multiprocessor where they fit; split: it is read twice, by several blocks.
    """
    call = _Call(op, SIZES[dtype], "float64" in (dtype, out_dtype), n_classes)
    if n_classes <= call.n_slice:
        lanes = 2
        while lanes < 32 and lanes * call.n_piece < n_classes:
            lanes *= 2
        pieces = -(-n_classes // (lanes * call.n_piece))
        # Together, so that each lane ends another frame; what a lane has to end in the gradient is little.
        frames = min(lanes, max(1, IN_FLIGHT_PIECES // pieces)) if op == "log_softmax" else 1
        return Family("group", (lanes, pieces, frames))
    shared = shared_of_frame(call)
    if shared <= limits.shared_per_block and call.n_slices <= SHARED_MAX_SLICES:
        # On sm_70 the gradient in float32 needs more registers than a thread has of 1,024.
        if call.is_double or (limits.architecture < 75 and op == "log_softmax_backward"):
            return Family("shared", (512, 1))
        pair_fits = 2 * (shared + SYSTEM_SHARED_BYTES) <= limits.shared_per_multiprocessor
        return Family("shared", (512, 2) if call.n_slices <= 16 or pair_fits else (1024, 1))
    return Family("split", (_depth(call.n_slices, 32 * SPLIT_BLOCK_WARPS),))


def _depth(n_slices: int, n_threads: int) -> int:
    """How high the fold of one thread's share of the slices can be (Fold and Share in sums.cu)."""
    return max(4, (-(-n_slices // n_threads) - 1).bit_length() + 1)


def shared_of_frame(call: _Call) -> int:
    """Bytes of shared memory of a block that has a frame there."""
    return call.n_slices * (call.n_slice * call.size + call.record) + 4 * 32


def _rows(call: _Call, family: Family, n_frames: int) -> tuple[Launch, ...]:
    if family.name == "group":
        lanes, _, frames = family.numbers
        return _over(n_frames, GROUP_BLOCK_THREADS // lanes * frames, call.op, GROUP_BLOCK_THREADS, 0)
    block = min(family.numbers[0], 32 * call.n_slices)
    return _over(n_frames, 1, call.op, block, shared_of_frame(call))


def _over(n_frames: int, per_block: int, kernel: str, block: int, shared: int) -> tuple[Launch, ...]:
    """Launches of blocks with so many frames each; a grid has an end."""
    step = MAX_GRID_BLOCKS * per_block
    return tuple(
        Launch(kernel, -(-min(step, n_frames - i) // per_block), block, shared, i, min(step, n_frames - i))
        for i in range(0, n_frames, step)
    )


def _split_rows(call: _Call, family: Family, n_frames: int, limits: Limits) -> Plan:
    """Summing, then writing; groups of frames that the second finds in the L2 cache where there are several."""
    block = 32 * SPLIT_BLOCK_WARPS
    n_blocks = -(-call.n_slices // SPLIT_BLOCK_WARPS)
    n_writing = min(n_blocks, MAX_MERGING_BLOCKS)
    n_arrays = 2 if call.op == "log_softmax_backward" else 1
    group = max(1, limits.l2_bytes // 3 // (n_arrays * call.n_classes * call.size))
    group = min(group, n_frames, MAX_GRID_BLOCKS // n_blocks)
    scratch = 24 * SPLIT_BLOCK_WARPS
    launches = []
    for i in range(0, n_frames, group):
        n = min(group, n_frames - i)
        launches.append(Launch(f"{call.op}_sums", n * n_blocks, block, 0, i, n))
        launches.append(Launch(call.op, n * n_writing, block, scratch, i, n))
        if call.op == "log_softmax_backward":
            launches.append(Launch(f"{call.op}_ends", n * n_writing, block, scratch, i, n))
    return Plan(tuple(launches), group * call.n_slices * (call.record + 8), family)


# -- inner > 1 ------------------------------------------------------------------------------------------------------


def columns_family(op: Op, dtype: str, out_dtype: str, n_classes: int, limits: Limits) -> Family:
    """How frames that lie side by side are served: a block has a tile of columns, a team of threads each column.

    The numbers are the columns of a tile, the threads of a team, and how many leaves of each row a thread has.
    Tiles are 128 bytes wide where three fit a multiprocessor, else 64, else 32; wider where classes are few. Where no
    three fit, a larger block has one.
    """
    call = _Call(op, SIZES[dtype], "float64" in (dtype, out_dtype), n_classes)
    n_leaves = -(-n_classes // call.n_leaf)
    for team in (1, 2, 4):
        if n_leaves <= 4 * team:
            leaves = 1
            while leaves * team < n_leaves:
                leaves *= 2
            return Family("columns", (TILE_THREADS // team, team, leaves))
    share = limits.shared_per_multiprocessor // 3 - SYSTEM_SHARED_BYTES
    several = [(n_bytes, TILE_THREADS, share) for n_bytes in (128, 64, 32)]
    alone = [(n_bytes, LARGE_TILE_THREADS, limits.shared_per_block) for n_bytes in (64, 32)]
    for n_bytes, n_threads, limit in several + alone:
        numbers = _team(n_bytes // call.size, n_leaves, n_threads)
        if columns_shared(call, numbers, call.n_slices) <= min(limit, limits.shared_per_block):
            return Family("columns", numbers)
    fits = columns_shared(call, _team(64 // call.size, 64), 1) <= min(share, limits.shared_per_block)
    numbers = _team((64 if fits else 32) // call.size, 64)
    return Family("columns_split", (*numbers, _depth(call.n_slices, numbers[1])))


def _team(columns: int, n_leaves: int, n_threads: int = TILE_THREADS) -> tuple[int, int, int]:
    """Columns, threads and leaves: 64 leaves a row, or what there is of them in a power of two."""
    n_row = 64
    while n_row // 2 >= n_leaves:
        n_row //= 2
    team = max(1, min(n_row, n_threads // columns))
    return columns, team, n_row // team


def columns_shared(call: _Call, numbers: tuple[int, ...], n_slices: int) -> int:
    """Bytes of shared memory of a tile: what threads hold, records of slices, and what teams exchange."""
    columns, team, leaves = numbers[:3]
    n_rows = min(-(-call.n_classes // (64 * call.n_leaf)), 4 * n_slices)
    held = n_rows * leaves * call.n_leaf * columns * team * call.size
    return held + n_slices * columns * call.record + 16 * columns * team


def _split_columns(call: _Call, family: Family, n_columns: int, limits: Limits) -> Plan:
    """Summing, then writing, a block for a tile's slice; groups of tiles as in _split_rows."""
    width, team = family.numbers[:2]
    n_writing = min(call.n_slices, MAX_MERGING_BLOCKS)
    n_arrays = 2 if call.op == "log_softmax_backward" else 1
    n_tiles = -(-n_columns // width)
    group = max(1, limits.l2_bytes // 3 // (n_arrays * call.n_classes * call.size * width))
    group = min(group, n_tiles, MAX_GRID_BLOCKS // call.n_slices)
    shared = columns_shared(call, family.numbers, 1)
    launches = []
    for i in range(0, n_tiles, group):
        n = min(group, n_tiles - i)
        place = (i * width, min(n * width, n_columns - i * width))
        launches.append(Launch(f"{call.op}_sums", n * call.n_slices, width * team, shared, *place))
        launches.append(Launch(call.op, n * n_writing, width * team, 16 * width * team, *place))
        if call.op == "log_softmax_backward":
            launches.append(Launch(f"{call.op}_ends", n * n_writing, width * team, 16 * width * team, *place))
    return Plan(tuple(launches), group * width * call.n_slices * (call.record + 8), family)
