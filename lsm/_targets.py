"""Checks of the targets, indices of classes and weights that go with the logits of a call."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from lsm import _check
from lsm._arithmetic import compute
from lsm._frames import Frames
from lsm._interop import NUMPY_LIBRARY, check_alike, library_of
from lsm._interop_base import ArrayLibrary
from lsm._logits import Logits, widened


def one_axis(axis: Any, ndim: int, what: str) -> None:
    """Raise TypeError unless this is one axis, or None for the only one."""
    if isinstance(axis, (tuple, list)) or (axis is None and ndim > 1):
        raise TypeError(f"axis: {axis!r}; accepted: one int, since {what} refer to one axis; reshape the logits")


def operand(array: Any, name: str, logits: Logits) -> Any:
    """An argument of the library and on the device of the logits, as an ndarray of any dtype."""
    other = library_of(array)
    made = NUMPY_LIBRARY.as_ndarray(array, name) if other is NUMPY_LIBRARY else other.validate(array, name).array
    check_alike(logits.library, other, logits.array, made, (logits.name, name))
    return made if other is NUMPY_LIBRARY else logits.library.view_as_numpy(made, name)


def kind(array: Any) -> str:
    """'integer', 'floating' or 'other'."""
    if array.dtype.kind in "iu":
        return "integer"
    return "floating" if _check.dtype_name(array.dtype) in _check.DTYPES else "other"


def integers(array: Any, name: str, logits: Logits) -> Any:
    """Integers, as an ndarray of any integer dtype."""
    made = operand(array, name, logits)
    if not made.size and isinstance(array, (list, tuple)):  # NumPy makes these float64
        return made.astype(np.int64)
    if kind(made) != "integer":
        raise TypeError(
            f"{name}: dtype {_check.dtype_name(made.dtype)}; accepted: integers, not bool; pass {_ACCEPTED[name]}"
        )
    return made


_ACCEPTED = {
    "indices": "indices of classes, converted to int64",
    "targets": "indices of classes, or probabilities of the dtype of the logits",
}
_REMEDIES = {
    "indices": "pass {}.where(indices < 0, 0, indices) for padding, and drop those results",
    "targets": "pass ignore_index= to leave frames out",
}


def in_range(
    numbers: Any,
    name: str,
    n_classes: int,
    ignored: int | None = None,
    start: Sequence[int] = (),
    library: ArrayLibrary = NUMPY_LIBRARY,
) -> Any:
    """The numbers as a new int64 array in C order, with -1 for ignored ones; `start` is the index of this part of them.

    Messages have the remedy for arrays of `library`.

    Raises
    ------
    IndexError
        A number is outside of 0..n_classes - 1.
    """
    bad = (numbers < 0) | (numbers >= n_classes)
    left_out = None if ignored is None else numbers == ignored
    if left_out is not None:
        bad &= ~left_out
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        at = [int(i) + first for i, first in zip_longest(place, start, fillvalue=0)]
        where = f" at {at}" if place else ""
        accepted = f"0 to {n_classes - 1}" if n_classes else "none, there are no classes"
        remedy = _REMEDIES[name].format(library.converter.rpartition(".")[0] or "numpy")
        raise IndexError(f"{name}: {int(numbers[place])}{where}; accepted: {accepted}; {remedy}")
    made = np.array(numbers, np.int64, order="C")
    if left_out is not None:
        made[left_out] = -1
    return made


def indices_for(indices: Any, logits: Logits, n_classes: int | None = None) -> tuple[Any, tuple[int, ...]]:
    """The indices of `take_log_softmax`, with the rank of the logits, and the shape of the result.

    n_classes: of whole frames, if the logits are a part of them.

    Indices with the shape of the frames are one for each frame. Indices with the rank of the logits are several, with
    any length along the axis, and elsewhere the length of the logits or 1.
    """
    made, frames = integers(indices, "indices", logits), logits.frames
    shape = shape_of_taken(made.shape, logits.values.shape, frames)
    n_classes = frames.n_classes if n_classes is None else n_classes
    made = in_range(made, "indices", n_classes, library=logits.library)
    if shape == frames.shape:
        return made.reshape((*shape[: frames.at], 1, *shape[frames.at :])), shape
    return np.broadcast_to(made, shape), shape


def shape_of_taken(indices: tuple[int, ...], shape: tuple[int, ...], frames: Frames) -> tuple[int, ...]:
    """The shape of the result of `take_log_softmax`, from those of indices and logits; raises ValueError."""
    if indices == frames.shape:
        return frames.shape
    if len(indices) == len(shape) > len(frames.shape):
        expected = (*frames.shape[: frames.at], indices[frames.at], *frames.shape[frames.at :])
        if all(n in (1, m) for n, m in zip(indices, expected, strict=True)):
            return expected
    several = ["n" if i == frames.at else str(n) for i, n in enumerate(shape)]
    raise ValueError(
        f"indices: shape {indices}; accepted for x of shape {shape}: {frames.shape}, one class per frame, or "
        f"({', '.join(several)}{',' if len(several) == 1 else ''}) with any n, several"
    )


def weights_for(weight: Any, logits: Logits) -> Any:
    """One weight for each class in the dtype in which losses are computed; None if all are 1."""
    if weight is None:
        return None
    made = operand(weight, "weight", logits)
    if kind(made) == "other":
        raise TypeError(
            f"weight: dtype {_check.dtype_name(made.dtype)}; accepted: {', '.join(_check.DTYPES)}, integers"
        )
    if made.shape != (logits.frames.n_classes,):
        raise ValueError(f"weight: shape {made.shape}; accepted: {(logits.frames.n_classes,)}, one weight per class")
    return compute(widened, made, logits.wide)  # longdouble may overflow


def targets_for(targets: Any, logits: Logits, axis: Any, ignore_index: Any, n_classes: int | None = None) -> Any:
    """Targets: int64 in the shape of the frames, -1 for those to ignore; or probabilities in the shape of the logits.

    n_classes: of whole frames, if the logits are a part of them.

    Raises
    ------
    TypeError
        The targets are neither integers nor of a floating dtype; `ignore_index` is given with probabilities, or several
        axes with integers.
    ValueError
        The targets have another shape.
    IndexError
        A target is neither the index of a class nor `ignore_index`.
    """
    frames, shape = logits.frames, logits.values.shape
    ignored = None if ignore_index is None else _check.as_int(ignore_index)
    if ignored is None and ignore_index is not None:
        raise TypeError(f"ignore_index: {ignore_index!r}; accepted: an int, or None to ignore nothing")
    made = operand(targets, "targets", logits)
    if kind(made) == "floating" and (made.size or not isinstance(targets, (list, tuple)) or made.shape == shape):
        if ignore_index is not None:
            raise TypeError(
                f"ignore_index: {ignore_index!r}, with probabilities as targets; accepted: None; a frame of zeros adds "
                "nothing to the loss"
            )
        check_shape_of_targets(made, shape, frames, logits.name)
        return made
    made = integers(targets, "targets", logits)
    one_axis(axis, logits.values.ndim, "targets that are integers")
    check_shape_of_targets(made, shape, frames, logits.name)
    return in_range(made, "targets", frames.n_classes if n_classes is None else n_classes, ignored)


def check_shape_of_targets(targets: Any, shape: tuple[int, ...], frames: Frames, name: str) -> None:
    """Raise ValueError unless targets have the shape of the logits if they are probabilities, else of the frames."""
    if kind(targets) == "floating":
        if targets.shape != shape:
            expected = f"{shape}, the shape of {name}, for probabilities; {frames.shape} for integers"
            raise ValueError(f"targets: shape {targets.shape} of dtype {targets.dtype}; accepted: {expected}")
    elif targets.shape != frames.shape:
        expected = f"{frames.shape}, the shape of the frames; probabilities of shape {shape} have a floating dtype"
        raise ValueError(f"targets: shape {targets.shape}; accepted: {expected}")


def number(value: Any, name: str, largest: float) -> float:
    """A finite number from 0 to `largest`."""
    try:
        made = float(value)
    except (TypeError, ValueError, OverflowError):
        made = -1.0
    if isinstance(value, (str, bytes)) or not (0 <= made <= largest and made < float("inf")):
        accepted = f"from 0 to {largest:g}" if largest < float("inf") else "of at least 0"
        raise ValueError(f"{name}: {value!r}; accepted: a finite number {accepted}")
    return made
