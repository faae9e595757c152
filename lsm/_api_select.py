"""The public functions that give selected classes of a log-softmax, with their documentation."""

from typing import Any, NamedTuple

from numpy import ndarray

from lsm._api import Array, call_derived, call_of_part, is_number
from lsm._fastpath import quick
from lsm._untraced import untraced


class TopK(NamedTuple):
    """The result of `top_k_log_softmax`.

    Attributes
    ----------
    values : array
        Log-probabilities, in descending order.
    indices : array
        Their classes.
    """

    values: Array
    indices: Array


TopK.__module__ = "lsm"  # the module recorded by pickle


def take_log_softmax(
    x: Any,
    indices: Any,
    axis: int | None = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    out: Array | None = None,
    dtype: Any = None,
    backend: str | None = None,
    partials: Any = None,
    first_class: int = 0,
    n_classes: int | None = None,
) -> Any:
    """Compute the log-softmax of `x` at selected classes, without that of the others.

    ::

        y = log_softmax(x)[..., indices]

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        Logits, in nats, as for `log_softmax`. -inf masks a class.
    indices : array of integers of the type of `x`, shape of `x` without `axis`, or (..., n, ...)
        The classes: one for each frame; or, with as many dimensions as `x`, n for each frame along `axis`, with the
        other lengths of `x` or 1.
    axis : int, optional
        The axis of the classes; None for the only one.
    temperature : float or array, optional
        As for `log_softmax`.
    where : array of bool, optional
        As for `log_softmax`.
    out : array of the result's type, shape and dtype, optional
        The array to write to. May overlap `x` in any way. JAX arrays cannot be written to.
    dtype : dtype or str, optional
        The dtype of the result, as for `log_softmax`; default: that of `x`.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials, n_classes : optional
        If `x` has only a part of the classes of its frames, as for `log_softmax`. Indices count the classes of the
        whole frame. Where a class is not in `x`, the result is -inf, or NaN in a frame that is NaN: the maximum over
        all parts is the result of the whole.
    first_class : int, optional
        The index, in the whole frame, of the first class of `x`.

    Returns
    -------
    y : array, type of `x`, shape of `indices`
        Log-probabilities, in nats, bit for bit those of `log_softmax` there. `out`, if given. A 0-d ndarray is returned
        as a NumPy scalar.

    Raises
    ------
    TypeError
        `x` is rejected as in `log_softmax`; `indices` are not integers, or belong to another library; `axis` is a
        tuple.
    ValueError
        `indices` or `out` have another shape.
    IndexError
        An index is negative or not below n_classes. Nothing is written then.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`. `x` is on another device than the CPU.

    See Also
    --------
    cross_entropy : The losses of frames with such targets, reduced. top_k_log_softmax : The most probable classes.

    Notes
    -----
    The frames are processed in blocks, each with a log-softmax of about 2**17 numbers, or one frame. A frame that
    contains NaN or +inf, or only -inf, gives NaN.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> x = np.array([[20.0, 0.0], [0.0, 0.0]], np.float32)
    >>> lsm.take_log_softmax(x, [0, 1])
    array([-2.0611537e-09, -6.9314718e-01], dtype=float32)
    """
    is_plain = dtype is None and where is None and partials is None and n_classes is None and is_number(first_class, 0)
    if is_plain and is_number(temperature, 1.0) and out is None and type(x) is ndarray:
        y = quick.take_log_softmax(x, indices, axis, backend)
        if y is not None:
            return y
    options = {"axis": axis, "temperature": temperature, "where": where, "dtype": dtype, "backend": backend}
    if partials is not None or n_classes is not None or not is_number(first_class, 0):
        inputs = {"x": x, "indices": indices, "partials": partials}
        options |= {"out": out, "first_class": first_class, "n_classes": n_classes}
        return untraced(call_of_part)("take_log_softmax", inputs, **options)
    return untraced(call_derived)("take_log_softmax", {"x": x, "indices": indices}, **options, out=out)


def top_k_log_softmax(
    x: Any,
    k: int,
    axis: int | None = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    dtype: Any = None,
    backend: str | None = None,
    partials: Any = None,
    first_class: int = 0,
    n_classes: int | None = None,
) -> TopK:
    """Find the k most probable classes of each frame, and their log-softmax.

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        Logits, in nats, as for `log_softmax`. -inf masks a class.
    k : int
        The number of classes, from 0 to n_classes.
    axis : int, optional
        The axis of the classes; None for the only one.
    temperature : float or array, optional
        As for `log_softmax`.
    where : array of bool, optional
        As for `log_softmax`.
    dtype : dtype or str, optional
        The dtype of the values, as for `log_softmax`; default: that of `x`.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials, first_class, n_classes : optional
        If `x` has only a part of the classes of its frames, as for `take_log_softmax`. k may exceed the number of
        classes in the part, which gives all of them. The k best of the whole are among the results of all parts.

    Returns
    -------
    values : array, type of `x`, shape of `x` with k along `axis`
        Log-probabilities, in nats, in descending order, bit for bit those of `log_softmax`.
    indices : array of int64, type of `x`, same shape
        Their classes. Of equal logits, the one with the lowest index comes first, whatever k is. (JAX without 64 bits:
        int32.)

    Raises
    ------
    TypeError
        `x` is rejected as in `log_softmax`; `k` is not an int; `axis` is a tuple.
    ValueError
        `k` is negative or larger than n_classes.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`. `x` is on another device than the CPU.

    See Also
    --------
    take_log_softmax : The log-softmax at given classes.

    Notes
    -----
    The order is that of the logits. -inf comes last, followed by classes that `where` masks. NaN counts as the largest:
    in a frame that contains NaN, all values are NaN, and the first index is that of a NaN.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> values, indices = lsm.top_k_log_softmax(np.array([0.0, 3.0, 3.0, 1.0]), 3)
    >>> values.round(3), indices
    (array([-0.782, -0.782, -2.782]), array([1, 2, 3]))
    """
    is_plain = dtype is None and where is None and partials is None and n_classes is None and is_number(first_class, 0)
    if is_plain and is_number(temperature, 1.0) and type(x) is ndarray:
        result = quick.top_k_log_softmax(x, k, axis, backend)
        if result is not None:
            return TopK(*result)
    options = {"axis": axis, "temperature": temperature, "where": where, "dtype": dtype, "backend": backend}
    if partials is not None or n_classes is not None or not is_number(first_class, 0):
        options |= {"k": k, "first_class": first_class, "n_classes": n_classes}
        return TopK(*untraced(call_of_part)("top_k_log_softmax", {"x": x, "partials": partials}, **options))
    return TopK(*untraced(call_derived)("top_k_log_softmax", {"x": x}, k=k, **options))
