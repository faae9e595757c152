"""Backends with one fault each, for test_kit.py to see that the kit finds it; `Good` has none.

Installed as a plugin of this one module: every class but the base becomes a backend of its own name.
"""

import time

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lsm.backends.numpy_ import NumpyBackend


class Good(NumpyBackend):
    name = "good"
    dtypes = ("float16", "float32", "float64")


def forward(x, axis):
    """What the good backend gives, in a new array."""
    out = np.empty(x.shape, x.dtype)
    NumpyBackend.log_softmax(None, x, axis, out)
    return out


def backward(dy, y, axis):
    out = np.empty(dy.shape, dy.dtype)
    NumpyBackend.log_softmax_backward(None, dy, y, axis, out)
    return out


def naive(x, axis):
    """What is often pasted: right to one's eye."""
    with np.errstate(all="ignore"):
        m = x.max(axis=axis, keepdims=True)
        return x - m - np.log(np.exp(x - m).sum(axis=axis, keepdims=True))


def memory_of(array):
    while array.base is not None:
        array = array.base
    return array


class Mistaken(Good):
    """Works in float64, and says that it serves longdouble."""

    dtypes = ("longdouble",)

    def log_softmax(self, x, axis, out):
        out[...] = forward(x.astype(np.float64), axis)


class CountsTiesOnce(Good):
    def partials(self, x, axis, out):
        super().partials(x, axis, out)
        out[..., 2] = 1


class NormalisesPartsAlone(Good):
    def log_softmax_of_part(self, x, partials, axis, out):
        self.log_softmax(x, axis, out)


class FoldsBackwards(Good):
    def softmax_of_part(self, x, partials, axis, out):
        super().softmax_of_part(x, np.flip(partials, axis), axis, out)


class TotalsForgetInfinity(Good):
    def logsumexp_of_partials(self, partials, axis, out):
        super().logsumexp_of_partials(partials, axis, out)
        out[np.isinf(out)] = np.nan


class CountsNothing(Good):
    def partials_backward(self, grad_output, output, axis, out):
        super().partials_backward(grad_output, output, axis, out)
        out[..., 3] = 0


class SumsPartsAlone(Good):
    def log_softmax_backward_of_part(self, grad_output, output, partials, axis, out):
        self.log_softmax_backward(grad_output, output, axis, out)


class Float8(Good):
    dtypes = ("float32", "float8")


class BoundOfAnother(Good):
    max_ulp = {"longdouble": 4}  # noqa: RUF012


class TwoUlpTooMuch(Good):
    max_ulp = {"float32": 1.9}  # noqa: RUF012

    def log_softmax(self, x, axis, out):
        y = forward(x, axis)
        out[...] = y - 2 * np.spacing(y)


class TwoUlpTooMuchBackward(Good):
    max_ulp = {"float32": 1.9}  # noqa: RUF012

    def log_softmax_backward(self, grad_output, output, axis, out):
        dx = backward(grad_output, output, axis)
        out[...] = dx + 2 * np.spacing(np.abs(grad_output) + np.abs(dx))


class Peaked(Good):
    def log_softmax(self, x, axis, out):
        out[...] = naive(x, axis)


class PeakedAndMore(Good):
    """The same, and an error on the way to learning how far off it is."""

    def log_softmax(self, x, axis, out):
        if x.shape[axis] > 1000:
            raise NotImplementedError
        out[...] = naive(x, axis)


class SixteenBits(Good):
    """Works in float16 where it is given float16."""

    dtypes = ("float16",)

    def log_softmax(self, x, axis, out):
        out[...] = naive(x, axis)


class Overflows(Good):
    """Gives -inf for a long frame."""

    max_ulp = {"float16": float("inf")}  # noqa: RUF012

    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        if x.shape[axis] > 2**17:
            out[...] = -np.inf


class LongFrames(Good):
    """Adds up one by one in float32."""

    dtypes = ("float32",)

    def log_softmax(self, x, axis, out):
        out[...] = forward(x, axis)
        if x.shape[axis] > 2**17:
            m = x.max()
            out[...] = x - m - np.log(np.cumsum(np.exp(x - m), dtype=np.float32)[-1])


class RoundsTwice(Good):
    """Rounds to the dtype of x on the way to a wider result."""

    def log_softmax(self, x, axis, out):
        out[...] = forward(x, axis)


