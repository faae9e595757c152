"""A backend's method on arrays of one shape: several axes as one, no overlap, and an `out` that it can write."""

import math
from typing import Any, NamedTuple

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary


class Execution(NamedTuple):
    """What is needed to call a backend's method on arrays of a type that it takes.

    Attributes
    ----------
    backend : Backend
        The backend.
    method : str
        The name of its method, which is that of the operation.
    library : ArrayLibrary
        How these arrays are handled.
    inputs : tuple of array
        Of one shape.
    axes : tuple of int
        The axes that hold the classes, in order.
    out : array or None
        Where the result goes; None for a new array.
    dtype : str
        That of the result.
    """

    backend: Any
    method: str
    library: ArrayLibrary
    inputs: tuple[Any, ...]
    axes: tuple[int, ...]
    out: Any
    dtype: str

    def run(self) -> Any:
        """The result: `out`, or a new array."""
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
        """The same for several axes or none as one, and for an `out` that no backend writes.

        No array is copied where one stride leads through the axes. An input where none does is copied into the result,
        which then is computed in place; and `out`, where none does, is written through a temporary.
        """
        library, out, shape = self.library, self.out, tuple(self.inputs[0].shape)
        order = [i for i in range(len(shape)) if i not in self.axes] + list(self.axes)
        apart = tuple(shape[i] for i in order)
        n_frame_axes = len(shape) - len(self.axes)
        together = (*apart[:n_frame_axes], math.prod(apart[n_frame_axes:]))

        def is_one_axis(permuted: Any) -> bool:
            strides = library.strides(permuted)
            return bool(strides) and _check.is_one_axis(apart[n_frame_axes:], strides[n_frame_axes:])

        merged = None
        if out is not None and library.can_write_directly(out, self.inputs):
            permuted = library.permute(library.as_base_array(out), order)
            if is_one_axis(permuted):
                merged = permuted.reshape(together)
        is_direct = merged is not None
        if merged is None:
            merged = self._empty(together)
        # Whether an input may be copied into the result: what else is read must not be there.
        is_free = bool(library.strides(merged)) and not (is_direct and len(self.inputs) > 1)
        given = []
        for x in self.inputs:
            permuted = library.permute(x, order)
            if is_one_axis(permuted):
                seen = permuted.reshape(together)
                given.append(seen if not is_direct or library.same_or_disjoint(seen, merged) else library.copy(seen))
            elif is_free and x.dtype == merged.dtype and (not is_direct or library.same_or_disjoint(x, out)):
                merged.reshape(apart)[...] = permuted
                given.append(merged)
                is_free = False
            else:
                given.append(permuted.reshape(together))
        self._compute(*given, n_frame_axes, merged)
        if is_direct:
            return out
        result = library.permute(merged.reshape(apart), [int(i) for i in np.argsort(order)])
        if out is None:
            return result
        out[...] = result
        return out
