"""Dask arrays with the classes in several chunks: the partials of each chunk, gathered by frame, then the results.

The partials are tiny, 32 bytes for a slice of 16,384 classes, so no tree of tasks is needed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array
import numpy as np

from lsm import _check
from lsm._decide import Request
from lsm._dispatch import name_elsewhere
from lsm._errors import BackendUnsupportedError
from lsm._operations import PARTIALS, PARTIALS_BACKWARD
from lsm._parts import N_NUMBERS
from lsm._targets import kind
from lsm.engines import IN_PARTS
from lsm.engines._dask_arrays import UNKNOWN, Argument, as_dask, items_of, lazy_array
from lsm.engines._dask_tasks import build_of, compute_chunk

_OF_PARTIALS = {"axis", "temperature", "where", "dtype", "backend"}  # keywords of `lsm.partials`


def is_in_parts(function: str, arguments: dict[str, Argument], options: dict[str, Any], axes: tuple[int, ...]) -> bool:
    """Whether the classes of the first argument are in several chunks, and the function supports that."""
    x = next(iter(arguments.values()))
    if function not in IN_PARTS or len(axes) != 1 or "b" in arguments | options:
        return False
    if not isinstance(x.array, dask.array.Array) or not _is_simple_loss(arguments, options):
        return False
    if function == "log_softmax_backward" and {"where", "temperature"} & (arguments | options).keys():
        return False
    return x.shape[axes[0]] != UNKNOWN and x.array.numblocks[axes[0]] > 1


def _is_simple_loss(arguments: dict[str, Argument], options: dict[str, Any]) -> bool:
    """Whether a loss, if this is one, is that of labels, without weights or other options that need more sums."""
    is_extra = "weight" in arguments or any(options.get(name, 0) != 0 for name in ("label_smoothing", "z_loss"))
    return "targets" not in arguments or (kind(arguments["targets"]) == "integer" and not is_extra)


def describe_parts(x: Any, decision: Any) -> str:
    """The text of `lsm.explain` on classes in several chunks along the last axis, after the number of chunks."""
    if np.isnan(x.shape[-1]):
        return "; the number of classes is not known"
    if decision.backend is None:
        return ""
    n_slice = decision.backend.slice_classes["float64" if "float64" in decision.dtype else decision.dtype.split()[0]]
    how = f"; classes in {x.numblocks[-1]}: partials, then written; borders "
    if (np.cumsum(x.chunks[-1][:-1]) % n_slice == 0).all():
        return f"{how}at multiples of {n_slice:,}: the bits of the whole"
    return f"{how}not all at multiples of {n_slice:,}, as rechunk({{-1: {2 * n_slice}}}) has them: within the bounds"


def reduction_for(function: str) -> str:
    """The function that reduces a chunk to partials."""
    return PARTIALS_BACKWARD if function in (PARTIALS_BACKWARD, "log_softmax_backward") else PARTIALS


class ClassChunks:
    """A call on a dask array with the classes in several chunks.

    Parameters
    ----------
    function : str
        The function.
    arguments : dict of str to Argument
        The arrays by their parameters, the logits first.
    axis : int
        The axis of the classes.
    options : dict
        The other keywords.
    dtypes : tuple of str
        The compute dtype of the logits, and the dtype of the result.

    Raises
    ------
    ValueError
        The number of classes is not known.
    LsmError
        No backend has partials for these dtypes, or the requested one has none.
    """

    def __init__(
        self,
        function: str,
        arguments: dict[str, Argument],
        axis: int,
        options: dict[str, Any],
        dtypes: tuple[str, ...],
    ) -> None:
        name, x = next(iter(arguments.items()))
        if x.shape[axis] == UNKNOWN:
            raise ValueError(f"{name}: the number of classes is not known; call {name}.compute_chunk_sizes()")
        self._reduction = reduction_for(function)
        request = Request(_check.NUMPY, "cpu", dtypes, self._reduction)
        try:
            named, backend = name_elsewhere(request, options.get("backend"))
        except BackendUnsupportedError as error:
            raise type(error)(f"{error}; or pass {name}.rechunk({{{axis}: -1}})") from None
        self._x = x._replace(array=as_dask(x, {}))
        self._name = name
        self._function, self._at, self._n = function, axis, x.ndim - (name == "partials")
        self._options, self._build = options | {"backend": named}, build_of(backend)
        self._own, self._n_classes = dtypes[0], {"n_classes": x.shape[axis]}
        self._slice_classes = backend.slice_classes["float64" if "float64" in dtypes else dtypes[0]]
        chunks = dict(enumerate(self._x.array.chunks))
        self._arrays = {key: self._cut(argument, chunks) for key, argument in arguments.items() if key != name}
        self._patterns = {key: argument.pattern for key, argument in arguments.items() if key != name}
        self._all = tuple(range(self._n))

    def _cut(self, argument: Argument, chunks: dict[int, Any]) -> Any:
        """An array in chunks that match those of the logits."""
        array = as_dask(argument, chunks)
        along = {i: chunks[self._at] for i, number in enumerate(argument.pattern) if number == self._at}
        return array.rechunk({i: chunk for i, chunk in along.items() if array.shape[i] != 1})

    def partials(self) -> Any:
        """The partials, in the chunks of the logits."""
        slices = tuple([-(-n // self._slice_classes) for n in self._x.array.chunks[self._at]])
        names = [name for name in ("output", "where", "temperature") if name in self._arrays]
        passed = _OF_PARTIALS - ({"dtype"} if self._function == "cross_entropy" else set())  # used for the loss
        first = "x" if self._reduction == PARTIALS else self._name
        options = {name: value for name, value in self._options.items() if name in passed}
        last = 2 * self._n + 1
        more = {"new_axes": {last: N_NUMBERS[self._reduction]}, "adjust_chunks": {self._at: slices}}
        operands = self._operands(names)
        index = (*self._all, last)
        return self._lazy(self._reduction, (first, *names), options, index, operands, np.float64, **more)

    def results(self, like: tuple[Any, ...], partials: Any = None) -> tuple[Any, ...]:
        """The lazy results; `like` are arrays of their dtypes, and `partials` those of the whole frames, if given."""
        if partials is None:
            partials = self.partials()
        else:
            given = Argument(partials, np.shape(partials), (*self._all, 2 * self._n + 1))
            partials = as_dask(
                given, {i: n for i, n in enumerate(self._x.array.chunks) if i not in (self._at, self._n)}
            )
            self._n_classes = {}  # if any, those of the options
        whole = partials.rechunk({self._at: -1, self._n: -1})
        make = {"logsumexp": self._logsumexp, "take_log_softmax": self._take, "top_k_log_softmax": self._top_k}
        make["cross_entropy"] = self._loss
        return make.get(self._function, self._map)(like, whole)

    def _map(self, like: tuple[Any, ...], whole: Any) -> tuple[Any, ...]:
        names = [name for name in ("output", "where", "temperature") if name in self._arrays]
        operands = [*self._operands(names), whole, self._pattern_of_whole()]
        options = self._options | self._n_classes
        return (
            self._lazy(self._function, [self._name, *names, "partials"], options, self._all, operands, like[0].dtype),
        )

    def _logsumexp(self, like: tuple[Any, ...], whole: Any) -> tuple[Any, ...]:
        options = {name: value for name, value in self._options.items() if name != "where"} | self._n_classes
        options["dtype"] = _check.dtype_name(like[0].dtype)
        keeps = options.get("keepdims", False)
        kept = tuple([self._n + i if i == self._at else i for i in self._all])
        index = kept if keeps else tuple([i for i in self._all if i != self._at])
        more = {"new_axes": {self._n + self._at: 1}} if keeps else {}
        operands = [whole, self._pattern_of_whole()]
        made = self._lazy("logsumexp", ["partials"], options, index, operands, like[0].dtype, **more)
        return (made,) if len(like) == 1 else items_of(made, index, like, self._function)

    def _take(self, like: tuple[Any, ...], whole: Any) -> tuple[Any, ...]:
        """From each chunk, the values of its own classes and -inf for others; then the maximum over the chunks."""
        has_several = self._n + self._at in self._patterns["indices"]
        index = tuple([self._n + i if i == self._at else i for i in self._all if has_several or i != self._at])
        return self._at_places("indices", index, "largest_of_parts", like, whole)

    def _loss(self, like: tuple[Any, ...], whole: Any) -> tuple[Any, ...]:
        """From each chunk, the losses of its own labels and 0 for others; then the sum over the chunks."""
        index = tuple([i for i in self._all if i != self._at])
        return self._at_places("targets", index, "sum_of_parts", like, whole)

    def _at_places(
        self, places: str, index: tuple[int, ...], joined: str, like: tuple[Any, ...], whole: Any
    ) -> tuple[Any, ...]:
        """One number from each chunk for each selected class or label; then these numbers, combined by `joined`."""
        names = [name for name in (places, "where", "temperature") if name in self._arrays]
        operands = [*self._operands(names), *self._numbers(), whole, self._pattern_of_whole()]
        ones = {self._at: (1,) * self._x.array.numblocks[self._at]}
        made = self._lazy(
            "of_classes_of_chunk",
            [self._name, *names, "numbers", "partials"],
            self._options | self._n_classes | {"function": self._function},
            (*index, self._at),
            operands,
            like[0].dtype,
            adjust_chunks=ones,
        )
        operands = [made, (*index, self._at)]
        return (self._lazy(joined, ["y"], {}, index, operands, like[0].dtype),)

    def _top_k(self, like: tuple[Any, ...], whole: Any) -> tuple[Any, ...]:
        """The largest logits of each chunk; then the largest of these, and their log-softmax."""
        k, at = int(self._options["k"]), self._at
        names = ["where"] if "where" in self._arrays else []
        sizes = {at: tuple([min(k, n) for n in self._x.array.chunks[at]])}
        options = {name: value for name, value in self._options.items() if name in ("k", "axis", "where", "backend")}
        names, operands = ["x", *names, "numbers"], [*self._operands(names), *self._numbers()]
        own = _check.np_dtype(self._own)
        best = self._lazy("best_of_chunk", names, options, self._all, operands, own, adjust_chunks=sizes)
        values, numbers = items_of(best, self._all, (np.empty(0, own), np.empty(0, np.int64)), "best")
        index = tuple([self._n + i if i == at else i for i in self._all])
        operands = [values, self._all, numbers, self._all, whole, self._pattern_of_whole()]
        names = ["values", "numbers", "partials"]
        if "temperature" in self._arrays:  # with length 1 along the classes, not to be repeated for each chunk
            pattern = [3 * self._n if number == at else number for number in self._patterns["temperature"]]
            operands += [self._arrays["temperature"], tuple(pattern)]
            names.append("temperature")
        options = {name: value for name, value in self._options.items() if name != "where"} | self._n_classes
        more = {"new_axes": {self._n + at: k}}
        made = self._lazy("best_of_parts", names, options, index, operands, like[0].dtype, **more)
        return items_of(made, index, like, self._function)

    def _operands(self, names: Sequence[str]) -> list[Any]:
        operands = [self._x.array, self._all]
        for name in names:
            operands += [self._arrays[name], self._patterns[name]]
        return operands

    def _numbers(self) -> list[Any]:
        """The indices of the classes, in the chunks of the classes."""
        chunks = self._x.array.chunks[self._at]
        return [dask.array.arange(sum(chunks), chunks=(chunks,), dtype=np.int64), (self._at,)]

    def _pattern_of_whole(self) -> tuple[int, ...]:
        return (*[3 * self._n + 1 if i == self._at else i for i in self._all], 2 * self._n + 1)

    def _lazy(
        self, task: str, names: Any, options: dict[str, Any], index: Any, operands: Any, dtype: Any, **more: Any
    ) -> Any:
        call = partial(compute_chunk, task, tuple(names), options | {"backend": self._options["backend"]}, self._build)
        return lazy_array(call, index, operands, dtype, f"lsm-{task}", concatenate=True, **more)
