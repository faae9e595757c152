"""Which CUDA kernels are launched, on what grid: pure functions, so every border is looked at."""

import itertools
import pathlib
import re

import pytest
from cuda_on_cpu import H100, SMALL

from lsm.backends import _cuda
from lsm.backends._cuda.plan import MAX_GRID_BLOCKS, DeviceLimits, columns_family, module_key, plan, rows_family

NAMES = ("float16", "bfloat16", "float32", "float64")
OPS = ("log_softmax", "log_softmax_backward")
A100 = DeviceLimits(166912, 167936, 108, 40 * 2**20, 80)
L4 = DeviceLimits(101376, 102400, 58, 48 * 2**20, 89)
DEVICES = (H100, A100, L4, SMALL)

N_CLASSES = (1, 2, 7, 8, 9, 31, 32, 33, 127, 128, 129, 512, 513, 1000, 1024, 1025, 5000, 16384, 16385, 32768, 50257)
N_CLASSES += (57000, 58000, 114_000, 262_144, 2**24, 2**31 + 5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("name", "borders"),
    [
        # up to so many classes: 2, 4, 8, 16 lanes; a warp; shared memory with two blocks or more, with one
        ("float32", (8, 16, 32, 64, 1024, 28672, 57344)),
        ("bfloat16", (16, 32, 64, 128, 1024, 56320, 114688)),
        ("float64", (4, 8, 16, 32, 512, 28672)),
    ],
)
def test_borders_of_rows_on_an_h100(op, name, borders):
    def family(n):
        return rows_family(op, name, name, n, H100)

    for lanes, border in zip((2, 4, 8, 16), borders, strict=False):
        assert family(border).numbers[0] == lanes
        assert family(border + 1).numbers[0] == 2 * lanes
    assert family(borders[4]).name == "group"
    assert family(borders[4] + 1).name == "shared"
    if name != "float64":
        assert family(borders[5]).numbers == (512, 2)
        assert family(borders[5] + 1025).numbers == (1024, 1)  # a slice more or less: Part takes more than Record
    assert family(borders[-1]).name == "shared"
    assert family(borders[-1] + 1).name == "split"


@pytest.mark.parametrize(
    ("name", "borders"), [("float32", (128, 256, 1024)), ("float16", (256, 512, 1024)), ("float64", (64, 128, 512))]
)
def test_lanes_have_several_short_frames_forward(name, borders):
    """As many as there are lanes to end them; so many classes are the last with four, two and one."""
    for n in range(1, borders[-1] + 1):
        lanes, _, frames = rows_family("log_softmax", name, name, n, H100).numbers
        assert frames == min(lanes, 4 if n <= borders[0] else 2 if n <= borders[1] else 1)
        assert rows_family("log_softmax_backward", name, name, n, H100).numbers[2] == 1


@pytest.mark.parametrize("op", OPS)
def test_a_frame_in_shared_memory_has_no_more_slices_than_are_merged(op):
    roomy = DeviceLimits(2**20, 2**20, 132, 50 * 2**20, 130)  # more than any device has today
    assert rows_family(op, "float16", "float16", 128 * 1024, roomy).name == "shared"
    assert rows_family(op, "float16", "float16", 128 * 1024 + 1, roomy).name == "split"


def test_borders_of_columns_on_an_h100():
    def numbers(n, name="float32"):
        family = columns_family("log_softmax", name, name, n, H100)
        return family.name, family.numbers[:2]

    assert [numbers(n) for n in (16, 32, 64)] == [("columns", n) for n in ((256, 1), (128, 2), (64, 4))]
    assert numbers(65) == numbers(512) == ("columns", (32, 8))
    assert numbers(513) == numbers(1024) == ("columns", (16, 16))
    assert numbers(1025) == numbers(2048) == ("columns", (8, 32))
    assert numbers(2049) == numbers(3328) == ("columns", (16, 32))  # one block of 512 threads
    assert numbers(3329) == numbers(6912) == ("columns", (8, 64))
    assert numbers(6913) == ("columns_split", (16, 16))
    assert numbers(200, "float16") == ("columns", (64, 4))
    assert numbers(200, "float64") == ("columns", (16, 16))


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_the_family_depends_on_the_frame_and_not_on_how_many_there_are(op, limits):
    for name, n in itertools.product(NAMES, N_CLASSES):
        many = (1, 2, 1000) if n > 512 else (1, 2, 1000, 2**33)  # split frames of which would be very many launches
        assert len({plan(op, name, name, k, n, 1, limits).family for k in many}) == 1
        of_columns = {plan(op, name, name, k, n, inner, limits).family for k in (1, 50) for inner in (2, 3, 64)}
        assert len(of_columns) == 1