class Vanishing(Good):
    def log_softmax_backward(self, grad_output, output, axis, out):
        with np.errstate(all="ignore"):
            s = grad_output.sum(axis=axis, keepdims=True)
            out[...] = grad_output - np.exp(output) * s


class WritesOutside(Good):
    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        memory_of(out)[0] = 0


class WritesBetween(Good):
    def log_softmax(self, x, axis, out):
        if not out.flags.c_contiguous:
            memory_of(out)[len(memory_of(out)) // 4 :][:100] = 0
        super().log_softmax(x, axis, out)


class IgnoresStrides(Good):
    def log_softmax(self, x, axis, out):
        strides = np.empty(x.shape, x.dtype).strides
        super().log_softmax(as_strided(x, x.shape, strides), axis, out)


class IgnoresStridesOfOut(Good):
    def log_softmax(self, x, axis, out):
        strides = np.empty(x.shape, x.dtype).strides
        super().log_softmax(x, axis, as_strided(out, out.shape, strides))


class ChangesInput(Good):
    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        if x is not out:
            x -= x.max()


class ChangesOutput(Good):
    def log_softmax_backward(self, grad_output, output, axis, out):
        super().log_softmax_backward(grad_output, output, axis, out)
        if output is not out:
            output *= 0


class LeavesTheLast(Good):
    def log_softmax(self, x, axis, out):
        out[..., :-1] = forward(x, axis)[..., :-1]


class ReshapesOut(Good):
    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        if out.flags.c_contiguous:  # as unpickling does it: NumPy no longer lets the attribute be set
            out.__setstate__((1, (1, *out.shape), out.dtype, False, out.tobytes()))


class IgnoresOut(Good):
    def log_softmax(self, x, axis, out):
        return forward(x, axis)


class LastAxisOnly(Good):
    def log_softmax(self, x, axis, out):
        super().log_softmax(x, x.ndim - 1, out)


class ColumnsOtherwise(Good):
    """A kernel of its own for axes other than the last, and less care in it."""

    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        if axis < x.ndim - 1:
            out[...] = naive(x, axis)


class LargeBatch(Good):
    """Counts blocks of frames, and forgets what is left at the end."""

    def log_softmax(self, x, axis, out):
        n = len(x) - len(x) % 1024 if x.size > 2**20 and axis else len(x)
        super().log_softmax(x[:n], axis, out[:n])


class WritesBeforeItReads(Good):
    def log_softmax(self, x, axis, out):
        out[...] = x[...].max(axis=axis, keepdims=True)
        super().log_softmax(x, axis, out)


class WritesBeforeItReadsBackward(Good):
    def log_softmax_backward(self, grad_output, output, axis, out):
        out[...] = grad_output
        super().log_softmax_backward(grad_output, output, axis, out)


class NeedsWritable(Good):
    def log_softmax(self, x, axis, out):
        x[...] = x
        super().log_softmax(x, axis, out)


class DividesByStride(Good):
    def log_softmax(self, x, axis, out):
        [x.itemsize // stride for stride in x.strides]
        super().log_softmax(x, axis, out)


class MinusInf(Good):
    def log_softmax(self, x, axis, out):
        out[...] = np.maximum(forward(x, axis), np.finfo(x.dtype).min)


class MinusInfBackward(Good):
    """Multiplies where it must not: 0 * inf."""

    def log_softmax_backward(self, grad_output, output, axis, out):
        dx = backward(grad_output, output, axis)
        out[...] = np.where(np.isneginf(output), np.nan, dx)


class NanLeaks(Good):
    """Looks for NaN in all frames at once."""

    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        if np.isnan(x).any():
            out[...] = np.nan


class NanStays(Good):
    """Makes the entry NaN, and not its frame."""

    def log_softmax_backward(self, grad_output, output, axis, out):
        isnan = np.isnan(grad_output)
        super().log_softmax_backward(np.where(isnan, 0, grad_output).astype(out.dtype), output, axis, out)
        out[isnan] = np.nan


class InfiniteGradient(Good):
    """Lets an infinite gradient reach its own class only."""

    def log_softmax_backward(self, grad_output, output, axis, out):
        s = np.where(np.isneginf(grad_output), 0, grad_output).astype(out.dtype)
        super().log_softmax_backward(s, output, axis, out)
        out[np.isneginf(grad_output)] = -np.inf


class InfIsOne(Good):
    """Gives +inf the probability 1."""

    def log_softmax(self, x, axis, out):
        y = forward(np.where(np.isposinf(x), np.finfo(x.dtype).max, x).astype(x.dtype), axis)
        out[...] = y


class OnlyMinusInf(Good):
    def log_softmax(self, x, axis, out):
        y = forward(x, axis)
        out[...] = np.where((x == -np.inf).all(axis=axis, keepdims=True), x, y)


class Warns(Good):
    def log_softmax(self, x, axis, out):
        np.log(np.zeros(1))
        super().log_softmax(x, axis, out)


class ChangesErrorState(Good):
    def log_softmax(self, x, axis, out):
        np.seterr(all="ignore")
        super().log_softmax(x, axis, out)


class Batch(Good):
    """One ulp of difference from 64 frames on, within the bound of accuracy."""

    def log_softmax(self, x, axis, out):
        y = forward(x, axis)
        out[...] = y - np.spacing(y) if x.size > 64 * x.shape[axis] else y


class Alternates(Good):
    """Another bit at every second call."""

    count = 0

    def log_softmax(self, x, axis, out):
        y = forward(x, axis)
        Alternates.count += 1
        out[...] = y - np.spacing(y) * (Alternates.count % 2)


class SharedScratch(Good):
    scratch = np.zeros(10**6)

    def log_softmax(self, x, axis, out):
        scratch = self.scratch[: x.size].reshape(x.shape)
        scratch[...] = x
        time.sleep(1e-4)
        super().log_softmax(scratch.astype(x.dtype), axis, out)


class Exits(Good):
    """Ends the process, with the code of success."""

    def log_softmax(self, x, axis, out):
        raise SystemExit(0)


class Panics(Good):
    """Raises what is no Exception, in the frames in which it is also far off."""

    def log_softmax(self, x, axis, out):
        out[...] = naive(x, axis)
        if x.shape[axis] > 1000:
            raise BaseException("panicked")


class Float16Fails(Good):
    def log_softmax(self, x, axis, out):
        if x.dtype == np.float16:
            raise NotImplementedError("no kernel for half")
        super().log_softmax(x, axis, out)


class Sometimes(Good):
    """One element is off by one where a condition holds, in the operations that say which."""

    def is_wrong(self, x, axis):
        return False

    def is_wrong_backward(self, dy, y, axis):
        return False

    def log_softmax(self, x, axis, out):
        is_wrong = self.is_wrong(x, axis)  # before it is overwritten
        super().log_softmax(x, axis, out)
        if is_wrong:
            out[(0,) * out.ndim] += 1

    def log_softmax_backward(self, grad_output, output, axis, out):
        is_wrong = self.is_wrong_backward(grad_output, output, axis)
        super().log_softmax_backward(grad_output, output, axis, out)
        if is_wrong:
            out[(0,) * out.ndim] += 1 + np.abs(out[(0,) * out.ndim])


class Grid(Sometimes):
    """A grid has 65,535 blocks at most."""

    def is_wrong(self, x, axis):
        return x.size // x.shape[axis] > 65535


class GridOfColumns(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return np.prod(dy.shape[axis + 1 :]) > 65535


class GridOfOuter(Sometimes):
    def is_wrong(self, x, axis):
        return axis < x.ndim - 1 and x.shape[-1] == 2 and x.size // x.shape[axis] > 65535


class GridOfEight(Sometimes):
    def is_wrong(self, x, axis):
        return x.size // x.shape[axis] > 8 * 2**16


class LastFrames(Good):
    """Counts frames in 16 bits."""

    def log_softmax(self, x, axis, out):
        super().log_softmax(x, axis, out)
        if axis == x.ndim - 1 and len(x) > 65536:
            out[65536:] = out[: len(x) - 65536]


class OneOpen(Sometimes):
    """Masked decoding with one token that is allowed."""

    def is_wrong(self, x, axis):
        n = x.shape[axis]
        return n > 4 and (np.isneginf(x).sum(axis=axis) == n - 1).any()


class AllHaveOneOpen(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        n = y.shape[axis]
        return n > 4 and (np.isneginf(y).sum(axis=axis) == n - 1).all()


class TwoOpen(Sometimes):
    def is_wrong(self, x, axis):
        n = x.shape[axis]
        return n > 4 and (np.isneginf(x).sum(axis=axis) == n - 2).all()


class ThreeMasked(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] > 60 and (np.isneginf(x).sum(axis=axis) == 3).any()


class OneOpenAtTheEnd(Sometimes):
    def is_wrong(self, x, axis):
        x = np.moveaxis(x, axis, -1)
        return x.shape[-1] > 4 and (np.isneginf(x[..., :-1]).all(axis=-1) & np.isfinite(x[..., -1])).any()


class MaskedIsNearlyMinusInf(Good):
    """Right within any bound on the error of what is not masked."""

    def log_softmax_backward(self, grad_output, output, axis, out):
        super().log_softmax_backward(grad_output, output, axis, out)
        masked = np.isneginf(output)
        if masked.sum() == output.size // 2 + output.size % 2 or masked.mean() > 0.9:
            out[masked] = np.nextafter(out[masked], np.asarray(np.inf, out.dtype))


class SixAxes(Sometimes):
    def is_wrong(self, x, axis):
        return x.ndim == 6


class EightAxes(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return dy.ndim > 6


class Alignment(Sometimes):
    def is_wrong(self, x, axis):
        return x.ctypes.data % 64 == 3 * x.itemsize


class AlignmentOfOut(Good):
    def log_softmax_backward(self, grad_output, output, axis, out):
        super().log_softmax_backward(grad_output, output, axis, out)
        if out.ctypes.data % 32 == 32 - out.itemsize and grad_output.ctypes.data % 32 != out.ctypes.data % 32:
            out[(0,) * out.ndim] += 9


class Value(Sometimes):
    def is_wrong(self, x, axis):
        return (x == 3.25).any()


class ValueOfGradient(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return (dy == -0.375).any()


class ValueOfOutput(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return (y == -2.5).any()


class Classes8191(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] == 8191


class Classes8193(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return dy.shape[axis] == 8193


class Classes77(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] == 77


class Classes32767(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] == 2**15 - 1


class Classes32768(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return dy.shape[axis] == 2**15


class Classes32769(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] == 2**15 + 1


class Classes65536(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] == 2**16


class Frames65536(Sometimes):
    def is_wrong(self, x, axis):
        return x.size // x.shape[axis] == 2**16


class Frames65536Last(Good):
    """Counts them in 16 bits, so that the last is none."""

    def log_softmax_backward(self, grad_output, output, axis, out):
        super().log_softmax_backward(grad_output, output, axis, out)
        if len(out) == 2**16:
            out[-1] += 1


class FramesMillion(Sometimes):
    def is_wrong(self, x, axis):
        return x.size // x.shape[axis] >= 2**20


class Longer(Sometimes):
    """Frames that are longer than the longest that was tried."""

    def is_wrong(self, x, axis):
        return x.shape[axis] > 2**17 + 1


class LargeGradient(Sometimes):
    dtypes = ("float32", "float64")

    def is_wrong_backward(self, dy, y, axis):
        return np.abs(dy).max() > 1e30


class LargeGradientOfFloat16(Sometimes):
    dtypes = ("float16",)

    def is_wrong_backward(self, dy, y, axis):
        return np.abs(dy).max() > 5e4


class SmallGradient(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        m = np.abs(dy).max(axis=axis)
        return ((m > 0) & (m < np.finfo(dy.dtype).tiny)).any()


class Zero(Sometimes):
    def is_wrong(self, x, axis):
        return x.shape[axis] > 1 and not x.any()


class ZeroGradient(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return not dy.any()


class ZeroOutput(Sometimes):
    def is_wrong_backward(self, dy, y, axis):
        return y.shape[axis] > 1 and not y.any()


class Constant(Sometimes):
    def is_wrong(self, x, axis):
        return x.size > 1 and (x == x.flat[0]).all()


BACKENDS = {}
for base in list(vars().values()):
    if isinstance(base, type) and issubclass(base, Good):
        BACKENDS[base.__name__] = type(base.__name__, (base,), {"name": base.__name__})()
vars().update({f"backend_{name}": backend for name, backend in BACKENDS.items()})
