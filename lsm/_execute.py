"""Calling a backend's method: merge several axes into one, resolve overlap, and provide an `out` it can write to."""

import math
from typing import Any, NamedTuple

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary


class Execution(NamedTuple):
    """A call of a backend's method on arrays of a type that it supports.

    Attributes
    ----------
    backend : Backend
        The backend.
    method : str
        The name of the method, the same as that of the operation.
    library : ArrayLibrary
        The library of the arrays.
    inputs : tuple of array
        The inputs, of one shape.
    axes : tuple of int
        The axes of the classes, sorted.
    out : array or None
        The array to write to; None for a new one.
    dtype : str
        The dtype of the result.
    """

    backend: Any
    method: str
    library: ArrayLibrary
    inputs: tuple[Any, ...]
    axes: tuple[int, ...]
    out: Any
    dtype: str

    def run(self) -> Any:
        """Compute the result: `out`, or a new array."""
        library, out, shape = self.library, self.out, tuple(self.inputs[0].shape)
        if 0 in shape:
            return self._empty(shape) if out is None else out
        if len(self.axes) != 1 or (out is not None and not library.can_write_directly(out, self.inputs)):
            return self._run_merged()
        result = self._empty(shape) if out is None else library.as_base_array(out)
        inputs = self.inputs
        if out is not None:
            inputs = tuple([x if library.same_or_disjoint(x, result) else library.copy(x) for x in inputs])
        self._compute(*inputs, self.axes[0], result)
        return result if out is None else out

    def _compute(self, *arguments: Any) -> None:
        getattr(self.backend, self.method)(*arguments)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return self.library.empty(shape, self.dtype, self.inputs[0], self.backend)

    def _run_merged(self) -> Any:
        """As `run`, for any number of axes merged into one, and for an `out` that a backend cannot write to.

        Arrays whose axes can be merged are not copied. Another input is copied into the result, which is then computed
        in place; another `out` is written through a temporary.
        """
        library, out, shape = self.library, self.out, tuple(self.inputs[0].shape)
        order = [i for i in range(len(shape)) if i not in self.axes] + list(self.axes)
        permuted_shape = tuple(shape[i] for i in order)
        n_frame_axes = len(shape) - len(self.axes)
        merged_shape = (*permuted_shape[:n_frame_axes], math.prod(permuted_shape[n_frame_axes:]))

        def is_one_axis(permuted: Any) -> bool:
            strides = library.strides(permuted)
            return bool(strides) and _check.is_one_axis(permuted_shape[n_frame_axes:], strides[n_frame_axes:])

        merged = None
        if out is not None and library.can_write_directly(out, self.inputs):
            permuted = library.permute(library.as_base_array(out), order)
            if is_one_axis(permuted):
                merged = permuted.reshape(merged_shape)
        is_direct = merged is not None
        if merged is None:
            merged = self._empty(merged_shape)
        # Whether an input may be copied into the result: no other input may share its memory.
        is_free = bool(library.strides(merged)) and not (is_direct and len(self.inputs) > 1)
        arguments = []
        for x in self.inputs:
            permuted = library.permute(x, order)
            if is_one_axis(permuted):
                view = permuted.reshape(merged_shape)
                arguments.append(
                    view if not is_direct or library.same_or_disjoint(view, merged) else library.copy(view)
                )
            elif is_free and x.dtype == merged.dtype and (not is_direct or library.same_or_disjoint(x, out)):
                merged.reshape(permuted_shape)[...] = permuted
                arguments.append(merged)
                is_free = False
            else:
                arguments.append(permuted.reshape(merged_shape))
        self._compute(*arguments, n_frame_axes, merged)
        if is_direct:
            return out
        result = library.permute(merged.reshape(permuted_shape), [int(i) for i in np.argsort(order)])
        if out is None:
            return result
        out[...] = result
        return out
