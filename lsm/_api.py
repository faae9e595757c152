"""The public functions: each documents, checks, and hands the call to the backend that serves it."""

from collections.abc import Sequence
from typing import Any

from numpy import ndarray

from lsm._call import call
from lsm._fastpath import fast_functions
from lsm._operations import LOG_SOFTMAX, LOG_SOFTMAX_BACKWARD
from lsm._untraced import untraced

Array = Any  # an ndarray, a torch.Tensor, a jax.Array, a cupy.ndarray, or another that speaks DLPack
Axis = int | Sequence[int] | None


def log_softmax(
    x: Any,
    axis: Axis = -1,
    *,
    out: Array | None = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Array:
    """Compute the logarithm of the softmax of `x` along one axis.

    ::

        m = max(x)
        s = sum of exp(x - m) over all classes but one of the largest
        y = (x - m) - log1p(s)

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        Logits, in nats, of a floating dtype, integers or bool. Any strides, read-only, unaligned or byte-swapped;
        never changed unless it is `out`. Integers and bool become float64. -inf masks a class out.
    axis : int, tuple of int, or None, optional
        The axis that holds the classes; several, or None for all, are taken as one. (SciPy's default is
        None, lsm's is the last axis.)
    out : array of the result's type, shape, dtype and device, optional
        Where to write the result. May be `x` itself; may overlap it in any way. (Arrays of JAX cannot be written
        to.)
    dtype : dtype or str, optional
        The dtype of the result, as NumPy spells it or the library of `x` does; by default that of `x`. The
        computation is done in the wider of the two, in float32 or wider for 16-bit types, and rounded once.
    backend : str, optional
        The backend to use, and no other; see `explain`.

    Returns
    -------
    y : array, type, shape and device of `x`
        Log-probabilities, in nats: from -inf to 0, with ``sum(exp(y)) == 1`` along `axis`. `out` if given. An
        ndarray for an array_like, and for a DLPack array whose namespace has no ``from_dlpack`` (on a CUDA device an
        array of CuPy). Instead of an ndarray without dimensions, a NumPy scalar.

    Raises
    ------
    TypeError
        `x` is complex, an object, text, structured or masked, a tensor that requires grad, or an array that JAX
        traces; or it has a unit, is sparse, is not computed yet (dask), has labels (xarray), or lies in a file
        (zarr, h5py): the message says what to give. `dtype` or `out` has a dtype that does not fit, or `out` is of
        another type.
    ValueError
        `out` has another shape or is read-only; `axis` names an axis twice.
    numpy.exceptions.AxisError
        `axis` is not an axis of `x`.
    LsmError
        The backend that was asked for does not exist, cannot be used, does not serve this type, device or dtype,
        or fails in the call. Each has a class of its own.

    See Also
    --------
    log_softmax_backward : the gradient.

    Notes
    -----
    float32 and float64 results are within 4 ulp (units in the last place) of the exact value on any finite
    frame, 16-bit results are the exact value rounded once, to 0.501 ulp. A frame's result depends on its
    values, its dtype and the backend only, not on its place, the number of threads or `out`. A frame that
    holds a NaN or +inf, or -inf only, is NaN throughout. An empty axis gives an empty array. No
    floating-point warnings are raised. Arrays of other libraries are read where they lie, and nothing is moved
    between devices. Source: Blanchard, Higham & Higham (2021),
    doi:10.1093/imanum/draa038, Algorithm 4.1.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> lsm.log_softmax(np.array([20.0, 0.0], np.float32))
    array([-2.0611537e-09, -2.0000000e+01], dtype=float32)
    """
    if dtype is None and type(x) is ndarray:
        fast = fast_functions(x.dtype, backend)
        if fast is not None:
            y = fast.log_softmax(x, axis, out)
            if y is not None:
                return y
    return untraced(call)(LOG_SOFTMAX, (x,), axis, out, dtype, backend)


def log_softmax_backward(
    grad_output: Any,
    output: Any,
    axis: Axis = -1,
    *,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """Compute the gradient of a loss by the input of `log_softmax`, from the gradient by its output.

    ::

        dx = dy - exp(y) * sum(dy)

    The Jacobian of y = x - logsumexp(x) is ``dy_i/dx_j = (i == j) - exp(y_j)``, so that
    ``dx_j = sum over i of dy_i * ((i == j) - exp(y_j))``: the input itself is not needed.

    Parameters
    ----------
    grad_output : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        dy, the gradient of the loss by `output`.
    output : array of the type, shape and device of `grad_output`
        y, what `log_softmax` returned. (Any values below 88, or 709 in float64 and wider, are taken as they
        are; a frame with greater ones is NaN, for exp(y) leaves the range.)
    axis : int, tuple of int, or None, optional
        The axis that `log_softmax` was given.
    out : array of the result's type, shape, dtype and device, optional
        Where to write the result. May be `grad_output` or `output` itself; may overlap them in any way.
    backend : str, optional
        The backend to use, and no other; see `explain`.

    Returns
    -------
    dx : array, type, shape and device of `grad_output`
        The gradient of the loss by the input; its dtype is the one that NumPy promotes both inputs to,
        integers counting as float64. Sums to 0 along `axis`, up to rounding. Instead of an ndarray without
        dimensions, a NumPy scalar.

    Raises
    ------
    TypeError
        An argument is complex, an object, text, structured or masked, requires grad, is otherwise more than numbers
        in memory (see `log_softmax`), or is of another library than the others; `out` has another dtype.
    ValueError
        The shapes differ; `out` has another shape or is read-only; `axis` names an axis twice.
    numpy.exceptions.AxisError
        `axis` is not an axis of `grad_output`.
    LsmError
        As for `log_softmax`.

    See Also
    --------
    log_softmax : the function itself.

    Notes
    -----
    Where y > -ln 2 it is computed as ``(dy - S) - expm1(y) * S`` with S = sum(dy), so that the gradient of
    a confident frame does not vanish. As a function of `grad_output` and `output` the result is within
    4 ulp of the largest of itself, dy and exp(y) * S. (The error of S is about
    2**-53 * sum(abs(dy)), which counts in float64, and in float32 where dy cancels to the last digit.)
    Where y is -inf it is exactly dy. A frame with a NaN,
    with +inf in `output` or an infinite sum, or with -inf only in `output`, is NaN throughout. Source:
    Torch7, LogSoftMax.c.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> y = lsm.log_softmax(np.array([20.0, 0.0], np.float32))
    >>> lsm.log_softmax_backward(np.array([-1, 0], np.float32), y)
    array([-2.0611537e-09,  2.0611537e-09], dtype=float32)
    """
    if type(grad_output) is ndarray:
        fast = fast_functions(grad_output.dtype, backend)
        if fast is not None:
            dx = fast.log_softmax_backward(grad_output, output, axis, out)
            if dx is not None:
                return dx
    return untraced(call)(LOG_SOFTMAX_BACKWARD, (grad_output, output), axis, out, None, backend)
