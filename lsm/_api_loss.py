"""The public losses, with their documentation."""

from typing import Any

from numpy import ndarray

from lsm._api import Array, Axis, call_derived, call_of_part, is_number
from lsm._fastpath import quick
from lsm._untraced import untraced


def cross_entropy(
    logits: Any,
    targets: Any,
    axis: Axis = -1,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: Any = 1.0,
    where: Any = None,
    reduction: str = "mean",
    dtype: Any = None,
    backend: str | None = None,
    partials: Any = None,
    first_class: int = 0,
    n_classes: int | None = None,
) -> Any:
    """Compute the cross-entropy of targets and the softmax of logits.

    ::

        L = logsumexp(x)
        loss = sum over classes of w * q * (L - x)  +  w[target] * z_loss * L**2

    For one label and no weights it is ``-log_softmax(x)[target]``. No term is negative, so none cancels.

    Parameters
    ----------
    logits : array_like, torch.Tensor, jax.Array or other DLPack array on the CPU, shape (..., n_classes, ...)
        x, in nats, as for `log_softmax`. -inf masks a class.
    targets : array of the type of `logits`
        Integers: the class of each frame, of the shape of `logits` without `axis`. Or of a floating dtype: q, the
        probabilities of the classes, of the shape of `logits`. They are used as they are, not normalised.
    axis : int, optional
        The axis of the classes. With probabilities, several axes, or None for all, count as one.
    weight : array of the type of `logits`, shape (n_classes,), optional
        w, by class.
    ignore_index : int, optional
        The target of frames to leave out.
    label_smoothing : float, optional
        e, from 0 to 1: q becomes ``(1 - e) * q + e * sum(q) / K``, where K is the number of classes that are not
        masked.
    z_loss : float, optional
        The factor of L squared, at least 0. For probabilities, w[target] is 1.
    temperature : float or array, optional
        As for `log_softmax`. L is that of ``logits / temperature``.
    where : array of bool, optional
        As for `log_softmax`.
    reduction : {"mean", "sum", "none"}, optional
        "mean" divides the sum by that of w[target]; for probabilities, by the number of frames. "none" gives one loss
        for each frame.
    dtype : dtype or str, optional
        The dtype of the loss; default: that of `logits`, but float32 for 16 bits.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials, first_class, n_classes : optional
        If `logits` have only a part of the classes of their frames, as for `take_log_softmax`. Targets count the
        classes of the whole frame. The loss is 0 where the target is in another part, so that the losses of all parts
        add up. Only for integer targets and ``reduction="none"``, without weights, smoothing and `z_loss`.

    Returns
    -------
    loss : array, type of `logits`, of no dimension, or for "none" of the shape of `logits` without `axis`
        In nats. A 0-d ndarray is returned as a NumPy scalar.

    Raises
    ------
    TypeError
        `logits` are rejected as in `log_softmax`; `targets` or `weight` have another kind of dtype, or belong to
        another library; `axis` is a tuple, with integers; `ignore_index` is given, with probabilities.
    ValueError
        A shape does not match; `reduction`, `label_smoothing`, `z_loss` or `temperature` is invalid.
    IndexError
        A target is outside of 0 to n_classes - 1, and is not `ignore_index`.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`. `logits` are on another device than the CPU.

    See Also
    --------
    cross_entropy_value_and_grad : The loss with its gradient.
    take_log_softmax : The log-probability of targets.

    Notes
    -----
    Weights, smoothing and means are those of ``torch.nn.functional.cross_entropy``, except that K counts no masked
    class. Frames that are left out count as 0, whatever their values: those whose target is `ignore_index`, and those
    whose target has weight 0, unless labels are smoothed. "mean" of no frames is NaN, "sum" is 0. A class whose q is 0
    adds 0 even where it is masked; a masked target makes the loss inf. A frame that contains NaN or +inf, or only -inf,
    becomes NaN. Losses are added with their rounding errors, in an order that depends only on their number.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> x = np.array([[20.0, 0.0], [0.0, 0.0]], np.float32)
    >>> print(lsm.cross_entropy(x, [0, -100], ignore_index=-100))
    2.0611537e-09
    >>> lsm.cross_entropy(x, np.array([[1, 0], [0.5, 0.5]]), reduction="none")
    array([2.0611537e-09, 6.9314718e-01], dtype=float32)
    """
    is_plain = weight is ignore_index is where is dtype is partials is n_classes is None
    is_plain = is_plain and is_number(first_class, 0) and is_number(temperature, 1.0)
    if is_plain and is_number(label_smoothing, 0.0) and is_number(z_loss, 0.0) and type(logits) is ndarray:
        loss = quick.cross_entropy(logits, targets, axis, reduction, backend)
        if loss is not None:
            return loss
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss}
    options |= {"temperature": temperature, "where": where, "reduction": reduction, "dtype": dtype, "backend": backend}
    if partials is not None or n_classes is not None or not is_number(first_class, 0):
        inputs = {"logits": logits, "targets": targets, "partials": partials}
        options |= {"axis": axis, "first_class": first_class, "n_classes": n_classes}
        return untraced(call_of_part)("cross_entropy", inputs, **options)
    return untraced(call_derived)("cross_entropy", {"logits": logits, "targets": targets}, axis=axis, **options)


