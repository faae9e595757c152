"""A call of a public function: check the arguments, call the backend, return the caller's type of array."""

from typing import Any, NamedTuple

from lsm import _check
from lsm._decide import Request
from lsm._dispatch import DispatchEntry, find_entry
from lsm._errors import BackendUnsupportedError
from lsm._execute import Execution
from lsm._fastpath import fast_functions
from lsm._interop import NUMPY_LIBRARY, check_alike, cupy_library, engine_for, library_of
from lsm._interop_base import ArrayLibrary
from lsm._operations import Operation


def call(
    operation: Operation,
    arguments: tuple[Any, ...],
    axis: Any,
    out: Any,
    dtype: Any = None,
    backend: Any = None,
    keepdims: bool = False,
    where: Any = None,
    temperature: Any = 1.0,
    b: Any = None,
    return_sign: bool = False,
) -> Any:
    """Execute a call of a public function, with arguments of any type, directly or through an engine.

    With b and `return_sign`, the result is a pair; from an engine, also without b.
    """
    library = library_of(arguments[0])
    is_plain = where is None and b is None and type(temperature) in (float, int) and temperature == 1
    if library.has_fast_path and is_plain and dtype is None and not keepdims:
        function = getattr(fast_functions(library.fast_key(arguments[0]), backend), operation.name, None)
        if function is not None and (len(arguments) == 1 or library_of(arguments[1]) is library):
            result = library.call_fast_function(operation, function, arguments, axis, out)
            if result is not None:
                return result
    engine = engine_for(arguments)
    if engine is not None:
        options = {"axis": axis, "out": out, "dtype": dtype, "backend": backend, "keepdims": keepdims, "where": where}
        options |= {"temperature": temperature, "b": b, "return_sign": return_sign}
        return engine.serve(operation.name, dict(zip(operation.names, arguments, strict=True)), options)
    bound = Call(operation, arguments, axis, out, dtype, backend, keepdims)
    if not is_plain:
        bound.set_keywords(where, temperature, b, return_sign, dtype)
    return bound.execute(bound.select())


class Keywords(NamedTuple):
    """The keywords of a call that is not plain, as passed by the caller, except b, which is checked."""

    where: Any
    temperature: Any
    b: Any
    return_sign: bool


