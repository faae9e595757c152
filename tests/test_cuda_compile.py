"""NVIDIA's compiler takes the kernels for every supported architecture, and spills no register. No GPU is needed.

The kernels are tried as CuPy compiles them, with -ftz=true. Of the kernels that a pair of dtypes may need on an
architecture, one family is compiled, which --kernel-seed chooses (CI gives the commit); with --every-kernel, which
takes some twenty minutes in two processes, all of them are.
"""

import itertools
import random

import pytest
from cuda_on_cpu import H100, nvrtc

from lsm.backends import _cuda
from lsm.backends._cuda.plan import DeviceLimits, columns_family, module_key, plan, rows_family

NAMES = ("float16", "bfloat16", "float32", "float64")
OPS = ("log_softmax", "log_softmax_backward")
CALLS = [("log_softmax", given, result) for given in NAMES for result in NAMES]  # dtype= may ask for any
CALLS += [("log_softmax_backward", name, name) for name in NAMES]

ARCHITECTURES = [(13, a) for a in (75, 80, 86, 89, 100, 103, 120)] + [(12, a) for a in (70, 75, 90)]

OLDER = [(12, 75), (12, 90)]  # which NVRTC 13 compiles for as well: by this one a sample is enough

# Shared memory of a block and of a multiprocessor, in KB, which decide the family; 1 KB of a block's is the system's.
SHARED = {70: (96, 96), 75: (64, 64), 80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228)}
SHARED |= {100: (227, 228), 103: (227, 228), 120: (99, 100)}


def limits_of(architecture):
    block, multiprocessor = SHARED[architecture]
    return DeviceLimits(block * 1024, multiprocessor * 1024, H100.n_multiprocessors, H100.l2_bytes, architecture)


def families(op, name, out, shapes, limits=H100):
    return sorted({plan(op, name, out, 5, *shape, limits).family for shape in shapes})


def sample(found, seed, turn):
    """A family, which `seed` chooses: of each kind in turn, so that over the calls of an architecture all come up."""
    kinds = {family.name: [other for other in found if other.name == family.name] for family in found}
    names = sorted(kinds)
    return random.Random(f"{seed} {turn}").choice(kinds[names[(random.Random(seed).randrange(5) + turn) % 5]])


def every_family(op, name, out, limits):
    """The families of calls of any number of classes, up to all the memory of a device that has 256 GB."""
    found, n_classes = set(), 1
    while n_classes < 2**37:
        found |= {of(op, name, out, n_classes, limits) for of in (rows_family, columns_family)}
        n_classes += 1 if n_classes < 1100 else n_classes // 50  # no family serves fewer, above
    return sorted(found)


def compile_for(major, architecture, op, name, out, family):
    if nvrtc.library(major) is None:
        pytest.fail(f"no NVRTC {major}: pip install '.[cuda-test]'")
    options = (*module_key(op, name, out, family), f"-arch=sm_{architecture}", "-ftz=true")
    kernels = nvrtc.compile_cubin(major, _cuda.source(), options)
    assert op in kernels
    for kernel, use in kernels.items():
        assert use.spilled == 0 and use.stack == 0, (kernel, family, use)
        if family.name == "shared":  # as many registers as let the blocks be there together
            assert use.registers * family.numbers[0] * family.numbers[1] <= 65536, (kernel, family, use)
    return kernels


@pytest.mark.parametrize("call", CALLS, ids="-".join)
@pytest.mark.parametrize(("major", "architecture"), ARCHITECTURES)
def test_every_family_and_architecture(major, architecture, call, request):
    found = every_family(*call, limits_of(architecture))
    assert {family.name for family in found} == {"group", "shared", "split", "columns", "columns_split"}
    if not request.config.getoption("--every-kernel") or (major, architecture) in OLDER:
        seed = request.config.getoption("--kernel-seed")
        found = [sample(found, f"{seed} {major} {architecture}", CALLS.index(call))]
    for family in found:
        compile_for(major, architecture, *call, family)


@pytest.mark.parametrize(("major", "architecture"), ARCHITECTURES)
def test_a_warp_with_eight_pieces_a_thread(major, architecture):
    """The kernel that needs most registers."""
    (family,) = families("log_softmax_backward", "float64", "float64", [(512, 1)], limits_of(architecture))
    assert family == ("group", (32, 8, 1))
    compile_for(major, architecture, "log_softmax_backward", "float64", "float64", family)


def test_the_seed_chooses():
    found = every_family("log_softmax", "float32", "float32", limits_of(90))
    samples = [sample(found, seed, 0) for seed in range(40)]
    assert sample(found, 3, 0) == samples[3] and len(set(samples)) > 10
    for seed in range(5):
        assert len({sample(found, seed, turn).name for turn in range(len(CALLS))}) == 5


@pytest.mark.parametrize(("major", "architecture"), ARCHITECTURES)
def test_every_piece_of_a_row_is_written_by_one_instruction(major, architecture):
    """A compiler may split a store of 16 bytes whose address it takes for that of a smaller number."""
    cases = [
        ("float16", 60),
        ("float32", 40),
        ("float64", 20),
        ("float32", 1000),
        ("bfloat16", 5000),
        ("float64", 10**6),
    ]
    for op, (name, n) in itertools.product(OPS, cases):
        (family,) = families(op, name, name, [(n, 1)], limits_of(architecture))
        of_a_slice = 4 if "16" in name else 8
        n_pieces = family.numbers[1] * family.numbers[2] if family.name == "group" else of_a_slice
        options = (*module_key(op, name, name, family), f"-arch=compute_{architecture}", "-ftz=true")
        ptx = nvrtc.compile_ptx(major, _cuda.source(), options)[op]
        assert ptx.count("st.global.v") == n_pieces, (op, name, family)


def test_the_limits_are_those_of_the_devices_that_the_plans_are_tested_with():
    assert limits_of(90)[:2] == H100[:2]
    assert set(SHARED) == {architecture for _, architecture in ARCHITECTURES}


def test_what_the_compiler_says_is_understood():
    source = 'extern "C" __global__ void kernel(float *x) {{ {body} }}'
    for body, error in (("x[0] = y;", 'identifier "y" is undefined'), ("int i;", "warning")):
        with pytest.raises(nvrtc.CompileError, match=error):
            nvrtc.compile_cubin(13, source.format(body=body), ("-arch=sm_90",))
    spilling = source.format(
        body="float a[64]; for (int i = 0; i < 64; i++) a[i] = x[i * 128 + threadIdx.x]; __syncthreads();"
        "for (int k = 0; k < 64; k++) { float s = 0;"
        "for (int i = 0; i < 64; i++) s += a[i] * a[(i + k) % 64]; x[k] = s; }"
    )
    use = nvrtc.compile_cubin(13, spilling, ("-arch=sm_90", "-maxrregcount=32"))["kernel"]
    assert use.spilled > 0 and use.registers <= 32
