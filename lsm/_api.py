"""log_softmax and softmax, with their documentation."""

from collections.abc import Sequence
from typing import Any

from numpy import ndarray

from lsm._call import call
from lsm._fastpath import quick
from lsm._interop import engine_for
from lsm._operations import LOG_SOFTMAX, SOFTMAX
from lsm._untraced import untraced

Array = Any  # numpy.ndarray, torch.Tensor, jax.Array, cupy.ndarray, or another type that supports DLPack
Axis = int | Sequence[int] | None


def log_softmax(
    x: Any,
    axis: Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    out: Array | None = None,
    dtype: Any = None,
    backend: str | None = None,
    partials: Any = None,
    n_classes: int | None = None,
) -> Array:
    """Compute the logarithm of the softmax of `x`.

    ::

        m = max(x)
        d = (x - m) / T
        s = sum of exp(d) over all classes except one of the largest
        y = d - log1p(s)

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        Logits, in nats, of a floating dtype, integers or bool. May have any strides, be read-only, unaligned or
        byte-swapped; not modified unless it is `out`. Integers and bool become float64. -inf masks a class. Or a
        dask.array.Array, or an xarray.DataArray.
    axis : int, tuple of int, or None, optional
        The axis of the classes, by default the last (in SciPy: None). Several axes, or None for all, count as one. For
        an xarray.DataArray also the name of a dimension.
    temperature : number or array, optional
        T: the logits are divided by it. A finite number above 0, or an array of them (an ndarray, or of the library of
        `x`) that broadcasts to `x` with length 1 along `axis`. In an array, another value makes its frame NaN.
    where : array of bool, optional
        The classes to include: of the library and on the device of `x`, broadcast to its shape. Masked classes are not
        read, and their result is -inf, even if all classes of a frame are masked.
    out : array of the result's type, shape, dtype and device, optional
        The array to write to. May be `x`, and may overlap it in any way. JAX arrays cannot be written to.
    dtype : dtype or str, optional
        The dtype of the result, as a dtype of NumPy or of the library of `x`; default: that of `x`. The computation
        uses the wider of the two, at least float32, and rounds once.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials : array of float64, type of `x` or ndarray, shape (..., n_slices, ..., 4), optional
        If `x` has only a part of the classes of its frames: the partials of the whole frames, from `lsm.partials` with
        the same temperature. `axis` is then one int.
    n_classes : int, optional
        The number of classes of the whole frames. The partials must add up to it.

    Returns
    -------
    y : array, type, shape and device of `x`
        Log-probabilities, in nats: from -inf to 0, with ``sum(exp(y)) == 1`` along `axis`. `out`, if given. For an
        array_like, and for a DLPack array whose namespace has no ``from_dlpack``, an ndarray (on a CUDA device, a
        cupy.ndarray). A 0-d ndarray is returned as a NumPy scalar. For a dask array, it is a lazy one with the same
        chunks.

    Raises
    ------
    TypeError
        `x` is complex, an object, text, structured or masked, requires grad, or is traced by JAX; or it has a unit, is
        sparse, is not computed yet (except dask.array), or is stored in a file (zarr, h5py). The message says what to
        pass instead. `dtype` is not supported, or `out` has another type or dtype than the result. `where` is not of
        dtype bool; `where` or `temperature` belongs to another library.
    ValueError
        `temperature` is not a finite number above 0, or it or `where` does not broadcast to `x`; `out` has another
        shape or is read-only; an axis is repeated. `partials` have another shape, or do not add up to `n_classes`.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        The requested backend does not exist, is not available, does not support this type, device or dtype, or
        failed. Each has its own subclass.

    See Also
    --------
    log_softmax_backward : The gradient.
    partials : For frames whose classes are in several arrays.

    Notes
    -----
    For any finite frame, float32 and float64 results are within 4 ulp (units in the last place) of the exact value;
    16-bit results are the exact value rounded once, within 0.501 ulp. The result of a frame depends only on its
    values, its dtype and the backend, not on its position, the number of threads or `out`. A frame that contains NaN
    or +inf, or only -inf, becomes NaN. An empty axis gives an empty array. There are no floating-point warnings.
    Arrays of other libraries are read without a copy, and nothing is moved between devices. With `where`, the results
    are, bit for bit, those of `x` with -inf in the masked classes. The temperature is applied to the differences x - m,
    in float64 or as two numbers, so that the bounds hold for every temperature. The algorithm is Algorithm 4.1 of
    Blanchard, Higham & Higham (2021), doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> lsm.log_softmax(np.array([20.0, 0.0], np.float32))
    array([-2.0611537e-09, -2.0000000e+01], dtype=float32)
    """
    if type(x) is ndarray and dtype is None and partials is None and n_classes is None:
        y = quick.log_softmax(x, axis, out, where, temperature, backend)
        if y is not None:
            return y
    if partials is not None or n_classes is not None:
        options = {"where": where, "temperature": temperature, "axis": axis, "out": out, "dtype": dtype}
        options |= {"backend": backend, "n_classes": n_classes}
        return untraced(call_of_part)("log_softmax", {"x": x, "partials": partials}, **options)
    return untraced(call)(LOG_SOFTMAX, (x,), axis, out, dtype, backend, False, where, temperature)


