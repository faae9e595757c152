"""Parts of frames: their partials, and the results of a part from the partials of the whole frames."""

from typing import Any

import numpy as np

from lsm import _check
from lsm._arithmetic import compute
from lsm._decide import Request
from lsm._dispatch import find_entry
from lsm._frames import Frames
from lsm._keywords import mask_for, temperature_for
from lsm._logits import Logits, block_elements, mask_out, narrowed, widened
from lsm._operations import PARTIALS, PARTIALS_BACKWARD
from lsm._targets import one_axis, operand
from lsm._temperature import LEAST_DIVISOR, WideBackend

N_NUMBERS = {PARTIALS: 4, PARTIALS_BACKWARD: 6}  # in a partial; the last is the number of classes
_MASKED = {"log_softmax": -np.inf, "softmax": 0.0}


class Part(Logits):
    """Checked logits, for some classes of their frames, and a backend for them.

    Attributes
    ----------
    result : str
        The dtype of the result.
    at : int
        The axis of the classes.
    """

    def __init__(
        self,
        function: str,
        x: Any,
        axis: Any,
        temperature: Any,
        where: Any,
        dtype: Any,
        backend: Any,
        name: str = "x",
    ) -> None:
        super().__init__(function, x, name, axis)
        if not self.values.ndim:
            raise ValueError(f"{name}: has no dimensions; accepted with partials: an array with an axis of classes")
        one_axis(axis, self.values.ndim, "partials")
        self.result = self.result_dtype(dtype)
        self.mask = mask_for(where, self.array, self.values, self.library, name)
        self.temperature = temperature_for(temperature, self.array, self.values, self.library, self.axes, name)
        self.is_wide = "float64" in (self.own, self.result)
        request = Request(_check.NUMPY, "cpu", (self.own, self.result), PARTIALS)
        self.entry = find_entry(request, backend)
        self._backend = self.entry.backend
        self.slice_classes = self._backend.slice_classes["float64" if self.is_wide else self.own]

    def partials(self) -> Any:
        """The partials of all slices."""
        shape, at = self.values.shape, self.frames.at
        out = np.empty((*shape[:at], -(-shape[at] // self.slice_classes), *shape[at + 1 :], 4))
        compute(self._write_partials, out)
        return out

    def _write_partials(self, out: Any) -> None:
        at = self.frames.at
        if self.mask is None and self.temperature is None and (not self.is_wide or self.own == "float64"):
            if out.size:
                self._backend.partials(self.values, at, out)
            return
        for index, classes in self._blocks():
            part = classes.start // self.slice_classes
            target = out[(*index[:at], slice(part, part + 1), *index[at:])]
            x, backend, temperature = self._altered(index, classes, is_read_once=True)
            made = np.empty(target.shape)
            backend.partials(x, at, made)
            if temperature is not None:  # back to the logits, exactly: these have at most 32 bits
                made[..., 0] = widened(narrowed(made[..., 0] * temperature, self.own), np.float64)
            target[...] = made

    def write(self, name: str, partials: Any, target: Any) -> None:
        """Write the log_softmax or softmax of the part."""
        compute(self._write, name, partials, target)

    def _write(self, name: str, partials: Any, target: Any) -> None:
        at = self.frames.at
        if self.mask is None and self.temperature is None:
            if target.size:
                getattr(self._backend, f"{name}_of_part")(self.values, partials, at, target)
            return
        for index, classes in self._blocks():
            x, backend, temperature = self._altered(index, classes, is_read_once=False)
            numbers = self.frames.block(partials, index)
            if temperature is not None:
                numbers = numbers.copy()
                numbers[..., 0] /= temperature
            place = (*index[:at], classes, *index[at:])
            getattr(backend, f"{name}_of_part")(x, numbers, at, target[place])
            if self.mask is not None:
                mask_out(target[place], self.mask[place], _MASKED[name])

    def _blocks(self) -> Any:
        """Index blocks of frames, and the classes of one slice at a time."""
        shape, at = self.values.shape, self.frames.at
        for i in range(0, shape[at], self.slice_classes):
            classes = slice(i, min(i + self.slice_classes, shape[at]))
            frames = Frames.along((*shape[:at], classes.stop - i, *shape[at + 1 :]), (at,))
            for index in frames.blocks(block_elements(frames)):
                yield index, classes

    def _altered(self, index: Any, classes: slice, is_read_once: bool) -> tuple[Any, Any, Any]:
        """A block with -inf where it is masked; the backend for it; and the temperature by which it has been divided.

        is_read_once: whether the block needs to be in the compute dtype.
        """
        at = self.frames.at
        place = (*index[:at], classes, *index[at:])
        x, temperature, backend = self.values[place], self.temperature_block(index), self._backend
        is_copied = True
        if temperature is not None and self.is_wide:
            x, backend, temperature = widened(x, np.float64), WideBackend(temperature), None
        elif temperature is not None:
            temperature = np.maximum(temperature, 2 * LEAST_DIVISOR)  # below, all differences are 0 or infinite
            x = widened(x, np.float64)
            x /= temperature
        elif self.is_wide and is_read_once:
            x = widened(x, np.float64)
        else:
            is_copied = False
        if self.mask is not None:
            x = x if is_copied else x.copy()
            mask_out(x, self.mask[place])
        return x, backend, temperature

    def only(self, places: Any, is_here: Any = None) -> None:
        """Keep only the classes at `places`, which have the rank of the logits; 0 where `is_here` is False."""
        at = self.frames.at
        if not self.values.shape[at]:
            self.values = np.zeros(places.shape, self.values.dtype)
            self.mask = None
        else:
            self.values = np.take_along_axis(self.values, places, at)
            self.mask = None if self.mask is None else np.take_along_axis(self.mask, places, at)
        if is_here is not None:
            mask_out(self.values, is_here, 0.0)
            self.mask = None if self.mask is None else self.mask | ~is_here
        self.frames = Frames.along(self.values.shape, self.axes)

    def partials_of_whole(self, partials: Any, n_classes: Any) -> tuple[Any, int]:
        """The checked partials of the whole frames, as a new array; and the number of classes of these frames."""
        shape, at = self.values.shape, self.frames.at
        made = partials if isinstance(partials, np.ndarray) else operand(partials, "partials", self)
        return checked_partials(made, n_classes, at, shape[at], shape)


def checked_partials(
    made: Any,
    n_classes: Any,
    at: int,
    n_least: int = 0,
    shape: tuple[int, ...] | None = None,
    function: str = PARTIALS,
) -> tuple[Any, int]:
    """A copy of partials, which are an ndarray; and the number of classes of their frames.

    Parameters
    ----------
    made : ndarray
        The partials.
    n_classes : int or None
        The number of classes of the frames, according to the caller.
    at : int
        The axis of the slices.
    n_least : int
        The minimal number of classes.
    shape : tuple of int or None
        The shape of the part, if there is one.
    function : str
        The function that gives such partials, a key of `N_NUMBERS`.

    Raises
    ------
    TypeError, ValueError
        The partials have another dtype or shape, or do not add up to the number of classes.
    """
    n_numbers = N_NUMBERS[function]
    if _check.dtype_name(made.dtype) != "float64":
        raise TypeError(f"partials: dtype {made.dtype}; accepted: float64, as from lsm.{function}")
    expected = (
        None if shape is None else (*shape[:at], made.shape[at] if made.ndim > at else 0, *shape[at + 1 :], n_numbers)
    )
    if made.ndim < 2 or made.shape[-1] != n_numbers or expected not in (None, made.shape):
        of_frames = ["n", str(n_numbers)]
        if shape is not None:
            of_frames = ["n" if i == at else str(n) for i, n in enumerate(shape)] + of_frames[1:]
        raise ValueError(
            f"partials: shape {made.shape}; accepted: ({', '.join(of_frames)}), with any number n of slices, as "
            f"from lsm.{function}"
        )
    number = None if n_classes is None else _check.as_int(n_classes)
    if number is None and n_classes is not None:
        raise TypeError(f"n_classes: {n_classes!r}; accepted: an int, or None to use the number in the partials")
    p = np.array(made, np.float64, order="C")
    counts = p[..., -1].sum(axis=at)
    if not counts.size:
        return p, number or 0
    wrong = counts < n_least if number is None else counts != number
    if not (counts >= n_least).all() or wrong.any():
        place = np.unravel_index(int((wrong | ~(counts >= n_least)).argmax()), counts.shape)
        where = f" in the frame {[int(i) for i in place]}" if place else ""
        accepted = f"{number}, the value of n_classes" if number is not None else f"at least {n_least}, as in the part"
        raise ValueError(
            f"partials: count {counts[place]:g} classes{where}; accepted: {accepted}; is a part of the frame missing, "
            "or given twice?"
        )
    return p, int(counts.max())
