"""The logits of a derived function: their log-softmax, block by block, from the backend of the call."""

from typing import Any

import numpy as np

from lsm import _check
from lsm._arithmetic import compute
from lsm._call import call, check_out
from lsm._decide import Request
from lsm._derived_loss import Block, normalised
from lsm._dispatch import DispatchEntry, find_entry
from lsm._errors import BackendUnsupportedError
from lsm._frames import Frames, Index
from lsm._interop import NUMPY_LIBRARY, library_of
from lsm._keywords import mask_for, temperature_for
from lsm._operations import DERIVED, LOG_SOFTMAX, OF_PART, PARTIALS, SOFTMAX, Operation
from lsm._threads import count_threads
from lsm.backends.cython_ import narrow

BLOCK_ELEMENTS = 2**17  # of a block of log-softmax, per thread: half a MiB of float32, which fits a level-2 cache
WIDE_ELEMENTS = 2**15  # of a block in float64, with about ten temporaries
_ROW_CLASSES = 32


def block_elements(frames: Frames) -> int:
    """The elements of a block for all threads: in smaller blocks, they would mostly wait for each other."""
    return BLOCK_ELEMENTS * count_threads(frames.size * frames.n_classes)


class Logits:
    """Checked logits, and the backend for them.

    Attributes
    ----------
    library : ArrayLibrary
        The library of the array.
    array : array
        The logits, as an array of that library.
    values : ndarray
        The logits as an ndarray, in the same memory if possible.
    frames : Frames
        The frames of the logits.
    own : str
        The compute dtype.
    entry : DispatchEntry or None
        The backend; None before it is selected.
    """

    def __init__(self, function: str, x: Any, name: str, axis: Any) -> None:
        self.library = library_of(x)
        operand = self.library.validate(x, name)
        self.derived, self.name, self.array, self.own = (
            DERIVED.get(function) or OF_PART.get(function, OF_PART[PARTIALS]),
            name,
            operand.array,
            operand.dtype,
        )
        if operand.device != "cpu":
            raise BackendUnsupportedError(self.derived.refusal(name, self.library.device(self.array)))
        self.values = self.library.as_numpy(self.array, name)
        self.axes = _check.normalised_axes(axis, self.values.ndim)
        self.frames = Frames.along(self.values.shape, self.axes)
        self.mask = self.temperature = None
        self.entry: DispatchEntry | None = None
        self._scratch: dict[Any, Any] = {}

    @property
    def wide(self) -> Any:
        """The dtype in which losses are computed: float64, or longdouble for longdouble."""
        return np.dtype(np.longdouble if self.own == "longdouble" else np.float64)

    def result_dtype(self, dtype: Any) -> str:
        """The dtype of the result: `dtype`, or by default that of the logits, for losses at least float32."""
        own = _check.at_least_float32(self.own) if self.derived.is_loss else self.own
        return self.library.result_dtype(own, dtype)

    def select(self, result: str, backend: Any, temperature: Any, where: Any) -> None:
        """Check the keywords, and find the backend for a log-softmax of dtype `result`."""
        self.mask = mask_for(where, self.array, self.values, self.library, self.name)
        self.temperature = temperature_for(temperature, self.array, self.values, self.library, self.axes, self.name)
        self.backend, self.result = backend, result
        self.entry = self._find(LOG_SOFTMAX, result)

    def _find(self, operation: Operation, result: str) -> DispatchEntry:
        request = Request(self.library.type_name(self.array), "cpu", (self.own, result), operation.name)
        return find_entry(request, self.backend, self.library.fast_key(self.array, self.own))

    def native(self, name: str, result: str) -> Any:
        """The backend's own function for whole C-contiguous arrays, without keywords; None if it has none.

        result : the dtype of its result: that of the logits, or float32 for 16 bits.
        """
        entry, x = self.entry, self.values
        is_alike = result in (self.own, _check.at_least_float32(self.own)) and x.dtype == _check.np_dtype(self.own)
        is_plain = self.mask is None and self.temperature is None and self.frames.order is None
        if entry is None or entry.passed_as != _check.NUMPY or not (is_alike and is_plain and x.size and x.ndim):
            return None
        return getattr(entry.backend, name, None) if x.flags.c_contiguous and x.flags.aligned else None

    def block(self, index: Index) -> Any:
        """A block of the unchanged logits."""
        return self.frames.block(self.values, index)

    def mask_block(self, index: Index) -> Any:
        """The mask of a block, True for the included classes; None if all are."""
        return None if self.mask is None else self.frames.block(self.mask, index)

    def temperature_block(self, index: Index) -> Any:
        """The temperature of a block, with length 1 on the axis of an array; None if it is 1."""
        is_one = self.temperature is None or isinstance(self.temperature, float)
        return self.temperature if is_one else self.frames.block(self.temperature, index)

    def masked_rows(self, index: Index) -> tuple[Any, Any]:
        """A block of the logits as a matrix (see `rows`), with -inf where masked; and its mask, or None."""
        matrix, mask = self.rows(self.block(index)), self.mask_block(index)
        if mask is not None:
            mask = np.moveaxis(mask, self.frames.at, self.at).reshape(matrix.shape)
            mask_out(matrix, mask)
        return matrix, mask

    def normalised(self, index: Index) -> tuple[Block, Any]:
        """The probabilities of a block as a matrix, in float64 or longdouble; and its mask, or None."""
        matrix, mask = self.masked_rows(index)
        temperature = self.of_frames(self.temperature_block(index))
        is_wide = _check.at_least_float32(self.own) != "float32"
        return normalised(matrix, self.at, is_wide, temperature), mask

    def of_frames(self, numbers: Any) -> Any:
        """Numbers of the frames of a block, reshaped to match its matrix; a single number is unchanged."""
        return numbers.reshape((1, -1) if self.at == 0 else (-1, 1)) if isinstance(numbers, np.ndarray) else numbers

    def rows(self, block: Any) -> Any:
        """A copy of a block as a matrix in float64 or longdouble, in C order, on which NumPy's order of adding depends.

        Frames are rows, but short frames are columns, so that no inner loop of NumPy is short.
        """
        moved = np.moveaxis(block, self.frames.at, self.at)
        shape = (moved.shape[0], -1) if self.at == 0 else (-1, moved.shape[-1])
        return np.ascontiguousarray(widened(moved, self.wide)).reshape(shape)

    def unrows(self, matrix: Any, block: Any) -> Any:
        """A matrix made by `rows`, in the shape of a block."""
        moved = np.moveaxis(block, self.frames.at, self.at)
        return np.moveaxis(matrix.reshape(moved.shape), self.at, self.frames.at)

    @property
    def at(self) -> int:
        """The axis of the classes in a matrix of `rows`: 0 for short frames, else -1."""
        return 0 if self.frames.n_classes < _ROW_CLASSES else -1

    def log_softmax(self, index: Index) -> Any:
        """The log-softmax of a block, bit for bit that of `lsm.log_softmax`; the next one overwrites it."""
        return self._compute(LOG_SOFTMAX, index, self.result)

    def softmax(self, index: Index, dtype: str) -> Any:
        """The softmax of a block; the next one overwrites it."""
        try:
            return self._compute(SOFTMAX, index, dtype)
        except BackendUnsupportedError:  # a backend without softmax; exp of a rounded log-softmax is not accurate
            matrix, mask = self.normalised(index)
            p = self.unrows(matrix.p, self.block(index)).astype(_check.np_dtype(dtype))
            if mask is not None:
                p[~self.mask_block(index)] = 0  # in invalid frames too
            return p

    def _compute(self, operation: Operation, index: Index, dtype: str) -> Any:
        """A map of a block, computed by a backend."""
        block, at, library = self.block(index), self.frames.at, self.library
        keywords = {"where": self.mask_block(index), "temperature": self.temperature_block(index)}
        keywords = {name: value for name, value in keywords.items() if value is not None}
        entry = self._find(operation, dtype)
        if entry.passed_as != _check.NUMPY:
            for name, value in keywords.items():
                keywords[name] = value if isinstance(value, float) else library.from_numpy(value.copy(), self.array)
            x = library.from_numpy(block.copy(), self.array)
            return library.as_numpy(call(operation, (x,), at, None, dtype, self.backend, **keywords), self.name)
        key = operation, block.shape
        if key not in self._scratch:  # new memory for each block would cost a page fault per 4 KiB
            self._scratch[key] = np.empty_like(block, dtype=_check.np_dtype(dtype), subok=False)
        y = self._scratch[key]
        backend, extra = entry.backend, ()
        if keywords:
            from lsm._derived import derive  # not needed for other calls

            backend, extra = derive(entry, operation, NUMPY_LIBRARY, (self.own, dtype), block, keywords, False)
        getattr(backend, operation.name)(block, *extra, at, y)
        return y

    def new(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new ndarray for a result, which `finished` does not have to copy."""
        made = self.library.new_numpy(shape, dtype)
        if made is None and shape == self.values.shape:
            made = np.empty_like(self.values, dtype=_check.np_dtype(dtype), subok=False)
        return np.empty(shape, _check.np_dtype(dtype)) if made is None else made

    def target(self, out: Any, shape: tuple[int, ...], dtype: str) -> Any:
        """The ndarray to write to: a view of `out`, which is checked, or a new array if `out` is None."""
        if out is None:
            return self.new(shape, dtype)
        if self.library is not NUMPY_LIBRARY:
            check_out(self.library, out, self.array, dtype)
        view = self.library.view_as_numpy(out, "out")
        _check.check_out(view, shape, dtype)
        return view

    def keep_apart(self, target: Any, in_place: bool) -> None:
        """Copy inputs that share memory with the output; `in_place` if blocks are read before they are written."""
        if np.may_share_memory(self.values, target) and not (in_place and _check.same_memory(self.values, target)):
            self.values = self.values.copy()
        if self.mask is not None and np.may_share_memory(self.mask, target):
            self.mask = self.mask.copy()

    def finished(self, result: Any, out: Any = None) -> Any:
        """A result as an array of the caller's library, for NumPy a scalar if it is 0-d; or `out`, if given."""
        if out is None:
            return self.library.from_numpy(result, self.array)
        self.library.bump_version(out)
        return out

    def finished_indices(self, places: Any) -> Any:
        """Indices of classes as an array of the caller's library, in the widest integers that it has."""
        is_wide = self.library.has_int64(self.array)
        return self.finished(places if is_wide else places.astype(np.int32))


def widened(block: Any, dtype: Any) -> Any:
    """A copy of an array in float64 or longdouble; bfloat16 may be given as bits."""
    if block.dtype is _check.BFLOAT16_BITS:
        bits: Any = block.view(np.uint16).astype(np.uint32) << 16
        block = bits.view(np.float32)
    return block.astype(dtype)


def narrowed(values: Any, dtype: str) -> Any:
    """Values rounded to a dtype; bfloat16 may be returned as bits."""
    own = _check.np_dtype(dtype)
    if own.itemsize == 2 and values.dtype == np.float32 and isinstance(values, np.ndarray):
        rounded = np.empty(values.shape, np.uint16)
        if narrow(values, rounded, own):  # NumPy takes 70 times as long for subnormal results
            return rounded.view(own)
    if own is not _check.BFLOAT16_BITS:
        return compute(values.astype, own)
    single = compute(values.astype, np.float32)
    bits: Any = single.view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return np.where(np.isnan(single), 0x7FC0, bits).astype(np.uint16).view(own)


def mask_out(block: Any, mask: Any, value: float = -np.inf) -> None:
    """Write -inf, or 0, where the mask is False."""
    if block.dtype is _check.BFLOAT16_BITS:
        block.view(np.uint16)[~mask] = 0xFF80 if value else 0
    else:
        block[~mask] = value
