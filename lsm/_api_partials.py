"""partials and partials_backward, with their documentation."""

from typing import Any

from lsm._api import Array, call_of_part
from lsm._untraced import untraced


def partials(
    x: Any,
    axis: int | None = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Array:
    """Reduce slices of the classes to the numbers that normalise their whole frames, wherever the other classes are.

    ::

        m = max(x)
        s = sum of exp((x - m) / T) over the classes below m
        k = number of classes equal to m
        n = number of classes

    for each slice of 16,384 classes. The partials of a frame are those of its parts, concatenated along the axis of the
    slices in the order of the classes: by ``numpy.concatenate``, by an ``all_gather``, or by any engine, in any tree.
    With them, the results of each part can be computed: ``log_softmax(x, partials=...)``, and likewise `softmax`,
    `take_log_softmax`, `top_k_log_softmax` and `cross_entropy`; and ``logsumexp(partials=...)``.

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        Logits, in nats, as for `log_softmax`: all classes of the frames, or a part of them, or none.
    axis : int, optional
        The axis of the classes; None for the only one.
    temperature : float or array, optional
        T, as for `log_softmax`; pass it to the other call as well.
    where : array of bool, optional
        As for `log_softmax`.
    dtype : dtype or str, optional
        The dtype of the results, as for `log_softmax`: the partials are computed in the wider of it and that of `x`.
    backend : str, optional
        The backend to use; there is no fallback. The other call must use the same one.

    Returns
    -------
    partials : array of float64, type of `x`, shape (..., n_slices, ..., 4)
        m, s, k and n along the last axis; slices in place of classes. A slice with NaN has (nan, nan, 0, n), one with
        +inf and no NaN (inf, nan, 0, n), one of -inf only (-inf, 0, 0, n). No classes make no slice. (-inf, 0, 0, 0) is
        neutral anywhere, for engines that require equal shapes. (JAX without 64 bits: an ndarray, which the other call
        accepts.)

    Raises
    ------
    TypeError
        `x` is rejected as in `log_softmax`; `axis` is a tuple.
    ValueError
        `x` has no dimensions; `temperature` or `where` is rejected as in `log_softmax`.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`. `x` is on another device than the CPU, or the backend has no partials.

    See Also
    --------
    log_softmax : With ``partials=``, the results of a part.

    Notes
    -----
    If parts begin and end at multiples of a slice, their results have the bits of the same call on whole frames. If
    not, they are within the same bounds. Partials are folded in the order of the classes, so no bit depends on which
    process computed which part, or when. With a temperature, m is still a logit.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> x = np.array([0.0, 3.0, 3.0, 1.0])
    >>> p = np.concatenate([lsm.partials(x[:2]), lsm.partials(x[2:])])
    >>> p.round(3)
    array([[3.   , 0.05 , 1.   , 2.   ],
           [3.   , 0.135, 1.   , 2.   ]])
    >>> lsm.log_softmax(x[:2], partials=p, n_classes=4).round(3)
    array([-3.782, -0.782])
    >>> lsm.logsumexp(partials=p).round(3)
    np.float64(3.782)
    """
    options = {"axis": axis, "temperature": temperature, "where": where, "dtype": dtype, "backend": backend}
    return untraced(call_of_part)("partials", {"x": x}, **options)


def partials_backward(grad_output: Any, output: Any, axis: int | None = -1, *, backend: str | None = None) -> Array:
    """Reduce slices of the classes to the numbers that the gradient of their whole frames needs, as `partials` does.

    ::

        S = sum(dy)

    with its rounding error, and counts of the invalid, the unmasked and all classes, for each slice of 16,384 classes.
    The partials of a frame are concatenated as those of `partials` are. With them, the gradient of each part can be
    computed: ``log_softmax_backward(dy, y, partials=...)``.

    Parameters
    ----------
    grad_output : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        dy, the gradient of the loss with respect to `output`: all classes of the frames, or a part of them, or none.
    output : array of the type and shape of `grad_output`
        y, the result of `log_softmax` for the same classes.
    axis : int, optional
        The axis of the classes; None for the only one.
    backend : str, optional
        The backend to use; there is no fallback. The other call must use the same one.

    Returns
    -------
    partials : array of float64, type of `grad_output`, shape (..., n_slices, ..., 6)
        Along the last axis: S, its rounding error, and S * 2**-40, which is finite where S overflows; the numbers of y
        that are NaN or out of range, of y that are not -inf, and of all y. Zeros are neutral anywhere. (JAX without 64
        bits: an ndarray, which the other call accepts.)

    Raises
    ------
    TypeError
        An argument is rejected as in `log_softmax_backward`; `axis` is a tuple.
    ValueError
        The shapes differ, or the arrays have no dimensions.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`. The arrays are on another device than the CPU, or the backend has no such partials.

    See Also
    --------
    log_softmax_backward : With ``partials=``, the gradient of a part.
    partials : For the function itself.

    Notes
    -----
    The bits are those of whole frames, as for `partials`.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> y, dy = lsm.log_softmax(np.zeros(4)), np.array([0.0, -1, 0, 0])
    >>> p = np.concatenate([lsm.partials_backward(dy[:2], y[:2]), lsm.partials_backward(dy[2:], y[2:])])
    >>> lsm.log_softmax_backward(dy[:2], y[:2], partials=p, n_classes=4)
    array([ 0.25, -0.75])
    """
    options = {"axis": axis, "backend": backend}
    return untraced(call_of_part)("partials_backward", {"grad_output": grad_output, "output": output}, **options)