@pytest.mark.parametrize("limits", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_launches_are_what_the_device_takes_and_serve_every_frame(op, limits):
    for name, n, inner, n_outer in itertools.product(NAMES, N_CLASSES, (1, 2, 33), (1, 7, 1001, 2**32)):
        if n > 512 and n_outer > 7:
            continue
        wanted = plan(op, name, name, n_outer, n, inner, limits)
        done = {}
        for launch in wanted.launches:
            assert 1 <= launch.grid <= MAX_GRID_BLOCKS
            assert 32 <= launch.block <= 1024 and launch.block % 32 == 0
            assert 0 <= launch.shared <= limits.shared_per_block
            assert launch.first_frame == done.get(launch.kernel, 0)  # each goes on where it ended
            assert launch.n_frames >= 1
            done[launch.kernel] = launch.first_frame + launch.n_frames
            served = frames_served(wanted.family, launch, n, name)
            assert launch.n_frames <= served, (wanted.family, launch)
            if "split" not in wanted.family.name:  # there is no block that serves none
                assert served - served // launch.grid < launch.n_frames, (wanted.family, launch)
        assert set(done.values()) == {n_outer * inner}
        assert op in done
        if "split" in wanted.family.name:
            most = max(launch.n_frames for launch in wanted.launches)
            n_slices = -(-n // (512 if name == "float64" else 1024))
            record = 24 if name == "float64" or op == "log_softmax_backward" else 16
            tile = wanted.family.numbers[0] if inner > 1 else 1
            assert wanted.workspace >= -(-most // tile) * tile * n_slices * (record + (4 if record == 24 else 0))
        else:
            assert wanted.workspace == 0 and set(done) == {op}


def frames_served(family, launch, n_classes, name):
    """How many frames the blocks of a launch have, or all of them have the same number of blocks."""
    if family.name == "group":
        return launch.grid * (launch.block // family.numbers[0]) * family.numbers[2]
    if family.name == "shared":
        return launch.grid
    if family.name == "columns":
        return launch.grid * family.numbers[0]
    tiles = launch.n_frames if family.name == "split" else -(-launch.n_frames // family.numbers[0])
    assert launch.grid % tiles == 0
    if launch.kernel.endswith("_sums"):  # a place for each slice
        n_slices = -(-n_classes // (512 if name == "float64" else 1024))
        assert launch.grid // tiles * (8 if family.name == "split" else 1) >= n_slices
    return launch.n_frames


def test_groups_of_frames_stay_in_the_cache():
    n = 2**20
    wanted = plan("log_softmax", "float32", "float32", 100, n, 1, H100)
    assert [launch.kernel for launch in wanted.launches[:2]] == ["log_softmax_sums", "log_softmax"]
    assert all(launch.n_frames * n * 4 <= H100.l2_bytes / 3 for launch in wanted.launches)
    assert len(wanted.launches) == 2 * 25
    assert len(plan("log_softmax", "float32", "float32", 3, 2**26, 1, H100).launches) == 2 * 3


def test_nothing_is_launched_for_an_empty_array():
    for shape in ((0, 5, 1), (5, 0, 1), (5, 5, 0), (0, 0, 0), (0, 100_000, 7)):
        for op in OPS:
            wanted = plan(op, "float32", "float32", *shape, H100)
            assert wanted.launches == () and wanted.workspace == 0


def test_a_frame_has_all_its_slices_in_the_workspace_of_its_group():
    for op, inner in itertools.product(OPS, (1, 40)):
        wanted = plan(op, "float16", "float16", 3, 10**6, inner, SMALL)
        assert wanted.workspace > 0
        assert len({launch.block for launch in wanted.launches}) == 1


def test_the_key_of_a_module_is_all_that_it_is_compiled_with():
    keys = {}
    for op, given, result, n, inner in itertools.product(OPS, NAMES, NAMES, N_CLASSES, (1, 5)):
        if op == "log_softmax_backward" and given != result:
            continue
        family = plan(op, given, result, 3, n, inner, H100).family
        key = module_key(op, given, result, family)
        assert len(set(key)) == len(key)
        assert keys.setdefault(key, (op, given, result, family)) == (op, given, result, family)
    assert len(keys) > 200


def test_the_source_needs_no_header_and_names_its_files():
    source = _cuda.source()
    assert "#include" not in source
    folder = pathlib.Path(_cuda.__file__).parent
    assert sorted(re.findall('^#line 1 "(.*)"$', source, re.M)) == sorted(file.name for file in folder.glob("*.cu"))
    assert source.isascii()
    assert max(map(len, source.splitlines())) <= 120