def cross_entropy_value_and_grad(
    logits: Any,
    targets: Any,
    axis: Axis = -1,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: Any = 1.0,
    where: Any = None,
    reduction: str = "mean",
    out: Array | None = None,
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Any, Array]:
    """Compute the cross-entropy of targets and the softmax of logits, and its gradient with respect to the logits.

    ::

        p = softmax(x)
        dx = (sum(w * q) * p - w * q + 2 * w[target] * z_loss * L * p) / temperature / denominator

    Parameters
    ----------
    logits, targets, axis, weight, ignore_index, label_smoothing, z_loss, temperature, where, reduction, dtype, backend
        As for `cross_entropy`.
    out : array of the type, shape and dtype of `logits`, optional
        The array to write the gradient to. May be `logits`, and may overlap anything. JAX arrays cannot be written to.

    Returns
    -------
    loss : array
        As from `cross_entropy`, bit for bit.
    dx : array, type, shape and dtype of `logits`
        The gradient; float64 for integers. For "mean" it is divided by the denominator; for "sum" and "none" it is not
        scaled. `out`, if given.

    Raises
    ------
    TypeError, ValueError, IndexError, numpy.exceptions.AxisError, LsmError
        As for `cross_entropy`; `out` is rejected as in `log_softmax`. Nothing is written then.

    See Also
    --------
    cross_entropy : The loss alone.
    log_softmax_backward : The gradient of any loss with respect to logits.

    Notes
    -----
    The gradient at a target is ``expm1(y)`` with y its log-probability, where ``p - 1`` would be 0 for confident
    frames. It is exactly 0 for frames that are left out, for masked classes, and throughout for the mean of no frames.
    It is within 4 ulp for one label without smoothing and z_loss, otherwise within 4 ulp of the largest of itself and
    its terms. 16-bit gradients are rounded once. For the mean of many frames they may be below the range of float16;
    then "sum" is the better choice.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> x = np.array([[20.0, 0.0]], np.float32)
    >>> lsm.cross_entropy_value_and_grad(x, [0], reduction="none")
    (array([2.0611537e-09], dtype=float32), array([[-2.0611537e-09,  2.0611537e-09]], dtype=float32))
    """
    is_plain = weight is ignore_index is where is dtype is None and is_number(temperature, 1.0)
    if is_plain and is_number(label_smoothing, 0.0) and is_number(z_loss, 0.0) and type(logits) is ndarray:
        quickly: tuple[Any, Array] | None
        quickly = quick.cross_entropy_value_and_grad(logits, targets, axis, reduction, out, backend)
        if quickly is not None:
            return quickly
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss}
    options |= {"temperature": temperature, "where": where, "reduction": reduction, "dtype": dtype, "backend": backend}
    inputs = {"logits": logits, "targets": targets}
    result: tuple[Any, Array] = untraced(call_derived)(
        "cross_entropy_value_and_grad", inputs, axis=axis, **options, out=out
    )
    return result
