"""The Cython backend: passes views of arrays as frames to the kernels for this processor."""

from collections.abc import Sequence
from math import inf, prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lsm._errors import BackendUnavailableError
from lsm._threads import count_threads
from lsm.backends._axes import frame_views
from lsm.backends._levels import NONTEMPORAL_MIN_BYTES, kernels
from lsm.backends.base import API_VERSION, Backend


class CythonBackend(Backend):
    """All dtypes except longdouble, on the CPU, with any axis and strides, without copies."""

    name = "cython"
    api_version = API_VERSION
    dtypes = ("float16", "bfloat16", "float32", "float64")
    same_bits = True
    slice_classes = MappingProxyType(dict.fromkeys(dtypes, 16384))
    takes_bfloat16_bits = True  # the kernels read bfloat16 as uint16

    def available(self) -> str | None:
        """None, or why the kernels cannot be used."""
        try:
            kernels()
        except BackendUnavailableError as error:
            return str(error)
        return None

    @property
    def has_fma(self) -> bool:
        """Whether the kernels multiply and add with one rounding, which gives different bits than two."""
        return kernels()["level"] in ("v3", "v4")

    @property
    def fast_functions(self) -> dict[str, Any]:
        """The functions of the fast path by operation, with the arguments (*inputs, axis, out).

        They accept the user's arguments of a supported dtype, and return the result, or None if an argument must be
        validated first.
        """
        functions: dict[str, Any] = kernels()["fast"]
        return functions

    def log_softmax(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax`."""
        _run("log_softmax", (x,), axis, out)

    def log_softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_backward`."""
        _run("log_softmax_backward", (grad_output, output), axis, out)

    def softmax(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.softmax`."""
        _run("softmax", (x,), axis, out)

    def softmax_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.softmax_backward`."""
        _run("softmax_backward", (grad_output, output), axis, out)

    def logsumexp(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.logsumexp`."""
        _run("logsumexp", (x,), axis, _for_every_class(out, x, axis))

    def partials(self, x: Any, axis: int, out: Any) -> None:
        """See `Backend.partials`."""
        _run_part("partials", None, (x,), _for_every_slice(out, x), axis)

    def log_softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_of_part`."""
        _run_part("log_softmax", partials, (x,), out, axis)

    def softmax_of_part(self, x: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.softmax_of_part`."""
        _run_part("softmax", partials, (x,), out, axis)

    def logsumexp_of_partials(self, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.logsumexp_of_partials`."""
        _run_part("logsumexp", partials, (out,), out, axis)

    def partials_backward(self, grad_output: Any, output: Any, axis: int, out: Any) -> None:
        """See `Backend.partials_backward`."""
        _run_part("partials_backward", None, (grad_output, output), _for_every_slice(out, output), axis)

    def log_softmax_backward_of_part(self, grad_output: Any, output: Any, partials: Any, axis: int, out: Any) -> None:
        """See `Backend.log_softmax_backward_of_part`."""
        _run_part("log_softmax_backward", partials, (grad_output, output), out, axis)

    def run_altered(
        self, operation: Any, inputs: tuple[Any, ...], axis: int, out: Any, where: Any, divisor: float | None
    ) -> None:
        """Run an operation on inputs that are altered as they are read. Not part of the contract.

        operation : lsm._operations.Operation
        where : C-contiguous array of bool or None
            Where it is False, inputs are read as `Input.masked`. They are C-contiguous too.
        divisor : float or None
            The divisor of the first input, in float64.
        """
        out = _for_every_class(out, inputs[0], axis) if operation.is_reduction else out
        _run(operation.name, inputs, axis, out, where, divisor, [array.masked for array in operation.inputs])

    def run_entropies(
        self, function: str, inputs: Sequence[Any], axis: int, out: Any, where: Any, temperature: float
    ) -> None:
        """The entropy, or the divergence of two inputs, of at most 32 bits. Not part of the contract.

        out : array with length 1 along the axis
        """
        if where is not None:
            inputs, where = [np.ascontiguousarray(x) for x in inputs], np.ascontiguousarray(where)
        fills = [-inf] * len(inputs)
        _run(function, tuple(inputs), axis, _for_every_class(out, inputs[0], axis), where, temperature, fills)

    def find_top(self, x: Any, k: int, axis: int, places: Any) -> bool:
        """Write the k largest classes to an array of int64 with length k on the axis. Not part of the contract.

        NaN counts as the largest; of equal classes, the first come first. False if k is too large.
        """
        table = kernels()
        if k > table["most_top"]:
            return False
        n_threads = count_threads(x.size)
        scratch = np.empty((n_threads, table["scratch"] + 64), np.uint8)
        for view, to in frame_views((x, as_strided(places, x.shape, places.strides)), axis):
            table["find_top"](view, to, table["kinds"][x.dtype.char], k, scratch, n_threads)
        return True

    def run_labels(self, x: Any, axis: int, labels: Any, y: Any, gradient: Any = None, rate: Any = 1.0) -> bool:
        """Write the log-softmax at one label of each frame, and rate * softmax. Not part of the contract.

        x, gradient : C-contiguous arrays of one dtype
        labels : contiguous array of int64
            If the label of a frame is not the number of a class, y is not written, and the gradient is 0.
        y : contiguous array of the dtype of x, or of float32
        rate : number, or array of one for each frame
        False if the kernels do not support such a call.
        """
        table, n_threads = kernels(), count_threads(x.size)
        if n_threads > 1 and x.shape[axis] >= 4 * self.slice_classes["float32"] and labels.size < 4 * n_threads:
            return False  # each frame would take one thread
        stream = gradient is not None and gradient.nbytes >= NONTEMPORAL_MIN_BYTES
        stream = stream and not np.may_share_memory(gradient, x)
        rates = np.ascontiguousarray(rate, np.float64).reshape(-1)
        served: bool = table["run_labels"](x, axis, labels, y, gradient, rates, n_threads, stream)
        return served

    def put_labels(self, gradient: Any, axis: int, labels: Any, values: Any) -> None:
        """Write one number of the same dtype at the label of each frame. Not part of the contract."""
        kernels()["put_labels"](gradient, axis, labels, values)


def _for_every_class(out: Any, x: Any, axis: int) -> Any:
    """An array with one element per frame, as an array of the shape of x."""
    return as_strided(out, x.shape, [0 if i == axis else s for i, s in enumerate(out.strides)])


def _for_every_slice(out: Any, x: Any) -> Any:
    """Partials as one element each, with the shape of x; only as many as there are slices may be written to."""
    records = out.view(_record(out))[..., 0]
    return as_strided(records, x.shape, records.strides)


def _record(partials: Any) -> np.dtype[Any]:
    """A partial as one element."""
    return np.dtype(f"V{8 * partials.shape[-1]}")


def _folded(partials: Any, axis: int) -> Any:
    """The partials of whole frames, with length 1 along the axis."""
    *shape, n_numbers = partials.shape
    frames = prod(shape[:axis]), prod(shape[axis + 1 :])
    slices = np.ascontiguousarray(partials).reshape(frames[0], shape[axis], frames[1], n_numbers)
    whole = np.empty((*frames, n_numbers))
    kernels()["fold_partials" if n_numbers == 4 else "fold_gradients"](slices, whole)
    return whole.view(_record(whole)).reshape(*shape[:axis], 1, *shape[axis + 1 :])


def narrow(x: Any, out: Any, dtype: Any) -> bool:
    """Round float32 to 16 bits, into an array of uint16; False without kernels."""
    try:
        table = kernels()
    except BackendUnavailableError:
        return False
    table["narrow"](np.ascontiguousarray(x).reshape(-1), out.reshape(-1), table["kinds"][dtype.char])
    return True


def _run(
    name: str,
    inputs: tuple[Any, ...],
    axis: int,
    out: Any,
    where: Any = None,
    divisor: float | None = None,
    fills: Sequence[float] = (),
) -> None:
    """Call the fast function, or else the kernel for every (outer, classes, inner) view."""
    table = kernels()
    is_altered = where is not None or divisor is not None
    if not is_altered and out.strides[axis] and table["fast"][name](*inputs, axis, out, 0) is not None:
        return
    arrays = (*inputs, out)
    stream = out.nbytes >= NONTEMPORAL_MIN_BYTES and not any(np.may_share_memory(out, array) for array in inputs)
    kinds = table["kinds"][inputs[0].dtype.char], table["kinds"][out.dtype.char]
    itemsize = max(4, *(array.itemsize for array in arrays))
    scratch, n_threads, alterations = None, count_threads(out.size), [0, 0]
    if where is not None:
        arrays = (*inputs, where, out)
        alterations = [table["alterations"][fill] for fill in fills]
    if divisor is not None and name in table["fast"]:  # entropies divide differences
        alterations[0] |= table["alterations"]["divided"]
    for views in frame_views(arrays, axis):
        # The stride of an axis of length 1 is arbitrary, and differs from the one that the kernels see.
        is_native = not is_altered and out.shape[axis] > 1 and not stream  # streamed results are staged
        is_native = is_native and all(view.strides[1] == view.shape[3] == itemsize for view in views)
        if scratch is None or not is_native:
            n_bytes = 0 if is_native else table["scratch"]
            scratch = np.empty((n_threads, n_bytes + 64), np.uint8)
        mask = None if where is None else views[-2]
        shared = (*kinds, scratch, n_threads, stream, mask, alterations[0], alterations[-1], divisor or 1)
        table["run"](table["ops"][name], views[0], views[len(inputs) - 1], views[-1], *shared)


def _run_part(name: str, partials: Any, inputs: tuple[Any, ...], out: Any, axis: int) -> None:
    """Call the kernel of a function of parts of frames, for every view.

    partials: those of whole frames; None to write those of the inputs to `out`, which has their shape.
    """
    table, x = kernels(), inputs[0]
    whole = None if partials is None else _folded(partials, axis)
    of_frames = out if whole is None else _for_every_class(whole, x, axis)
    if whole is not None and name != "logsumexp" and x.shape[axis] <= table["n_few"]:
        counts = whole.view(np.float64).reshape(-1, partials.shape[-1])[:, -1]
        if (counts == x.shape[axis]).all():
            _run(name, inputs, axis, out)  # whole frames, which have other formulas
            return
    kinds = table["kinds"][x.dtype.char], table["kinds"].get(out.dtype.char, 0)
    stream = whole is not None and out.nbytes >= NONTEMPORAL_MIN_BYTES
    stream = stream and not any(np.may_share_memory(out, array) for array in inputs)
    n_threads = count_threads(x.size)
    scratch = np.empty((n_threads, table["scratch"] + 64), np.uint8)
    for views in frame_views((of_frames, *inputs, out), axis):
        p, a, *others, y = views
        table["run_part"](table["partial_ops"][name], p, a, *(others or [a]), y, *kinds, scratch, n_threads, stream)


backend = CythonBackend()
