"""The kernels to launch, their grid and their shared memory: pure functions that need no GPU.

The family of kernels depends on the number of classes, the dtypes, whether n_inner > 1, and the device; never on the
number of frames, strides or alignment. The bits do not depend on the family either: all kernels add in the same order
(sums.cu).
"""

from typing import Literal, NamedTuple

Op = Literal["log_softmax", "log_softmax_backward"]


class OpTraits(NamedTuple):
    """The properties of an operation that its launches depend on; its struct in op_NAME.cu has the rest."""

    reduces: Literal["exponentials", "terms"]  # of the first input, which is kept on chip: see reduce_*.cu
    n_inputs: int
    limits_range: bool  # of the second input: whether a frame becomes NaN is known when all of it is read


OPS: dict[Op, OpTraits] = {
    "log_softmax": OpTraits("exponentials", 1, False),
    "log_softmax_backward": OpTraits("terms", 2, True),
}

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_TYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}

MAX_GRID_BLOCKS = 2**31 - 1
GROUP_BLOCK_THREADS = 128  # with one or more frames per warp
IN_FLIGHT_PIECES = 4  # per thread, of frames processed in turn: more bytes in flight
SPLIT_BLOCK_WARPS = 8  # one slice per warp
SYSTEM_SHARED_BYTES = 1024  # reserved by the system in every block's shared memory
SHARED_MAX_SLICES = 128  # of a frame in shared memory: the limit of merge<3> in rows.cu
MAX_MERGING_BLOCKS = 256  # of one frame, each of which merges all slices
TILE_THREADS = 256
LARGE_TILE_THREADS = 512  # of a tile alone on a multiprocessor: fewer have too few loads in flight


class DeviceLimits(NamedTuple):
    """The limits of a device."""

    shared_per_block: int  # bytes, with the opt-in
    shared_per_multiprocessor: int
    n_multiprocessors: int
    l2_bytes: int
    architecture: int  # 90 for compute capability 9.0


class Family(NamedTuple):
    """Kernels compiled as one module, and the numbers they are compiled with."""

    name: str
    numbers: tuple[int, ...] = ()


class Launch(NamedTuple):
    """One kernel launch. first_frame and n_frames are its last two arguments."""

    kernel: str
    grid: int
    block: int
    shared: int
    first_frame: int = 0
    n_frames: int = 0


class LaunchPlan(NamedTuple):
    """Launches in order, and the bytes of workspace that they share."""

    launches: tuple[Launch, ...]
    workspace: int
    family: Family


class _Call(NamedTuple):
    """The parameters of a call that the kernels depend on."""

    op: Op
    size: int  # bytes of an input element
    is_double: bool  # arithmetic in double
    n_classes: int

    @property
    def traits(self) -> OpTraits:
        return OPS[self.op]

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
        """Bytes of the partial result of a slice: Record in reduce_exponentials.cu, or Part in reduce_terms.cu."""
        return 24 if self.is_double or self.traits.reduces == "terms" else 16


def plan(
    op: Op, dtype: str, out_dtype: str, n_outer: int, n_classes: int, n_inner: int, limits: DeviceLimits
) -> LaunchPlan:
    """The launches for an array seen as (outer, classes, inner); none if it is empty."""
    call = _Call(op, SIZES[dtype], "float64" in (dtype, out_dtype), n_classes)
    n_frames = n_outer * n_inner
    if n_frames == 0 or n_classes == 0:
        return LaunchPlan((), 0, Family("none"))
    if n_inner == 1:
        family = rows_family(call.op, dtype, out_dtype, n_classes, limits)
        if family.name == "split":
            return _split(call, family, n_frames, limits)
        return LaunchPlan(_rows(call, family, n_frames), 0, family)
    family = columns_family(call.op, dtype, out_dtype, n_classes, limits)
    if family.name == "columns_split":
        return _split(call, family, n_frames, limits)
    n_columns = family.numbers[0]
    shared = columns_shared(call, family.numbers, call.n_slices)
    return LaunchPlan(_over(n_frames, n_columns, op, n_columns * family.numbers[1], shared), 0, family)


def module_key(op: Op, dtype: str, out_dtype: str, family: Family) -> tuple[str, ...]:
    """The compiler options of one family, which are the key of its module."""
    names = {
        "group": ("LSM_LANES", "LSM_PIECES", "LSM_FRAMES"),
        "shared": ("LSM_THREADS", "LSM_BLOCKS"),
        "split": ("LSM_DEPTH",),
        "columns": ("LSM_COLUMNS", "LSM_TEAM", "LSM_LEAVES"),
        "columns_split": ("LSM_COLUMNS", "LSM_TEAM", "LSM_LEAVES", "LSM_DEPTH"),
    }.get(family.name, ())
    return (
        "--std=c++17",
        "-fmad=false",  # every FMA is written as one
        f"-DLSM_X={_TYPES[dtype]}",
        f"-DLSM_Y={_TYPES[out_dtype]}",
        f"-DLSM_OP={op.title().replace('_', '')}",
        f"-DLSM_NAME={op}",
        f"-DLSM_INPUTS={OPS[op].n_inputs}",
        f"-DLSM_LIMITS_RANGE={OPS[op].limits_range:d}",
        "-DLSM_" + {"columns": "COLUMNS_ON_CHIP"}.get(family.name, family.name.upper()),
        *(f"-D{name}={number}" for name, number in zip(names, family.numbers, strict=True)),
    )


# -- inner = 1 ------------------------------------------------------------------------------------------------------


