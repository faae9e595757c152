"""The harness for CUDA code bites: kernels with a fault of each kind that it looks for do fail."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest

from lsm.backends import _cuda

N_BARRIERS = _cuda.source().count("__syncthreads();")

SHARED = "extern __shared__ __align__(16) unsigned char lsm_shared[];\n"
KERNEL = SHARED + 'extern "C" __global__ void kernel(float *x, long long n)\n{{\n{body}\n}}\n'

REVERSE = """
    float *all = (float *)lsm_shared;
    all[threadIdx.x] = x[threadIdx.x];
    {barrier}
    x[threadIdx.x] = all[n - 1 - threadIdx.x];
"""


def kernel_of(body, flags=()):
    return cuda_on_cpu.HostModule(source=KERNEL.format(body=body), flags=flags).get_function("kernel")


def run(body, n=128, shared=512, block=None, grid=1):
    x = np.arange(n, dtype=np.float32)
    kernel_of(body)((grid,), (block or n,), (x, np.int64(n)), shared_mem=shared)
    return x


@pytest.fixture(params=range(5))
def seed(request):
    cuda_on_cpu.HostKernel.seed = request.param
    yield request.param
    cuda_on_cpu.HostKernel.seed = 0


def test_what_is_right_passes(seed):
    np.testing.assert_array_equal(run(REVERSE.format(barrier="__syncthreads();")), np.arange(128)[::-1])
    summed = run("float s = x[threadIdx.x]; for (int k = 1; k < 32; k *= 2) s += __shfl_xor_sync(~0u, s, k);"
                 "x[threadIdx.x] = s;", 64)  # fmt: skip
    np.testing.assert_array_equal(summed, [496] * 32 + [1520] * 32)
    any_of = run("x[threadIdx.x] = __syncthreads_or(threadIdx.x == 70) + 2 * __any_sync(~0u, threadIdx.x < 40);", 96)
    np.testing.assert_array_equal(any_of, [3] * 64 + [1] * 32)
    blocks = run("if (threadIdx.x == 0) x[blockIdx.x] = gridDim.x + blockDim.x;", 8, block=32, grid=8)
    np.testing.assert_array_equal(blocks, np.full(8, 40))


def test_a_missing_barrier_gives_wrong_numbers(seed):
    assert np.isnan(run(REVERSE.format(barrier=""))).any()


def test_shared_memory_that_is_reused_without_a_barrier_gives_wrong_numbers():
    body = """
    float *all = (float *)lsm_shared, sum = 0;
    for (int k = 0; k < 8; k++) {
        if (threadIdx.x == 32 * (k % 4)) all[0] = k;
        __syncthreads();
        sum += all[0];
    }
    x[threadIdx.x] = sum;
    """
    results = set()
    for seed in range(8):
        cuda_on_cpu.HostKernel.seed = seed
        results.add(run(body).tobytes())
    cuda_on_cpu.HostKernel.seed = 0
    assert len(results) > 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 64) __syncthreads();", "divergent barrier: .* 64 threads of 128, 64 have ended"),
        ("if (threadIdx.x < 64)\n__syncthreads();\nelse\n__syncthreads();", "divergent barrier: .*another at line"),
        ("if (threadIdx.x < 5) __shfl_xor_sync(~0u, 1, 1);", "lanes that are not there: 0000001f of ffffffff"),
        ("if (threadIdx.x < 5) __shfl_xor_sync(~0u, 1, 1); else __syncthreads();", "lanes that are not there"),
        ("if (threadIdx.x == 9) __shfl_xor_sync(0xffu, 1, 1);", "of which it is none"),
        ("if (threadIdx.x == 40) lsm_shared[600] = 1;", "written 88 bytes past the end"),
    ],
)
def test_what_would_hang_or_is_undefined_ends_the_launch(body, message, seed):
    with pytest.raises(cuda_on_cpu.LaunchError, match=message):
        run(body)


def test_after_a_failed_launch_the_next_one_runs():
    kernel = kernel_of("if (threadIdx.x < n) __syncthreads();")
    x = np.zeros(1, np.float32)
    for n, fails in ((40, True), (64, False), (33, True), (64, False)):
        if fails:
            with pytest.raises(cuda_on_cpu.LaunchError, match="divergent"):
                kernel((1,), (64,), (x, np.int64(n)))
        else:
            kernel((1,), (64,), (x, np.int64(n)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(grid=0), "no GPU launches 0 blocks"),
        (dict(block=1025), "1025 threads"),
        (dict(shared=50_000), "not opted in to"),
    ],
)
def test_what_no_gpu_launches(arguments, message):
    with pytest.raises(cuda_on_cpu.LaunchError, match=message):
        run("", 8, **{"shared": 0, **arguments})


def test_more_arguments_than_are_passed_on():
    with pytest.raises(cuda_on_cpu.LaunchError, match="17 arguments"):
        kernel_of("")((1,), (1,), [0] * 17)


SANITIZED = """
import numpy as np
import cuda_on_cpu, test_cuda_harness
x = np.zeros(64, np.float32)
kernel = test_cuda_harness.kernel_of({body!r}, cuda_on_cpu.SANITIZE)
kernel((1,), (64,), (x[{first}:], np.int64(64)), shared_mem=64)
print("it ran")
"""


def run_sanitized(script):
    """In a process of its own, which the sanitizer may end."""
    command = [cuda_on_cpu.COMPILER, "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    env = {**os.environ, "LD_PRELOAD": library, "PYTHONPATH": path, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("body", "first", "message"),
    [
        ("x[threadIdx.x + 1] = 1;", 0, "heap-buffer-overflow"),
        ("if (x[threadIdx.x + 1] > 5) x[0] = 1;", 0, "heap-buffer-overflow"),
        ("if (threadIdx.x == 3) x[0] = lsm_shared[n];", 0, "use-after-poison"),
        ("if (threadIdx.x < 15) *(uint4 *)(x + 4 * threadIdx.x) = uint4();", 1, "misaligned address"),
    ],
)
def test_sanitizers_see_into_the_kernels(body, first, message):
    done = run_sanitized(SANITIZED.format(body=body, first=first))
    assert done.returncode != 0 and "it ran" not in done.stdout
    assert message in done.stderr, done.stderr[-3000:]


def test_what_is_right_passes_under_the_sanitizers():
    body = "*(uint4 *)(x + 4 * (threadIdx.x % 16)) = uint4(); __syncthreads(); lsm_shared[threadIdx.x] = 1;"
    done = run_sanitized(SANITIZED.format(body=body, first=0))
    assert "it ran" in done.stdout, done.stderr[-3000:]


WHOLE = """
import ctypes, functools
import numpy as np
import cuda_on_cpu, test_cuda_harness
from conftest import DTYPES
from cuda_on_cpu import HostModule, SANITIZE
source = test_cuda_harness._cuda.source().replace({fault!r}, {instead!r})
module = functools.cache(lambda options: HostModule(options, source, SANITIZE))
poison, heal = (getattr(ctypes.CDLL(None), f"__asan_{{what}}poison_memory_region") for what in ("", "un"))
dtype = DTYPES[{name!r}]
rng = np.random.default_rng(0)
for shape in {shapes}:
    for start in (0, dtype.itemsize, 8):
        n_bytes, touched = int(np.prod(shape)) * dtype.itemsize, start // 8 * 8
        memories = [np.empty(start + n_bytes, np.uint8) for _ in range(3)]  # which end where the array ends
        for memory in memories:
            poison(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(touched))
        x, y, dx = (memory[start:].view(dtype).reshape(shape) for memory in memories)
        x[...] = rng.standard_normal(shape)
        for limits in (cuda_on_cpu.SMALL, cuda_on_cpu.H100):
            cuda_on_cpu.apply("log_softmax", (x,), y, limits, module)
            cuda_on_cpu.apply("log_softmax_backward", (x, y), dx, limits, module)
            cuda_on_cpu.apply("log_softmax_backward", (x, y), y, limits, module)
        for memory in memories:
            heal(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(touched))
