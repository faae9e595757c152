"""Call a backend's method: merge several axes into one, resolve overlap, and provide an `out` it can write to."""

import math
from typing import Any, NamedTuple

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary
from lsm._operations import Operation


class Execution(NamedTuple):
    """A call of a backend's method on arrays of a type that it supports.

    Attributes
    ----------
    backend : Backend
        The backend.
    operation : Operation
        The operation, whose name is that of the method.
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
    shape : tuple of int
        The shape of the result.
    """

    backend: Any
    operation: Operation
    library: ArrayLibrary
    inputs: tuple[Any, ...]
    axes: tuple[int, ...]
    out: Any
    dtype: str
    shape: tuple[int, ...]

    def run(self) -> Any:
        """Compute the result: `out`, or a new array."""
        library, operation, inputs, out = self.library, self.operation, self.inputs, self.out
        if 0 in inputs[0].shape:
            result = self._empty(self.shape) if out is None else out
            if 0 not in self.shape:  # a reduction of no classes
                result[...] = operation.identity
            return result
        kept = operation.result_shape(inputs[0].shape, self.axes, keepdims=True)
        target = None
        if out is not None and library.can_write_directly(out, inputs):
            target = library.as_base_array(out)
            target = target.reshape(kept) if operation.is_reduction else target
        if len(self.axes) != 1 or (out is not None and target is None):
            result = self._run_merged(kept, target)
        elif target is None:
            result = self._empty(kept)
            self._compute(*inputs, self.axes[0], result)
        else:
            result = target
            inputs = tuple([x if library.same_or_disjoint(x, target) else library.copy(x) for x in inputs])
            self._compute(*inputs, self.axes[0], result)
        if result is target:
            return out
        result = result.reshape(self.shape) if operation.is_reduction else result
        if out is None:
            return result
        out[...] = result
        return out

    def _compute(self, *arguments: Any) -> None:
        getattr(self.backend, self.operation.name)(*arguments)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return self.library.empty(shape, self.dtype, self.inputs[0], self.backend)

    def _run_merged(self, kept: tuple[int, ...], target: Any) -> Any:
        """Compute the result along any number of axes, merged into one: in `target` if possible, or a new array.

        Arrays whose axes can be merged are not copied. One other input of a map is copied into the result, which is
        then computed in place. `kept` is the shape of the result, with the axes.
        """
        library, shape = self.library, tuple(self.inputs[0].shape)
        order = [i for i in range(len(shape)) if i not in self.axes] + list(self.axes)
        permuted_shape, permuted_kept = tuple(shape[i] for i in order), tuple(kept[i] for i in order)
        n_frame_axes = len(shape) - len(self.axes)

        def merge(permuted: Any) -> Any:
            return permuted.reshape((*permuted.shape[:n_frame_axes], math.prod(permuted.shape[n_frame_axes:])))

        def is_one_axis(permuted: Any) -> bool:
            strides = library.strides(permuted)
            sizes = tuple(permuted.shape[n_frame_axes:])
            return bool(strides) and _check.is_one_axis(sizes, strides[n_frame_axes:])

        merged = None
        if target is not None:
            permuted = library.permute(target, order)
            if is_one_axis(permuted):
                merged = merge(permuted)
        is_direct = merged is not None
        if merged is None:
            merged = self._empty((*permuted_kept[:n_frame_axes], math.prod(permuted_kept[n_frame_axes:])))
        # Whether an input may be copied into the result: no other input may share its memory.
        is_free = bool(library.strides(merged)) and kept == shape and not (is_direct and len(self.inputs) > 1)
        arguments = []
        for x in self.inputs:
            permuted = library.permute(x, order)
            if is_one_axis(permuted):
                view = merge(permuted)
                arguments.append(
                    view if not is_direct or library.same_or_disjoint(view, merged) else library.copy(view)
                )
            elif is_free and x.dtype == merged.dtype and (not is_direct or library.same_or_disjoint(x, target)):
                merged.reshape(permuted_shape)[...] = permuted
                arguments.append(merged)
                is_free = False
            else:
                arguments.append(merge(permuted))
        self._compute(*arguments, n_frame_axes, merged)
        if is_direct:
            return target
        return library.permute(merged.reshape(permuted_kept), [int(i) for i in np.argsort(order)])
