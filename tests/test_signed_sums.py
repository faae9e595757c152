"""`logsumexp` with `b=`: accuracy against mpmath, signs, what takes no part, and shapes."""

import itertools
import warnings

import mpmath
import numpy as np
import pytest
from oracle import LD, mp_from, mp_to_ld, spacing

import lsm

pytestmark = pytest.mark.operation("logsumexp")


def exact(a, b):
    """The logarithm and the sign of the sum from its definition, the scale of its bound, and the cancellation C."""
    terms = [(x, w) for x, w in zip(a, b, strict=True) if w != 0]
    span = max(x for x, _ in terms) - min(x for x, _ in terms)
    with mpmath.workprec(2500 + int(1.45 * min(float(span), 12_000))):
        values = [mp_from(w) * mpmath.exp(mp_from(x)) for x, w in terms]
        total = mpmath.fsum(values)
        k = max(range(len(terms)), key=lambda i: abs(values[i]))
        logs = abs(mp_from(terms[k][0])), abs(mpmath.log(abs(mp_from(terms[k][1]))))
        if total == 0:
            return -np.inf, 0, max(map(float, logs)), np.inf
        logarithm = mpmath.log(abs(total))
        cancellation = mpmath.fsum(map(abs, values)) / abs(total)
    with mpmath.workprec(200):
        return mp_to_ld(+logarithm), int(mpmath.sign(total)), max(map(float, logs)), float(cancellation)


def excess(a, b, backend):
    """The error over what the bound allows; the sign must be right."""
    expected, sign, scale, cancellation = exact(a.astype(LD), b.astype(LD))
    found, found_sign = lsm.logsumexp(a, b=b, return_sign=True, backend=backend)
    assert found_sign == sign or cancellation > 2.0**50
    if not np.isfinite(expected):
        assert found == expected
        return 0
    n_ulps = 0.501 if found.dtype.itemsize == 2 else 4
    one = spacing(max(scale, abs(expected)), found.dtype)
    return abs(LD(found) - expected) / (n_ulps * one + 2.0**-50 * cancellation)


def test_accuracy(backend, dtype, rng):
    for n, scale, offset in ((2, 1e-3, 0), (3, 1, 50), (10, 0.2, -3), (30, 5, 1), (2, 1e-6, 20), (12, 30, 0)):
        a = (offset + scale * rng.standard_normal(n)).astype(dtype)
        for b in (
            rng.choice([-1, 1], n),
            rng.standard_normal(n),
            rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n),
        ):
            assert excess(a, b.astype(dtype), backend) <= 1


def test_near_terms_keep_all_digits(backend):
    for gap in (1e-1, 1e-5, 1e-10, 1e-15):
        a = np.array([gap, 0.0])
        assert abs(lsm.logsumexp(a, b=[1, -1], backend=backend) - np.log(np.expm1(gap))) <= 4 * np.spacing(
            abs(np.log(np.expm1(gap)))
        )


def test_terms_at_the_ends_of_the_range(backend):
    f4 = np.float32
    assert lsm.logsumexp(f4([0, 110]), b=f4([1e30, 1e-40]), backend=backend) == f4(69.07755)
    for a, b in (
        ([0, 746], [10, 5e-324]),
        ([1000, 0], [1e-300, 1e300]),
        ([1455, 0], [5e-324, 1e308]),
        ([0, -1455], [5e-324, 1e308]),
    ):
        assert excess(np.array(a, float), np.array(b), backend) <= 1


def test_terms_that_cancel(backend, dtype):
    for a, b, expected in (
        ([2, 2], [1, -1], -np.inf),
        ([1000, 1000, 1], [1, -1, 1], 1),
        ([30, 30, 1], [1, -1, 1], 1),
        ([5, 1, 1], [1, 3, -3], 5),
        ([9000, 7, 9000, -7000], [2, -1, -2, 1], -7),
    ):
        total, sign = lsm.logsumexp(np.array(a, dtype), b=np.array(b, dtype), return_sign=True, backend=backend)
        assert total.dtype == sign.dtype == dtype
        assert sign == (0 if expected == -np.inf else np.sign(expected))
        assert total == expected or abs(total - abs(expected)) <= 4 * spacing(max(a), dtype)


def test_terms_that_cancel_level_by_level(backend):
    a = np.repeat(-1000.0 * np.arange(30), 2)
    b = np.tile([2.0, -2.0], 30)
    assert lsm.logsumexp(a, b=b, return_sign=True, backend=backend) == (-np.inf, 0)
    b[-1] = -5
    total, sign = lsm.logsumexp([a, a[::-1]], 1, b=b, return_sign=True, backend=backend)
    np.testing.assert_allclose(total, [-29_000 + np.log(3), np.log(3)])
    np.testing.assert_array_equal(sign, [-1, -1])


def test_signs_and_negative_sums(backend):
    a = np.log([[1.0, 2], [2, 1], [1, 1]])
    total, sign = lsm.logsumexp(a, 1, b=[1, -1], return_sign=True, backend=backend)
    np.testing.assert_allclose(total, [0, 0, -np.inf], atol=1e-15)
    np.testing.assert_array_equal(sign, [-1, 1, 0])
    total = lsm.logsumexp(a, 1, b=[1, -1], backend=backend)
    assert np.isnan(total[0]) and total[2] == -np.inf


