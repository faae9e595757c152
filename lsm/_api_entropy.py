"""The entropy and the divergence of softmax distributions, with their documentation."""

from typing import Any

from numpy import ndarray

from lsm._api import Axis, call_derived
from lsm._fastpath import quick
from lsm._untraced import untraced


def entropy(
    x: Any,
    axis: Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Any:
    """Compute the entropy of the softmax of `x`.

    ::

        H = log1p(s) + (sum of exp(d) * -d) / (1 + s)

    with d = x - max(x), and s the sum of exp(d) over all classes except one of the largest.

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        Logits, in nats, as for `log_softmax`. -inf masks a class, which adds 0.
    axis : int, tuple of int, or None, optional
        The axis of the classes, by default the last. Several axes, or None for all, count as one.
    temperature : float or array, optional
        As for `log_softmax`.
    where : array of bool, optional
        As for `log_softmax`.
    dtype : dtype or str, optional
        The dtype of the result; default: that of `x`, but float32 for 16 bits.
    backend : str, optional
        The backend to use for `log_softmax`, which must support the call; there is no fallback. See `explain`.

    Returns
    -------
    H : array, type of `x`, shape of `x` without `axis`
        In nats, from 0 to log(n_classes); 0 is never -0.0. A 0-d ndarray is returned as a NumPy scalar.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError, LsmError
        As for `log_softmax`. `x` is on another device than the CPU.

    See Also
    --------
    kl_divergence : The divergence of two such distributions.

    Notes
    -----
    For any finite frame, the result is within 4 ulp, even near 0; in 16 bits within 0.501 ulp. A frame that contains
    NaN or +inf, or only -inf, becomes NaN; one of no classes becomes 0. The gradient is ``-p * (log(p) + H) /
    temperature``, and 0 where p is.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> lsm.entropy(np.array([[20.0, 0.0], [0.0, 0.0]], np.float32))
    array([4.3284228e-08, 6.9314718e-01], dtype=float32)
    """
    if type(x) is ndarray and where is None and dtype is None:
        h = quick.entropy(x, axis, temperature, backend)
        if h is not None:
            return h
    options = {"axis": axis, "temperature": temperature, "where": where, "dtype": dtype, "backend": backend}
    return untraced(call_derived)("entropy", {"x": x}, **options)


def kl_divergence(
    p_logits: Any,
    q_logits: Any,
    axis: Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Any:
    """Compute the Kullback-Leibler divergence of the softmax of two arrays of logits.

    ::

        KL = sum of p * log(p / q)

    Parameters
    ----------
    p_logits : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        Logits of p, in nats, as for `log_softmax`. -inf masks a class.
    q_logits : array of the type and shape of `p_logits`
        Logits of q. A class masked only here makes the result inf; one masked in both adds 0.
    axis, temperature, where, dtype, backend
        As for `entropy`; `temperature` and `where` apply to both inputs.

    Returns
    -------
    KL : array, type of `p_logits`, shape of `p_logits` without `axis`
        In nats, at least 0, and exactly 0 for equal logits. The dtype is that to which NumPy promotes both inputs, but
        float32 for 16 bits. A 0-d ndarray is returned as a NumPy scalar.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError, LsmError
        As for `entropy`; the shapes differ.

    See Also
    --------
    entropy : The entropy of one distribution.

    Notes
    -----
    It is computed as ``sum(p * (expm1(t) - t)) - (r - log1p(r))`` with ``t = log(q / p)``, from differences of the
    logits, and ``r = sum(p * expm1(t))``, which would be 0 without rounding. So it keeps its digits however close the
    distributions are. It is within 4 ulp, in float64 within 8. A frame in which one of the inputs contains NaN or +inf,
    or only -inf, becomes NaN. The gradient with respect to `q_logits` is ``(q - p) / temperature``.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> lsm.kl_divergence(np.array([[1e-8, 0.0]], np.float32), np.zeros((1, 2), np.float32))
    array([1.25e-17], dtype=float32)
    """
    if type(p_logits) is ndarray and where is None and dtype is None:
        divergence = quick.kl_divergence(p_logits, q_logits, axis, temperature, backend)
        if divergence is not None:
            return divergence
    options = {"axis": axis, "temperature": temperature, "where": where, "dtype": dtype, "backend": backend}
    return untraced(call_derived)("kl_divergence", {"p_logits": p_logits, "q_logits": q_logits}, **options)