def rows_family(op: Op, dtype: str, out_dtype: str, n_classes: int, limits: DeviceLimits) -> Family:
    """The family for frames of consecutive classes.

    group: 2 to 32 lanes of a warp hold a frame in registers. shared: a block holds a frame in shared memory, with two
    or more blocks per multiprocessor if they fit. split: several blocks read a frame twice.
    """
    call = _Call(op, SIZES[dtype], "float64" in (dtype, out_dtype), n_classes)
    if n_classes <= call.n_slice:
        lanes = 2
        while lanes < 32 and lanes * call.n_piece < n_classes:
            lanes *= 2
        pieces = -(-n_classes // (lanes * call.n_piece))
        # Several, so that each lane finalizes a different frame; of two inputs, the registers hold one frame.
        frames = min(lanes, max(1, IN_FLIGHT_PIECES // pieces)) if call.traits.n_inputs == 1 else 1
        return Family("group", (lanes, pieces, frames))
    shared = shared_of_frame(call)
    if shared <= limits.shared_per_block and call.n_slices <= SHARED_MAX_SLICES:
        # On sm_70 the float32 gradient needs more registers than 1,024 threads leave.
        if call.is_double or (limits.architecture < 75 and call.traits.n_inputs == 2):
            return Family("shared", (512, 1))
        pair_fits = 2 * (shared + SYSTEM_SHARED_BYTES) <= limits.shared_per_multiprocessor
        return Family("shared", (512, 2) if call.n_slices <= 16 or pair_fits else (1024, 1))
    return Family("split", (_depth(call.n_slices, 32 * SPLIT_BLOCK_WARPS),))


def _depth(n_slices: int, n_threads: int) -> int:
    """The depth of the fold over one thread's share of the slices (Fold and Share in sums.cu)."""
    return max(4, (-(-n_slices // n_threads) - 1).bit_length() + 1)


def shared_of_frame(call: _Call) -> int:
    """Bytes of shared memory of a block that holds a frame."""
    return call.n_slices * (call.n_slice * call.size + call.record) + 4 * 32


def _rows(call: _Call, family: Family, n_frames: int) -> tuple[Launch, ...]:
    if family.name == "group":
        lanes, _, frames = family.numbers
        return _over(n_frames, GROUP_BLOCK_THREADS // lanes * frames, call.op, GROUP_BLOCK_THREADS, 0)
    block = min(family.numbers[0], 32 * call.n_slices)
    return _over(n_frames, 1, call.op, block, shared_of_frame(call))


def _over(n_frames: int, per_block: int, kernel: str, block: int, shared: int) -> tuple[Launch, ...]:
    """Launches of blocks with per_block frames each, within the maximal grid."""
    step = MAX_GRID_BLOCKS * per_block
    return tuple(
        Launch(kernel, -(-min(step, n_frames - i) // per_block), block, shared, i, min(step, n_frames - i))
        for i in range(0, n_frames, step)
    )


# -- inner > 1 ------------------------------------------------------------------------------------------------------


def columns_family(op: Op, dtype: str, out_dtype: str, n_classes: int, limits: DeviceLimits) -> Family:
    """The family for adjacent frames: one block per tile of columns, one team of threads per column.

    The numbers are columns per tile, threads per team, and leaves per thread in each row. Tiles are 128 bytes wide if
    three fit a multiprocessor, else 64, else 32; wider if there are few classes. If no three fit, one larger block per
    multiprocessor.
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
    """Columns, threads and leaves: 64 leaves per row, or the next power of two for fewer."""
    n_row = 64
    while n_row // 2 >= n_leaves:
        n_row //= 2
    team = max(1, min(n_row, n_threads // columns))
    return columns, team, n_row // team


def columns_shared(call: _Call, numbers: tuple[int, ...], n_slices: int) -> int:
    """Bytes of shared memory of a tile: the elements, the records of slices, and the scratch of teams."""
    columns, team, leaves = numbers[:3]
    n_rows = min(-(-call.n_classes // (64 * call.n_leaf)), 4 * n_slices)
    held = n_rows * leaves * call.n_leaf * columns * team * call.size
    return held + n_slices * columns * call.record + 16 * columns * team


# -- split frames ---------------------------------------------------------------------------------------------------


def _split(call: _Call, family: Family, n_frames: int, limits: DeviceLimits) -> LaunchPlan:
    """Sum, then write, in groups of frames or of tiles small enough for the second kernel to find in the L2 cache."""
    if family.name == "split":
        width, block, n_blocks = 1, 32 * SPLIT_BLOCK_WARPS, -(-call.n_slices // SPLIT_BLOCK_WARPS)
        shared, scratch = 0, 24 * SPLIT_BLOCK_WARPS
    else:
        width, block, n_blocks = family.numbers[0], family.numbers[0] * family.numbers[1], call.n_slices
        shared, scratch = columns_shared(call, family.numbers, 1), 16 * block
    n_writing = min(n_blocks, MAX_MERGING_BLOCKS)
    n_tiles = -(-n_frames // width)
    group = max(1, limits.l2_bytes // 3 // (call.traits.n_inputs * call.n_classes * call.size * width))
    group = min(group, n_tiles, MAX_GRID_BLOCKS // n_blocks)
    launches = []
    for i in range(0, n_tiles, group):
        n = min(group, n_tiles - i)
        place = (i * width, min(n * width, n_frames - i * width))
        launches.append(Launch(f"{call.op}_sums", n * n_blocks, block, shared, *place))
        launches.append(Launch(call.op, n * n_writing, block, scratch, *place))
        if call.traits.limits_range:
            launches.append(Launch(f"{call.op}_ends", n * n_writing, block, scratch, *place))
    return LaunchPlan(tuple(launches), group * width * call.n_slices * (call.record + 8), family)
