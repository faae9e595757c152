"""The kernels' exponential against mpmath and longdouble: the figures that exp.pxi states."""

import re
from importlib import import_module
from pathlib import Path

import mpmath
import numpy as np
import oracle
import pytest

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
@pytest.mark.parametrize(("m", "bound"), [(0.0, 1.2), (-3.75, 1.2), (88.75, 1.2), (1e4, 1.2), (0.1, 1.7), (-3.7, 1.7)])
def test_the_exponential(dtype, m, bound):
    """Including the rounding error of x - m, which alone would cost 32 ulp at -90.

    Where m has more digits than the shift of `exp_below`, half an ulp is the rounding of this test's correction.
    """
    kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    m = dtype(m)
    reach = 87 if dtype == np.float32 else 708  # below, the result is subnormal
    x = (np.float64(m) - np.linspace(1e-6, reach, 1_000_003)).astype(dtype)
    x = x[x < m]
    out = np.empty_like(x)
    kernels.exponentials["float" if dtype == np.float32 else "double"](x, m, out)
    exact = np.exp(x.astype(np.longdouble) - np.longdouble(m))
    assert oracle.ulps(out, exact) < bound


def test_the_exponential_at_the_ends():
    kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    x = np.array([0, -np.inf, -1e30, -200, np.nan, -1e-45], np.float32)
    out = np.empty_like(x)
    kernels.exponentials["float"](x, np.float32(0), out)
    np.testing.assert_array_equal(out, np.array([0, 0, 0, 0, np.nan, 1], np.float32))  # x == m is left out