class Call:
    """A call with validated arguments.

    Attributes
    ----------
    operation : Operation
        The operation.
    library : ArrayLibrary
        The library of the arrays.
    arrays : tuple of array
        The inputs.
    request : Request
        The properties that determine the backend.
    axis, out, backend, keepdims
        As passed by the caller.
    keywords : Keywords or None
        None for a plain call.
    sign : array or None
        The sign of the sum, after a call with b and `return_sign`.
    """

    __slots__ = ("arrays", "axis", "backend", "keepdims", "keywords", "library", "operation", "out", "request", "sign")

    def __init__(
        self,
        operation: Operation,
        arguments: tuple[Any, ...],
        axis: Any,
        out: Any,
        dtype: Any = None,
        backend: Any = None,
        keepdims: bool = False,
    ) -> None:
        libraries = [library_of(argument) for argument in arguments]
        names = operation.names
        items = zip(libraries, arguments, names, strict=True)
        operands = [library.validate(argument, name) for library, argument, name in items]
        self.operation, self.axis, self.out, self.backend, self.keepdims = operation, axis, out, backend, keepdims
        self.library = libraries[0]
        self.arrays = tuple([operand.array for operand in operands])
        own = operands[0].dtype
        for i in range(1, len(operands)):
            pair = (names[0], names[i])
            check_alike(self.library, libraries[i], self.arrays[0], self.arrays[i], pair)
            own = _check.promoted(own, operands[i].dtype)
        dtypes = (own, self.library.result_dtype(own, dtype))
        type_name = self.library.type_name(self.arrays[0])
        self.request = Request(type_name, operands[0].device, dtypes, operation.name)
        self.keywords: Keywords | None = None
        self.sign: Any = None

    def set_keywords(self, where: Any, temperature: Any, b: Any, return_sign: bool, dtype: Any) -> None:
        """Set the keywords of a call that is not plain; b may change the dtypes."""
        if b is not None:
            from lsm._keywords import weights_of  # here and below: takes 1.4 ms, not needed for plain calls

            b, _, own = weights_of(b, self.arrays[0], self.request.dtypes[0], self.library)
            self.request = self.request._replace(dtypes=(own, self.library.result_dtype(own, dtype)))
        self.keywords = Keywords(where, temperature, b, return_sign)

    def select(self) -> DispatchEntry:
        """Find the backend, and the type of the arrays passed to it."""
        own = self.request.dtypes[0]
        return find_entry(self.request, self.backend, self.library.fast_key(self.arrays[0], own))

    def execute(self, entry: DispatchEntry) -> Any:
        """Call the backend on the arrays as they are, or on views of them as NumPy or CuPy arrays."""
        library, out = self.library, self.out
        if out is not None and library is not NUMPY_LIBRARY:
            check_out(library, out, self.arrays[0], self.request.dtypes[1])
        if entry.passed_as == _check.NUMPY:
            result = self._execute_as_numpy(entry)
        elif entry.passed_as != self.request.array_type:
            result = self._execute_as_cupy(entry)
        else:
            with library.on_device(self.arrays[0]):
                result = self._execute_as_is(entry, library, self.arrays, out)
        if out is not None:
            library.bump_version(out)
        return result if self.sign is None else (result, self.sign)

    def _execute_as_is(self, entry: DispatchEntry, library: ArrayLibrary, arrays: tuple[Any, ...], out: Any) -> Any:
        """Call the backend on arrays of a type that it declares."""
        own, result = self.request.dtypes
        _check.same_shapes(arrays, self.operation.names)
        backend, arrays, keywords = self._derive(entry, library, arrays)
        axes = _check.normalised_axes(self.axis, arrays[0].ndim)
        shape = self.operation.result_shape(arrays[0].shape, axes, self.keepdims)
        if out is not None:
            library.check_native_out(out, shape, result)
        inputs = (*[library.astype(x, own) for x in arrays], *keywords)
        y = Execution(backend, self.operation, library, inputs, axes, out, result, shape).run()
        self._set_sign(backend, y)
        return y

    def _execute_as_cupy(self, entry: DispatchEntry) -> Any:
        """Call the backend on views as CuPy arrays, and convert the result."""
        library, out = self.library, self.out
        views = tuple([library.as_cupy(x, name) for x, name in zip(self.arrays, self.operation.names, strict=True)])
        target = None if out is None else library.as_cupy(out, "out")
        for view, name in zip((*views, target), (*self.operation.names, "out"), strict=True):
            if view is not None:
                cupy_library().check_aligned(view, name)
        with cupy_library().on_device(views[0]):
            y = self._execute_as_is(entry, cupy_library(), views, target)
            # DLPack synchronises when a view is made. It does not cover later writes, nor reads that are pending when
            # the view is deleted, after which the library may reuse the memory.
            cupy_library().wait()
            self.sign = None if self.sign is None else library.from_cupy(self.sign, self.arrays[0])
            return library.from_cupy(y, self.arrays[0]) if out is None else out

    def _execute_as_numpy(self, entry: DispatchEntry) -> Any:
        """Call the backend on views as ndarrays, and convert the result."""
        library, out, names = self.library, self.out, self.operation.names
        own, result = self.request.dtypes
        views = tuple([library.as_numpy(x, name) for x, name in zip(self.arrays, names, strict=True)])
        _check.same_shapes(views, names)
        backend, views, keywords = self._derive(entry, NUMPY_LIBRARY, views)
        axes = _check.normalised_axes(self.axis, views[0].ndim)
        shape = self.operation.result_shape(views[0].shape, axes, self.keepdims)
        target = library.new_numpy(shape, result) if out is None else library.view_as_numpy(out, "out")
        y = None
        if entry.fast is not None and own == result and not self.keepdims and backend is entry.backend:
            y = entry.fast(*views, self.axis, target)  # for ndarrays, a second try, which fails at once
        if y is None:
            if target is not None:
                _check.check_out(target, shape, result)
            inputs = views if len(views) == 1 else tuple([_check.converted(x, own) for x in views])
            inputs += keywords
            y = Execution(backend, self.operation, NUMPY_LIBRARY, inputs, axes, target, result, shape).run()
        self._set_sign(backend, y)
        self.sign = None if self.sign is None else library.from_numpy(self.sign, self.arrays[0])
        return library.from_numpy(y, self.arrays[0]) if out is None else out

    def _derive(self, entry: DispatchEntry, library: ArrayLibrary, views: tuple[Any, ...]) -> Any:
        """The backend, or a wrapper that takes the keywords of the call; the inputs; and the arrays of the keywords."""
        if self.keywords is None:
            return entry.backend, views, ()
        from lsm._derived import derive
        from lsm._keywords import mask_for, temperature_for, with_weights

        x, b = self.arrays[0], self.keywords.b
        if b is not None:
            view, b = with_weights(b, views[0], self.library)
            views = (view,)
        axes = _check.normalised_axes(self.axis, views[0].ndim)
        name = self.operation.names[0]
        arrays = {
            "where": mask_for(self.keywords.where, x, views[0], self.library, name),
            "temperature": temperature_for(self.keywords.temperature, x, views[0], self.library, axes, name),
            "b": b,
        }
        arrays = {name: value for name, value in arrays.items() if value is not None}
        backend, extra = derive(
            entry, self.operation, library, self.request.dtypes, views[0], arrays, self.keywords.return_sign
        )
        return backend, views, extra

    def _set_sign(self, backend: Any, y: Any) -> None:
        """Keep the signs of the sums, in the shape of the result; 0 for empty sums."""
        if self.keywords is not None and self.keywords.b is not None and self.keywords.return_sign:
            from lsm._keywords import namespace

            self.sign = backend.signs[0].reshape(y.shape) if backend.signs else namespace(y).zeros_like(y)


def check_out(library: ArrayLibrary, out: Any, x: Any, dtype: str) -> None:
    """Raise unless `out` has the library and the device of x, and can be written to."""
    if library_of(out) is not library or library.type_name(out) != library.type_name(x):
        from lsm._foreign import explain_rejection

        kind = f"{type(out).__module__}.{type(out).__qualname__}"
        accepted = f"a {library.type_name(x)} of dtype {dtype} on {library.device_kind(x)}"
        raise TypeError(f"out: a {kind}; accepted: {accepted}{explain_rejection(out)}")
    places = library.device(out), library.device(x)
    if places[0] != places[1]:
        raise BackendUnsupportedError(
            f"out: is on {places[0]}, the result on {places[1]}; lsm does not move arrays between devices"
        )
    library.check_out(out)
