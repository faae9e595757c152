"""The public reductions, with their documentation."""

from typing import Any

from numpy import ndarray

from lsm._api import Array, Axis, call_of_part
from lsm._call import call
from lsm._fastpath import quick
from lsm._operations import LOGSUMEXP
from lsm._untraced import untraced


def logsumexp(
    a: Any = None,
    axis: Axis = None,
    b: Any = None,
    keepdims: bool = False,
    return_sign: bool = False,
    *,
    where: Any = None,
    out: Array | None = None,
    dtype: Any = None,
    backend: str | None = None,
    partials: Any = None,
    n_classes: int | None = None,
) -> Any:
    """Compute the logarithm of the sum of the exponentials of `a`.

    ::

        m = max(a)
        s = sum of exp(a - m) over all classes except one of the largest
        L = m + log1p(s)

    or, with `b`, the logarithm of the absolute value of the sum of ``b * exp(a)``. The arguments are those of
    ``scipy.special.logsumexp``.

    Parameters
    ----------
    a : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        Logits, in nats, as for `log_softmax`. -inf masks a class.
    axis : int, tuple of int, or None, optional
        The axis of the classes. Several axes, or None for all (the default, as in SciPy), count as one.
    b : array_like, or array of the library of `a`, optional
        Factors of the exponentials, of any sign, broadcast against `a`. A class whose factor is 0 is left out, whatever
        its value in `a`. A Python number does not change the dtype of the result.
    keepdims : bool, optional
        Whether the result keeps `axis`, with length 1.
    return_sign : bool, optional
        Whether to return the sign of the sum as well.
    where : array of bool, optional
        The classes to include, as for `log_softmax`.
    out : array of the result's type, shape, dtype and device, optional
        The array to write to. May overlap `a` in any way. JAX arrays cannot be written to.
    dtype : dtype or str, optional
        The dtype of the result, as for `log_softmax`; default: that of `a`, and float64 for integers and bool.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials : array_like or array of float64, shape (..., n_slices, ..., 4), optional
        In place of `a`: the result of `lsm.partials` for all its classes. `axis` is then one int, and counts the axes
        of `a`; the default dtype is float64. With a temperature in the partials, the result is that of ``a /
        temperature``.
    n_classes : int, optional
        The number of classes that the partials must add up to.

    Returns
    -------
    L : array, type and device of `a`, shape of `a` without `axis`, or with length 1 there
        In nats; without `return_sign`, NaN where the sum is negative. `out`, if given. The type is as for
        `log_softmax`; a 0-d ndarray is returned as a NumPy scalar.
    sign : array of the type, shape, dtype and device of `L`
        Only if `return_sign`: 1.0 or -1.0; 0.0 where the sum is 0 and L is -inf; NaN where L is.

    Raises
    ------
    TypeError
        An argument is rejected as in `log_softmax`.
    ValueError
        `a` and `b` do not broadcast against each other, or `where` does not broadcast to them; `out` has another shape
        than the result or is read-only; an axis is repeated.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`.

    See Also
    --------
    softmax : The gradient of L with respect to `a`; multiply it by that of the loss with respect to L.

    Notes
    -----
    For any finite frame, 16-bit results are within 0.501 ulp and float32 results within 4 ulp of the exact value, even
    near 0, except for an absolute error of ``2**-50 * abs(m)``; float64 results are within 4 ulp of the larger of the
    exact value and m, which cancel near 0. A frame that contains NaN becomes NaN, one that contains +inf and no NaN
    becomes inf, and one of only -inf, or of no classes, becomes -inf. The result of a frame depends only on its values,
    its dtype and the backend. From partials, 16-bit and float32 results are also within 4 ulp of the larger of the
    exact value and m. There are no floating-point warnings. The algorithm is Algorithm 4.1 of Blanchard, Higham &
    Higham (2021), doi:10.1093/imanum/draa038.

    With `b`, results are within 4 ulp of the largest of themselves, a_k and log(abs(b_k)), with k the largest term,
    and an absolute error of ``2**-50 * sum(abs(b * exp(a))) / abs(sum(b * exp(a)))``. Terms that cancel exactly do not
    affect the result; if all terms do, it is -inf. Infinite terms of both signs give NaN.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> lsm.logsumexp(np.array([[0.0, -20.0]], np.float32), axis=1)
    array([2.0611537e-09], dtype=float32)
    >>> lsm.logsumexp(np.zeros((2, 4)), axis=1, return_sign=True)
    (array([1.38629436, 1.38629436]), array([1., 1.]))
    >>> lsm.logsumexp([30.0, 30.0, 1.0], b=[1, -1, 1])
    np.float64(1.0)
    """
    total = None
    is_plain = dtype is None and b is None and where is None and not keepdims
    if is_plain and partials is None and n_classes is None and type(a) is ndarray:
        total = quick.logsumexp(a, axis, out, None, 1.0, backend)
    if total is None and (a is None or partials is not None or n_classes is not None):
        if a is not None or b is not None or where is not None or partials is None:
            raise TypeError("a, b, where, partials: accepted: either a, with or without b and where, or partials alone")
        options = {"axis": axis, "keepdims": bool(keepdims), "out": out, "dtype": dtype, "backend": backend}
        total = untraced(call_of_part)("logsumexp", {"partials": partials}, **options, n_classes=n_classes)
    elif total is None:
        options = {"where": where, "b": b, "return_sign": return_sign}
        total = untraced(call)(LOGSUMEXP, (a,), axis, out, dtype, backend, bool(keepdims), **options)
        if b is not None or type(total) is tuple:
            return total
    return (total, _sign(total)) if return_sign else total


def _sign(total: Array) -> Array:
    """The sign of the sum whose logarithm this is, as an array of the same library and dtype."""
    finite = 8 / (8 + abs(total))  # from 0 to 1, NaN for NaN; neither overflows nor underflows in any dtype
    return (finite - finite) + (total > -float("inf"))
