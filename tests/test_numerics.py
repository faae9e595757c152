"""The kernels' exponential against mpmath and longdouble: the figures that exp.pxi states.

benchmarks/exponential.py tries every float32; here it tries some.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import mpmath
import numpy as np
import oracle
import pytest

import lsm
from exponential import SHIFTS, borders, every_float32, try_double, try_forward, try_gradient, try_infinite_shift
from lsm._config import ISA_LEVELS
from lsm.backends import cython_

SOURCE = Path(__file__).parent.parent / "lsm" / "backends" / "_kernels" / "exp.pxi"


def coefficients():
    """Those of P in the source, c2 first: for float32, then for float64."""
    body = SOURCE.read_text().partition("cdef inline floating expm1_reduced")[2].partition("return")[0]
    single, double = body.partition("else:")[::2]
    return [
        [float(c) for c in re.findall(r"(?<![\w.])[0-9]\.?[0-9]*(?:e-[0-9]+)?$", text, re.MULTILINE)][::-1]
        for text in (single, double)
    ]


@pytest.mark.parametrize(("which", "n", "bits"), [(0, 5, 27.7), (1, 10, 56.4)])
def test_the_polynomial_is_as_near_as_stated(which, n, bits):
    c = coefficients()[which]
    assert len(c) == n
    with mpmath.workprec(120):
        worst = 0
        for k in range(-2000, 2001):
            r = mpmath.log(2) / 2 * k / 2000
            value = 1 + r + r**2 * sum(c_i * r**i for i, c_i in enumerate(c))
            worst = max(worst, abs(value / mpmath.exp(r) - 1))
        assert bits < -mpmath.log(worst, 2) < bits + 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [0.0, -3.75, 88.75, 1e4, 0.1, -3.7])
def test_the_exponential(dtype, m):
    """Including the rounding error of x - m, which alone would cost 32 ulp at -90.

    Up to half an ulp is the rounding of what `exponentials` returns, which a sum is spared.
    """
    kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    m = dtype(m)
    reach = 87 if dtype == np.float32 else 708  # below, the result is subnormal
    x = (np.float64(m) - np.linspace(1e-6, reach, 1_000_003)).astype(dtype)
    x = x[x < m]
    out = np.empty_like(x)
    kernels.exponentials["float" if dtype == np.float32 else "double"](x, m, out)
    exact = np.exp(x.astype(np.longdouble) - np.longdouble(m))
    assert oracle.ulps(out, exact) < (1.35 if m == 0 else 1.8 if dtype == np.float32 else 2.2)  # exp(-0) is 1


def test_the_exponential_at_the_ends():
    kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    x = np.array([0, -np.inf, -1e30, -200, np.nan, -1e-45], np.float32)
    out = np.empty_like(x)
    kernels.exponentials["float"](x, np.float32(0), out)
    np.testing.assert_array_equal(out, np.array([0, 0, 0, 0, np.nan, 1], np.float32))  # x == m is left out


def levels_here():
    """Every instruction level of this build that this processor runs."""
    best = import_module("lsm.backends._kernels.cpu").best_level()
    levels = ISA_LEVELS[ISA_LEVELS.index(best) :]
    return [level for level in levels if find_spec(f"lsm.backends._kernels.{level}")]


@pytest.mark.parametrize("level", levels_here())
def test_some_of_every_float32_at_every_level(level):
    """Every 10,007th, and 129 around each border of the reduction."""
    kernels = import_module(f"lsm.backends._kernels.{level}")
    for m in SHIFTS:
        near = borders(np.float32, -250)
        with np.errstate(over="ignore"):
            of_difference = (np.float64(m) + near).astype(np.float32)
        found = try_forward(kernels, m, [near, of_difference, *every_float32(10_007)])
        assert not found.wrong
        assert found.ulps < (1.35 if m == 0 else 1.8), (m, found.at)
        assert found.subnormal < 1.1
    assert not try_infinite_shift(kernels).wrong


@pytest.mark.parametrize("level", levels_here())
@pytest.mark.parametrize("m", [0.0, 300.1])
def test_float64_around_the_borders_at_every_level(level, m, rng):
    found = try_double(import_module(f"lsm.backends._kernels.{level}"), m, 20_000, rng)
    assert found.ulps < (1.1 if m == 0 else 2.2), found.at


def test_some_of_every_float32_in_the_gradient():
    found = try_gradient([borders(np.float32, -150), -borders(np.float32, -126), *every_float32(10_007)])
    assert not found.wrong
    assert found.ulps < 1.7 and found.subnormal < 1.1


DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
CANCELLING = {
    "bfloat16": (2.0**60, 1.0, -(2.0**60)),
    "float32": (2.0**60, 1.0, -(2.0**60)),
    "float16": (65504.0, 2.0**-24, -65504.0),  # its largest and its smallest number
}


@pytest.mark.parametrize("n", [33, 1000, 8192])
@pytest.mark.parametrize("by", ["cython", "numpy"])
@pytest.mark.parametrize("name", CANCELLING)
def test_gradients_that_cancel_are_off_by_no_more_than_the_known_limit(name, by, n):
    """docs/numerics.md: S is off by 2^-52 of sum(abs(dy)) in float32 and bfloat16, and right in float16."""
    dy, y = np.zeros(n, DTYPES[name]), np.full(n, -3.5, DTYPES[name])
    dy[[0, n // 2, n - 1]] = CANCELLING[name]
    small = float(dy[n // 2])
    y[1] = 0  # where exp(y) is 1, so that the smallest S shows
    dx = lsm.log_softmax_backward(dy, y, backend=by)
    p = np.exp(y.astype(np.longdouble))
    exact = dy.astype(np.longdouble) - p * small
    bound = {"float32": 4, "float16": 0.501, "bfloat16": 0.501}[name]
    at = np.maximum(np.maximum(np.abs(exact), np.abs(dy.astype(np.longdouble))), p * small)
    allowed = bound * oracle.spacing(at, DTYPES[name])
    error = np.abs(dx.astype(np.longdouble) - exact)
    if by == "numpy" or name == "float16":
        assert (error <= allowed).all()
    else:
        assert (error <= allowed + p * 2.0**-52 * np.abs(dy.astype(np.longdouble)).sum()).all()