def softmax(
    x: Any,
    axis: Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    out: Array | None = None,
    dtype: Any = None,
    backend: str | None = None,
    partials: Any = None,
    n_classes: int | None = None,
) -> Array:
    """Compute the softmax of `x`.

    ::

        m = max(x)
        d = (x - m) / T
        s = sum of exp(d) over all classes except one of the largest
        p = exp(d) / (1 + s)

    Parameters
    ----------
    x : array_like, torch.Tensor, jax.Array, cupy.ndarray or other DLPack array, shape (..., n_classes, ...)
        Logits, in nats, as for `log_softmax`. -inf masks a class.
    axis : int, tuple of int, or None, optional
        The axis of the classes, by default the last (in SciPy: None). Several axes, or None for all, count as one.
    temperature : number or array, optional
        T: the logits are divided by it. A finite number above 0, or an array of them (an ndarray, or of the library of
        `x`) that broadcasts to `x` with length 1 along `axis`. In an array, another value makes its frame NaN.
    where : array of bool, optional
        The classes to include: of the library and on the device of `x`, broadcast to its shape. Masked classes are not
        read, and their result is 0, even if all classes of a frame are masked.
    out : array of the result's type, shape, dtype and device, optional
        The array to write to. May be `x`, and may overlap it in any way. JAX arrays cannot be written to.
    dtype : dtype or str, optional
        The dtype of the result, as for `log_softmax`; default: that of `x`, and float64 for integers and bool.
    backend : str, optional
        The backend to use; there is no fallback. See `explain`.
    partials, n_classes : optional
        If `x` has only a part of the classes of its frames, as for `log_softmax`.

    Returns
    -------
    p : array, type, shape and device of `x`
        Probabilities: from 0 to 1, with ``sum(p) == 1`` along `axis`, up to rounding. `out`, if given. The type is as
        for `log_softmax`.

    Raises
    ------
    TypeError
        An argument is rejected as in `log_softmax`.
    ValueError
        `temperature` or `where` is rejected as in `log_softmax`; `out` has another shape or is read-only; an axis is
        repeated.
    numpy.exceptions.AxisError
        `axis` is out of range.
    LsmError
        As for `log_softmax`.

    See Also
    --------
    log_softmax : The logarithm.
    softmax_backward : The gradient.

    Notes
    -----
    For any finite frame, float32 and float64 results are within 4 ulp of the exact value, subnormal ones within 4 times
    the smallest number; 16-bit results are the exact value rounded once, within 0.501 ulp. A masked class gives 0. A
    frame that contains NaN or +inf, or only -inf, becomes NaN. The other notes on `log_softmax` apply too. The division
    by 1 + s, and not ``exp(log_softmax(x))``, keeps the digits of small probabilities: Blanchard, Higham & Higham
    (2021), doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np, lsm
    >>> lsm.softmax(np.array([20.0, 0.0], np.float32))
    array([1.0000000e+00, 2.0611537e-09], dtype=float32)
    """
    if type(x) is ndarray and dtype is None and partials is None and n_classes is None:
        p = quick.softmax(x, axis, out, where, temperature, backend)
        if p is not None:
            return p
    if partials is not None or n_classes is not None:
        options = {"where": where, "temperature": temperature, "axis": axis, "out": out, "dtype": dtype}
        options |= {"backend": backend, "n_classes": n_classes}
        return untraced(call_of_part)("softmax", {"x": x, "partials": partials}, **options)
    return untraced(call)(SOFTMAX, (x,), axis, out, dtype, backend, False, where, temperature)


def call_of_part(function: str, inputs: dict[str, Any], **options: Any) -> Any:
    """Call a function of `_part_calls`, directly or through an engine; the options are all its keywords, by name."""
    if "partials" in inputs and inputs["partials"] is None:
        names = "n_classes, first_class" if "first_class" in options else "n_classes"
        raise TypeError(f"{names}: given without partials; accepted: only with partials, since x has all classes")
    engine = engine_for(inputs.values())
    if engine is not None:
        return engine.serve(function, inputs, options)
    from lsm import _part_calls  # as in `call_derived`

    return getattr(_part_calls, function)(**inputs, **options)


def call_derived(function: str, inputs: dict[str, Any], **options: Any) -> Any:
    """Call a function of `_derived_calls`, directly or through an engine; the options are all its keywords, by name."""
    engine = engine_for(inputs.values())
    if engine is not None:
        return engine.serve(function, inputs, options)
    from lsm import _derived_calls  # takes milliseconds, too slow for `import lsm`

    return getattr(_derived_calls, function)(*inputs.values(), **options)


def is_number(value: Any, number: float) -> bool:
    """Whether this is exactly that float or int; other values that equal it are recognised later."""
    return type(value) is type(number) and bool(value == number)
