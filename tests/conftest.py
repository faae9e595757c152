"""Every test with the fixture `backend` runs on every backend; with `dtype` too, on every dtype that it claims."""

import contextlib
import importlib.util
import os
import signal
import tempfile

import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import adapter, nvrtc

import lsm
from lsm import _dispatch, _fastpath
from lsm._version import DISTRIBUTION
from lsm.backends import registry
from lsm.backends.candidate import Candidate
from lsm.backends.discovery import EntryPoint

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "longdouble": np.dtype(np.longdouble),
}
# All backends of lsm. Those of the CUDA kernels take NumPy arrays: on the CPU, and on a GPU with CuPy (--require cupy).
# A backend that cannot be used here is skipped, or left out if it needs a GPU, unless required.
BACKENDS = ("cython", "numpy", "cuda-on-cpu", "cupy")
ADAPTERS = {
    key: Candidate(
        EntryPoint(made.name, DISTRIBUTION, lsm.__version__, adapter.__file__, f"cuda_on_cpu.adapter:{attribute}"),
        made,
        is_built_in=True,
    )
    for key, attribute, made in (
        ("cuda-on-cpu", "on_cpu", adapter.on_cpu),
        ("cupy", "on_gpu", adapter.on_gpu),
    )
}

# These tests need libraries that lsm does not; CI installs these and runs the files by name.
_missing = [name for name in ("torch", "jax") if importlib.util.find_spec(name) is None]
collect_ignore = ["test_interop.py"] if _missing else []
if "torch" in _missing:
    collect_ignore.append("test_on_gpu_contents.py")
ZOO = ("array_api_strict", "astropy", "awkward", "cubed", "dask", "distributed", "h5py", "netCDF4", "nibabel", "pandas")
ZOO += ("pint", "polars", "pyarrow", "ray", "safetensors", "scipy", "sparse", "tables", "tensorstore", "unyt")
ZOO += ("xarray", "zarr")
_no_zoo = [name for name in ZOO if importlib.util.find_spec(name) is None]
if _no_zoo:
    collect_ignore += ["test_zoo.py", "test_dask.py", "test_xarray.py", "test_apply_stores.py"]
    collect_ignore += ["test_apply_cluster.py", "test_apply_parts.py"]
_no_nvrtc = [name for major, name in nvrtc.WHEELS.items() if nvrtc.library(major) is None]
if _no_nvrtc:
    collect_ignore.append("test_cuda_compile.py")

with contextlib.suppress(lsm.BackendUnavailableError):
    registry.registry().built_in("cupy").load()
_no_gpu = registry.registry().built_in("cupy").info()
if _no_gpu.state != "loaded":
    collect_ignore.append("test_on_gpu.py")


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        action="append",
        default=["cython", "numpy"],
        help="a backend whose tests may not be skipped",
    )
    parser.addoption(
        "--every-kernel",
        action="store_true",
        help="compile every CUDA kernel for every architecture, not a sample (test_cuda_compile.py)",
    )
    parser.addoption("--kernel-seed", default="", help="selects the CUDA kernel of each family to compile")


def pytest_configure(config):
    config.addinivalue_line("markers", "operation(name): run only on the backends that have this operation")
    if "CUDA_ON_CPU_LIBRARIES" not in os.environ:  # the processes of pytest-xdist share the built kernels
        folder = tempfile.TemporaryDirectory(prefix="lsm-cuda-on-cpu-")
        os.environ["CUDA_ON_CPU_LIBRARIES"] = folder.name
        config.add_cleanup(folder.cleanup)
    # Under nohup, SIGHUP is ignored, also by commands that tests start, so that its effect could not be tested.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_report_header(config):
    lines = []
    for file, missing, extra in (
        ("test_interop.py", _missing, "interop"),
        ("test_on_gpu_contents.py", [name for name in _missing if name == "torch"], "interop"),
        ("test_zoo.py, test_dask.py, test_xarray.py, test_apply_{stores,parts,cluster}.py", _no_zoo, "zoo"),
        ("test_cuda_compile.py", _no_nvrtc, "cuda-test"),
    ):
        if missing:
            lines.append(f"left out: {file} ({', '.join(missing)} not installed; '.[{extra}]' has them)")
    if "test_on_gpu.py" in collect_ignore:
        lines.append(f"left out: test_on_gpu.py ({_no_gpu.reason})")
    if _claims("cupy") is None:
        lines.append(f"left out: the tests of every backend for cupy on a GPU ({ADAPTERS['cupy'].reason})")
    return lines


def _claims(name):
    if name in ADAPTERS:
        with contextlib.suppress(lsm.BackendUnavailableError):
            ADAPTERS[name].load()
        info = ADAPTERS[name].info()
    else:
        info = next((info for info in lsm.list_backends() if info.name == name and info.is_built_in), None)
    return info if info is not None and info.state == "loaded" else None


def _operations(name):
    return (ADAPTERS.get(name) or registry.registry().built_in(name)).peek_declaration().operations


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    with_dtype = "dtype" in metafunc.fixturenames
    required = metafunc.config.getoption("--require")
    operation = metafunc.definition.get_closest_marker("operation")
    cases = []
    elsewhere = {name for mark in metafunc.definition.iter_markers("except_backend") for name in mark.args}
    for name in BACKENDS:
        if name in elsewhere and name not in required:
            continue
        if operation and operation.args[0] not in _operations(name):
            continue
        info = _claims(name)
        if info is None and name in required:
            reason = f": {ADAPTERS[name].reason}" if name in ADAPTERS else ""
            raise pytest.UsageError(f"backend {name} is required and cannot be used here{reason}")
        if info is None and name == "cupy":
            continue
        marks = [] if info else [pytest.mark.skip(reason=f"backend {name} cannot be used here")]
        if not with_dtype:
            cases.append(pytest.param(name, id=name, marks=marks))
        for dtype in (info.dtypes if info else ("float32",)) if with_dtype else ():
            cases.append(pytest.param(name, DTYPES[dtype], id=f"{name}-{dtype}", marks=marks))
    metafunc.parametrize(["backend", "dtype"] if with_dtype else "backend", cases, indirect=["backend"])


@pytest.fixture
def backend(request):
    """The name of a backend, known to lsm while the test runs."""
    if request.param not in ADAPTERS:
        yield request.param
        return
    candidate = ADAPTERS[request.param]
    known = registry.registry()
    known._others = (*known.others(), candidate)
    yield candidate.name
    known._others = tuple(other for other in known.others() if other is not candidate)
    _fastpath.by_name.pop(candidate.name, None)


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


@pytest.fixture(autouse=True)
def _clean_policy():
    """Restore the default backend after each test."""
    yield
    lsm.set_default_backend(None)


@pytest.fixture
def installed():
    """Add a backend to those found, as if a distribution provided it."""

    def install(backend, distribution="acme-lsm"):
        found = EntryPoint(backend.name, distribution, "1.0", "/site/acme/entry_points.txt", "acme:backend")
        candidate = Candidate(found, backend)
        known = registry.registry()
        known._others = (*known.others(), candidate)
        _dispatch.policy_for(None).clear()
        return backend

    lsm.refresh_backends()
    yield install
    lsm.refresh_backends()
