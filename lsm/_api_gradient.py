"""The gradients of log_softmax and softmax, with their documentation."""

from typing import Any

from numpy import ndarray

from lsm._api import Array, Axis, call_of_part
from lsm._call import call
from lsm._fastpath import quick
from lsm._operations import LOG_SOFTMAX_BACKWARD, SOFTMAX_BACKWARD
from lsm._untraced import untraced


def log_softmax_backward(
    grad_output: Any,
    output: Any,
    axis: Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    out: Array | None = None,
    backend: str | None = None,
    partials: Any = None,
    n_classes: int | None = None,
) -> Array:
    """Compute the gradient of a loss with respect to the input of `log_softmax`.

    ::

        dx = (dy - exp(y) * sum(dy)) / T

    The Jacobian of y = x - logsumexp(x) is ``dy_i/dx_j = (i == j) - exp(y_j)``, hence
    ``dx_j = sum over i of dy_i * ((i == j) - exp(y_j))``. The input itself is not needed.

    Parameters
    ----------
    grad_output : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        dy, the gradient of the loss with respect to `output`.
    output : array of the type, shape and device of `grad_output`
        y, the result of `log_softmax`. Any values below 88 (in float64 and wider, 709) are accepted; a frame with
        larger ones becomes NaN, because exp(y) overflows.
    axis : int, tuple of int, or None, optional
        The axis that was passed to `log_softmax`.
    temperature : number or array, optional
        The temperature that was passed to `log_softmax`.
    where : array of bool, optional
        The mask that was passed to `log_softmax`. The gradient of a masked class is 0, whatever both inputs hold.
    out : array of the result's type, shape, dtype and device, optional
        The array to write to. May be `grad_output` or `output`, and may overlap them in any way.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials : array of float64, type of `grad_output` or ndarray, shape (..., n_slices, ..., 6), optional
        If both inputs have only a part of the classes of their frames: the partials of the whole frames, from
        `partials_backward` for each part, concatenated along the axis of the slices. Only without `where` and
        `temperature`, and for arrays on the CPU.
    n_classes : int, optional
        The number of classes of the whole frames. The partials must add up to it.

    Returns
    -------
    dx : array, type, shape and device of `grad_output`
        The gradient of the loss with respect to the input. Its dtype is that to which NumPy promotes both inputs,
        with integers as float64. Sums to 0 along `axis`, up to rounding. A 0-d ndarray is returned as a NumPy scalar.

    Raises
    ------
    TypeError
        An argument is rejected as in `log_softmax`; the arguments belong to different libraries; `out` has another
        dtype.
    ValueError
        `temperature` or `where` is rejected as in `log_softmax`; the shapes differ; `out` has another shape or is
        read-only; an axis is repeated. `partials` have another shape, or do not add up to `n_classes`.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`.

    See Also
    --------
    log_softmax : The function itself.
    partials_backward : For frames whose classes are in several arrays.

    Notes
    -----
    Where y > -ln 2, the gradient is computed as ``(dy - S) - expm1(y) * S`` with S = sum(dy), so that it does not
    vanish for confident frames. As a function of `grad_output` and `output`, the result is within 4 ulp of the
    largest of itself, dy and exp(y) * S. (The error of S is about 2**-53 * sum(abs(dy)); it matters in float64, and in
    float32 where dy cancels almost entirely.) Where y is -inf, the result is exactly dy. A frame becomes NaN if it
    contains NaN, if `output` contains +inf or only -inf, or if S is infinite. The formula is that of Torch7,
    LogSoftMax.c.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> y = lsm.log_softmax(np.array([20.0, 0.0], np.float32))
    >>> lsm.log_softmax_backward(np.array([-1, 0], np.float32), y)
    array([-2.0611537e-09,  2.0611537e-09], dtype=float32)
    """
    if type(grad_output) is ndarray and partials is None and n_classes is None:
        dx = quick.log_softmax_backward(grad_output, output, axis, out, where, temperature, backend)
        if dx is not None:
            return dx
    if partials is not None or n_classes is not None:
        options = {"where": where, "temperature": temperature, "axis": axis, "out": out}
        options |= {"backend": backend, "n_classes": n_classes}
        given = {"grad_output": grad_output, "output": output, "partials": partials}
        return untraced(call_of_part)("log_softmax_backward", given, **options)
    inputs = grad_output, output
    return untraced(call)(LOG_SOFTMAX_BACKWARD, inputs, axis, out, None, backend, False, where, temperature)


def softmax_backward(
    grad_output: Any,
    output: Any,
    axis: Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """Compute the gradient of a loss with respect to the input of `softmax`.

    ::

        dx = p * (dy - sum(p * dy)) / T

    The Jacobian of p = softmax(x) is ``dp_i/dx_j = p_i * ((i == j) - p_j)``. The input itself is not needed.

    Parameters
    ----------
    grad_output : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        dy, the gradient of the loss with respect to `output`.
    output : array of the type, shape and device of `grad_output`
        p, the result of `softmax`.
    axis : int, tuple of int, or None, optional
        The axis that was passed to `softmax`.
    temperature : number or array, optional
        The temperature that was passed to `softmax`.
    where : array of bool, optional
        The mask that was passed to `softmax`. The gradient of a masked class is 0, whatever both inputs hold.
    out : array of the result's type, shape, dtype and device, optional
        The array to write to. May be `grad_output` or `output`, and may overlap them in any way.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.

    Returns
    -------
    dx : array, type, shape and device of `grad_output`
        The gradient of the loss with respect to the input. Its dtype is that to which NumPy promotes both inputs,
        with integers as float64. Sums to 0 along `axis`, up to rounding. A 0-d ndarray is returned as a NumPy scalar.

    Raises
    ------
    TypeError
        An argument is rejected as in `log_softmax`; the arguments belong to different libraries; `out` has another
        dtype.
    ValueError
        `temperature` or `where` is rejected as in `log_softmax`; the shapes differ; `out` has another shape or is
        read-only; an axis is repeated.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`.

    See Also
    --------
    softmax : The function itself.

    Notes
    -----
    With k the most probable class (of several, the first), ``e = dy - dy_k`` and E the sum of ``p * e`` over the other
    classes, the result is ``p * (e - E)``. Since p sums to 1, this is equivalent, but does not vanish for confident
    frames. As a function of `grad_output` and `output`, with p_k in the sum taken as one minus the others, the result
    is within 4 ulp of the largest of itself, ``p * abs(e)`` and ``p * abs(E)`` (in float64, of ``p * sum(p *
    abs(e))``); in 16 bits within 0.501 ulp. Where p is 0, the result is 0. A frame becomes NaN if it contains NaN or an
    infinity.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> p = lsm.softmax(np.array([20.0, 0.0], np.float32))
    >>> lsm.softmax_backward(np.array([-1, 0], np.float32), p)
    array([-2.0611537e-09,  2.0611537e-09], dtype=float32)
    """
    if type(grad_output) is ndarray:
        dx = quick.softmax_backward(grad_output, output, axis, out, where, temperature, backend)
        if dx is not None:
            return dx
    inputs = grad_output, output
    return untraced(call)(SOFTMAX_BACKWARD, inputs, axis, out, None, backend, False, where, temperature)
