"""The keywords `where`, `temperature` and `b`, as array operations before and after the methods of a backend.

Arrays are processed in blocks of frames, so that the memory beside the result is bounded. In a block, the classes are
the last axis. The functions are those that NumPy and CuPy share; PyTorch, too, has those that results of at most 32
bits need.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from lsm._arithmetic import compute
from lsm._check import BFLOAT16_BITS, np_dtype
from lsm._dispatch import DispatchEntry
from lsm._errors import BackendUnsupportedError
from lsm._interop_base import ArrayLibrary
from lsm._keywords import broadcast, like, namespace
from lsm._operations import Operation
from lsm._signed_sum import write_signed_sum
from lsm._temperature import divide_narrow, is_divisor, write_backward, write_wide
from lsm._version import install_command

# As in the backend numpy: the C library keeps the memory of such arrays. With four times as many elements, calls took
# five times as long. On a GPU, where CuPy and PyTorch keep all memory, launches take most of the time.
_BLOCK_ELEMENTS, _GPU_BLOCK_ELEMENTS = 2**14, 2**22
# With only a mask, nothing but the mask and the inputs is copied, into memory that is reused.
_MASKED_BLOCK_ELEMENTS = 2**16
_MASK_BYTES = 2**18  # of a mask that is broadcast, at a time


def derive(
    entry: DispatchEntry,
    operation: Operation,
    library: ArrayLibrary,
    dtypes: tuple[str, ...],
    x: Any,
    keywords: dict[str, Any],
    return_sign: bool,
) -> tuple[Any, tuple[Any, ...]]:
    """A backend whose method takes further arrays after the inputs, and these arrays.

    Parameters
    ----------
    entry : DispatchEntry
        The backend that was selected.
    operation, library, dtypes
        Of the call: the library of the arrays passed to the backend; the dtypes of the inputs and the result.
    x : array
        The first input.
    keywords : dict of str to array
        Those given of "where" (as from `mask_for`), "temperature" (as from `temperature_for`) and "b".
    return_sign : bool
        Whether the signs of the sums are requested.

    Raises
    ------
    BackendUnsupportedError
        The call needs array operations that lsm does not have for these arrays.
    """
    if not keywords:
        return entry.backend, ()
    is_narrow = "float64" in entry.dtypes and "b" not in keywords and not {"float64", "longdouble"} & {*dtypes}
    if tuple(keywords) != ("where",):
        _check_arithmetic(x, dtypes, is_narrow)
    if "temperature" in keywords:
        temperature = keywords["temperature"]
        temperature = like(temperature, x) if isinstance(temperature, float) else temperature
        keywords = keywords | {"temperature": broadcast(temperature, x.shape)}
    signs: list[Any] | None = [] if return_sign else None
    return Derived(entry.backend, operation, library, tuple(keywords), is_narrow, signs), tuple(keywords.values())


def _check_arithmetic(x: Any, dtypes: tuple[str, ...], is_narrow: bool) -> None:
    """Raise unless lsm can do arithmetic with such arrays."""
    if "bfloat16" in dtypes and np_dtype("bfloat16") is BFLOAT16_BITS:
        raise BackendUnsupportedError(f"temperature, b: bfloat16 needs ml_dtypes: {install_command('bfloat16')}")
    if not is_narrow and namespace(x).__name__ not in ("numpy", "cupy"):
        raise BackendUnsupportedError(
            f"temperature, b: a {type(x).__name__} to {dtypes[-1]} is not supported where the backend takes it as it "
            "is; use another backend, or pass a NumPy or CuPy array that shares its memory"
        )


class Derived(NamedTuple):
    """A backend that takes further arrays after the inputs of a method: the mask, the temperature or b.

    All have the shape of the inputs.

    Attributes
    ----------
    backend : Backend
        The backend.
    operation : Operation
        The operation whose method is needed.
    library : ArrayLibrary
        The library of the arrays.
    keywords : tuple of str
        The arrays that follow: those of "where", "temperature" and "b" that are given, in this order.
    is_narrow : bool
        Whether float64 has all the digits that the result needs, and the backend supports it.
    signs : list of array or None
        The list to which the signs of sums are appended; if None, a negative sum gives NaN.
    """

    backend: Any
    operation: Operation
    library: ArrayLibrary
    keywords: tuple[str, ...]
    is_narrow: bool
    signs: list[Any] | None

    def __getattr__(self, name: str) -> Any:
        """The method of the operation, and the other attributes of the backend."""
        return self.run if name == self.operation.name else getattr(self.backend, name)

    def run(self, *arguments: Any) -> None:
        """Write the result for (*inputs, *arrays of the keywords, axis, out)."""
        *arrays, axis, out = arguments
        compute(self._run, arrays, axis, out)

    def _run(self, arrays: list[Any], axis: int, out: Any) -> None:
        if self._run_natively(arrays, axis, out):
            return
        moved = [array.swapaxes(axis, -1) for array in (*arrays, out)]
        signs = None
        if self.signs is not None:
            signs = namespace(out).empty_like(moved[-1])
            self.signs.append(signs.swapaxes(axis, -1))
        n_inputs = len(self.operation.inputs)
        numbers = (*arrays[:n_inputs], out)
        n_elements = _BLOCK_ELEMENTS if isinstance(out, np.ndarray) else _GPU_BLOCK_ELEMENTS
        if self.keywords == ("where",) and all(isinstance(a, np.ndarray) and a.itemsize in _INTEGERS for a in numbers):
            self._run_masked(moved[:n_inputs], moved[n_inputs], moved[-1])
            return
        for index in _blocks(moved[0].shape, n_elements):
            *given, target = [array[index] for array in moved]
            keywords = dict(zip(self.keywords, given[n_inputs:], strict=True))
            self._write(given[:n_inputs], target, None if signs is None else signs[index], **keywords)

    def _run_natively(self, arrays: list[Any], axis: int, out: Any) -> bool:
        """Have the backend itself apply the keywords as it reads the inputs; False if it cannot."""
        run = getattr(self.backend, "run_altered", None)
        n_inputs = len(self.operation.inputs)
        inputs, given = tuple(arrays[:n_inputs]), dict(zip(self.keywords, arrays[n_inputs:], strict=True))
        where, temperature = given.get("where"), given.get("temperature")
        if (
            run is None
            or "b" in given
            or (temperature is not None and not (self.is_narrow and _is_one_number(temperature)))
        ):
            return False
        if where is not None and not all(x.flags.c_contiguous for x in inputs):
            return False
        divisor = None if temperature is None else temperature[(0,) * temperature.ndim].item()
        if divisor is not None and not is_divisor(divisor):
            return False
        step = len(inputs[0])
        if where is not None and not where.flags.c_contiguous:  # broadcast: copy it in parts
            step = _MASK_BYTES // math.prod(where.shape[1:]) if axis else 0
        if not step:
            return False
        for i in range(0, len(inputs[0]), step):
            part = slice(i, i + step)
            mask = None if where is None else np.ascontiguousarray(where[part])
            run(self.operation, tuple([x[part] for x in inputs]), axis, out[part], mask, divisor)
            if mask is not None and not self.operation.is_reduction:
                is_product = self.operation.name == "softmax_backward"  # with a p of 0, perhaps -0.0
                self._put_masked(out[part], mask, out[part].swapaxes(axis, 0)[:1], is_product)
        return True

    def _put_masked(self, out: Any, where: Any, first: Any, may_differ: bool) -> None:
        """Set masked results where they may differ: in all frames, or only in those that are NaN, tested by `first`.

        first: one class of each frame.
        """
        may_differ = may_differ or out.dtype is BFLOAT16_BITS  # NumPy cannot test these for NaN
        if may_differ or np.isnan(self.library.astype(first, "float64")).any():
            _set(out, ~where, self.operation.masked)

    def _run_masked(self, inputs: list[Any], where: Any, out: Any) -> None:
        """Compute a call on ndarrays with only a mask."""
        method = getattr(self.backend, self.operation.name)
        fills = [array.masked for array in self.operation.inputs]
        spare: list[Any] = []
        for index in _blocks(inputs[0].shape, _MASKED_BLOCK_ELEMENTS):
            *given, takes_part, target = [array[index] for array in (*inputs, where, out)]
            if not spare or spare[0].shape != given[0].shape:
                spare = [np.empty(x.shape, x.dtype) for x in given]
                spare.append(np.empty(takes_part.shape, _INTEGERS[max(x.itemsize for x in given)]))
            for x, fill, copy in zip(given, fills, spare, strict=False):
                _copy_masked(x, takes_part, fill, copy, spare[-1])
            method(*spare[:-1], target.ndim - 1, target)
            if not self.operation.is_reduction:
                self._put_masked(target, takes_part, target[..., :1], len(inputs) > 1)  # gradients may be -0.0

    def _write(
        self, inputs: list[Any], out: Any, signs: Any, *, where: Any = None, temperature: Any = None, b: Any = None
    ) -> None:
        """Compute a block."""
        operation = self.operation
        if where is not None:
            where = ~where  # from here on, True for masked classes
            inputs = [self.library.copy(x) for x in inputs]
            for x, array in zip(inputs, operation.inputs, strict=True):
                _set(x, where, array.masked)
        method = getattr(self.backend, operation.name)
        if b is not None:
            if where is not None:
                b = self.library.copy(b)
                _set(b, where, 0)
            write_signed_sum(inputs[0], b, out, signs)
        elif temperature is None:
            method(*inputs, out.ndim - 1, out)
        elif len(inputs) == 2:
            write_backward(method, self.library, self.is_narrow, inputs, temperature[..., :1], out)
        elif self.is_narrow:
            x = self.library.astype(inputs[0], "float64")
            method(divide_narrow(x, temperature[..., :1]), out.ndim - 1, out)
        else:
            write_wide(operation.name, inputs[0], temperature[..., :1], out)
        if where is not None and not operation.is_reduction:
            _set(out, where, operation.masked)


def _is_one_number(temperature: Any) -> bool:
    """Whether an array is one number, broadcast."""
    return isinstance(temperature, np.ndarray) and not any(temperature.strides)


def _blocks(shape: tuple[int, ...], n_elements: int) -> Iterator[tuple[slice, ...]]:
    """Index blocks of frames, with the classes on the last axis: inner axes whole while they fit."""
    room = max(1, n_elements // shape[-1])
    parts = []
    for n in reversed(shape[:-1]):
        step = min(n, room)
        room = max(1, room // step)
        parts.append([slice(i, i + step) for i in range(0, n, step)])
    return product(*reversed(parts))


def _set(x: Any, where: Any, value: float) -> None:
    """Set elements of x."""
    if not isinstance(x, np.ndarray):
        x[where] = value
        return
    constant: Any = value
    if x.dtype is BFLOAT16_BITS:
        constant = np.array(0xFF80 if value else 0, np.uint16).view(x.dtype)
    np.copyto(x, constant, casting="unsafe", where=where)  # a tenth of the time of x[where] = constant


_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}


def _copy_masked(x: Any, where: Any, fill: float, out: Any, spare: Any) -> None:
    """out = x, but `fill`, -inf or 0, where the mask is False; with integer operations, which NumPy vectorises.

    With a third of random classes masked, this takes a third of the time of `numpy.copyto` with a mask.
    """
    integer = _INTEGERS[x.itemsize]
    bits, of_x = out.view(integer), x.view(integer)
    of_mask = np.minimum(where.view(np.uint8), 1).view(np.int8)  # in a view of bytes, any value except 0 may mean True
    if not fill:
        np.negative(of_mask, out=bits, dtype=integer, casting="unsafe")  # all bits, or none
        np.bitwise_and(bits, of_x, out=bits)
        return
    of_fill = np.array(0xFF80, np.uint16) if x.dtype.kind == "V" else np.array(fill, x.dtype)
    masked = spare.view(integer).ravel()[: x.size].reshape(x.shape)
    np.subtract(of_mask, 1, out=masked, dtype=integer, casting="unsafe")
    np.bitwise_or(of_x, masked, out=bits)
    np.bitwise_and(masked, ~of_fill.view(integer), out=masked)
    np.bitwise_xor(bits, masked, out=bits)