@pytest.mark.parametrize("with_sign", [True, False])
def test_infinities_and_nan(backend, dtype, with_sign):
    inf, nan = np.inf, np.nan
    for a, b, expected, sign in (
        ([inf, 0], [1, 1], inf, 1),
        ([inf, 0], [-1, 1], inf, -1),
        ([inf, inf], [1, -1], nan, nan),
        ([inf, nan, 1], [0, 0, 1], 1, 1),
        ([nan, 0], [1, 1], nan, nan),
        ([0, 0], [nan, 1], nan, nan),
        ([0, 0], [inf, -1], inf, 1),
        ([0, 0], [inf, -inf], nan, nan),
        ([-inf, 0], [3, 1], 0, 1),
        ([-inf, -inf], [3, -1], -inf, 0),
        ([5, 6], [0, 0], -inf, 0),
    ):
        found = lsm.logsumexp(np.array(a, dtype), b=np.array(b, dtype), return_sign=with_sign, backend=backend)
        wanted = (expected, sign) if with_sign else (nan if sign == -1 else expected,)
        np.testing.assert_array_equal(np.ravel(found).astype(float), wanted, str((a, b)))


def test_shapes_dtypes_and_out(backend, rng):
    a, b = rng.standard_normal((3, 1, 5)), rng.standard_normal((4, 1))
    whole = np.broadcast_arrays(a, b)
    for axis, keepdims in itertools.product((None, 0, -1, (0, 2), (1, 2)), (False, True)):
        options = {"axis": axis, "keepdims": keepdims, "return_sign": True, "backend": backend}
        total, sign = lsm.logsumexp(a, b=b, **options)
        terms = (whole[1] * np.exp(whole[0])).sum(axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(sign * np.exp(total), terms, rtol=1e-12, atol=1e-13)
        assert np.shape(total) == np.shape(sign) == terms.shape
        out = np.empty(terms.shape)
        found, other = lsm.logsumexp(a, b=b, out=out, **options)
        assert found is out
        np.testing.assert_array_equal(out, total)
        np.testing.assert_array_equal(other, sign)
    f4 = a.astype(np.float32)
    for weights, dtype in (
        (2, np.float32),
        (2.5, np.float32),
        (np.ones(5, np.float32), np.float32),
        ([1] * 5, np.float64),
    ):
        assert lsm.logsumexp(f4, b=weights, backend=backend).dtype == dtype
    assert lsm.logsumexp(f4, b=np.ones(5), dtype="float32", backend=backend).dtype == np.float32
    assert lsm.logsumexp(np.float16(0), b=100_000, backend=backend) == np.float16(np.log(100_000))
    with pytest.raises(ValueError, match="^b: an int that is too large for float64; add its logarithm to the result"):
        lsm.logsumexp(a, b=10**400, backend=backend)


def test_with_a_mask(backend, rng):
    a, b, mask = rng.standard_normal((3, 5)), rng.standard_normal((3, 5)), rng.random((3, 5)) < 0.6
    options = {"axis": 1, "return_sign": True, "backend": backend}
    spoilt = np.where(mask, a, np.nan), np.where(mask, b, np.inf)
    found = lsm.logsumexp(spoilt[0], b=spoilt[1], where=mask, **options)
    expected = lsm.logsumexp(a, b=np.where(mask, b, 0), **options)
    np.testing.assert_array_equal(found, expected)
    enlarged = lsm.logsumexp(a[0], b=b, where=mask, **options)
    np.testing.assert_array_equal(enlarged, lsm.logsumexp(a[0], b=np.where(mask, b, 0), **options))
    nothing = lsm.logsumexp(a, b=b, where=False, **options)
    np.testing.assert_array_equal(nothing, [[-np.inf] * 3, [0] * 3])


def test_no_classes_and_no_frames(backend, dtype):
    total, sign = lsm.logsumexp(np.empty((2, 0), dtype), 1, b=2, return_sign=True, backend=backend)
    assert (total.astype(float) == -np.inf).all() and (sign == 0).all() and total.dtype == sign.dtype == dtype
    assert lsm.logsumexp(np.empty((0, 2), dtype), 1, b=2, backend=backend).shape == (0,)


def test_no_warnings_and_the_same_bits_in_any_layout(backend, dtype, rng):
    values = np.array([np.nan, np.inf, -np.inf, 0, 6e4, -6e4, 1e-7, -0.0])
    a = np.array(np.meshgrid(values, values, values)).reshape(3, -1).T.astype(dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        lsm.logsumexp(a, 1, b=a[::-1], return_sign=True, backend=backend)
    a, b = rng.standard_normal((2, 40, 50)).astype(dtype)
    total, sign = lsm.logsumexp(a, 1, b=b, return_sign=True, backend=backend)
    across, signs = lsm.logsumexp(np.asfortranarray(a).T, 0, b=b.T, return_sign=True, backend=backend)
    np.testing.assert_array_equal(across, total)
    np.testing.assert_array_equal(signs, sign)
    for i in range(0, 40, 7):
        assert lsm.logsumexp(a[i], b=b[i], return_sign=True, backend=backend) == (total[i], sign[i])