print("it ran")
"""


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_the_kernels_under_the_sanitizers(name):
    shapes = [(5, 10, 1), (3, 1001, 1), (2, 4099, 1), (2, 20001, 1), (2, 11, 21), (1, 2501, 9)]
    tiles = (1, 3, 7, 20, 50, 100, 200, 300, 600, 1000, 3100)  # of all kinds, each with one of the dtypes
    shapes += [(2, n, 5) for n in tiles[["float16", "float32", "float64"].index(name) :: 3]]
    done = run_sanitized(WHOLE.format(name=name, shapes=shapes, fault="", instead=""))
    assert "it ran" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("fault", "instead", "message"),
    [
        ("% n_bytes / sizeof(T)", "% 1", "misaligned address"),
        ("get(to[i], x + i * step, i ? 0 : first,", "get(to[i], x + i * step, 0,", "use-after-poison"),
        # Behind the array may lie memory that was freed.
        ("0, last - n_pieces * step, filler)", "0, n, filler)", "heap-(buffer-overflow|use-after-free)"),
        ("at + j < last", "true", "heap-(buffer-overflow|use-after-free)|SEGV on unknown address"),  # or nothing at all
        ("own + j < n_rows * THREAD_ROW_CLASSES ?", "true ?", "use-after-poison"),
    ],
    ids=["alignment", "before a row", "behind a row", "written behind", "behind a tile"],
)
def test_sanitizers_see_into_lsm_s_kernels(fault, instead, message):
    assert _cuda.source().count(fault) == 1
    name, shape = ("float64", (2, 50, 5)) if "n_rows" in fault else ("float32", (3, 1001, 1))
    done = run_sanitized(WHOLE.format(name=name, shapes=[shape], fault=fault, instead=instead))
    assert done.returncode != 0 and "it ran" not in done.stdout
    assert re.search(message, done.stderr), done.stderr[-3000:]


def barriers():
    """The source without one of its barriers, for each of them."""
    parts = _cuda.source().split("__syncthreads();")
    for i in range(1, len(parts)):
        yield "__syncthreads();".join(parts[:i]) + "__syncthreads();".join(["", *parts[i:]])[len("__syncthreads();") :]


def results(modules, shape, limits):
    """Forward and backward in one order of warps."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[:, -1] = 3000  # a maximum in the last slice, which must not be missed
    y, dx = np.empty_like(x), np.empty_like(x)
    cuda_on_cpu.apply("log_softmax", (x,), y, limits, modules)
    cuda_on_cpu.apply("log_softmax_backward", (x, y), dx, limits, modules)
    return y.tobytes() + dx.tobytes()


@pytest.mark.parametrize("missing", range(N_BARRIERS))
def test_no_barrier_of_the_kernels_can_be_left_out(missing):
    """In some order of warps something else comes out, or nothing, of frames in shared memory, split, or in a tile."""
    source = list(barriers())[missing]
    assert source.count("__syncthreads();") == N_BARRIERS - 1
    without = functools.cache(lambda options: cuda_on_cpu.HostModule(options, source))
    for shape, limits in (
        ((1, 3000, 1), cuda_on_cpu.SMALL),
        ((1, 6000, 8), cuda_on_cpu.H100),
        ((1, 40000, 1), cuda_on_cpu.SMALL),
    ):
        want = results(cuda_on_cpu.module, shape, limits)
        for seed in range(12):
            cuda_on_cpu.HostKernel.seed = seed
            try:
                if results(without, shape, limits) != want:
                    return
            except cuda_on_cpu.LaunchError:
                return  # lanes that read other numbers went other ways
            finally:
                cuda_on_cpu.HostKernel.seed = 0
    raise AssertionError("a barrier that nothing needs, or that the harness does not see")
