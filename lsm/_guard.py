"""Checks of third-party backends during a call: errors, and the shape, dtype and device of `out`."""

from functools import partial
from typing import Any

from lsm._errors import BackendFailedError
from lsm._interop import library_of
from lsm._operations import OPERATIONS
from lsm._signals import reraise_from_handler
from lsm._texts import describe_error
from lsm.backends.contract import PART_METHODS

# Not errors of a backend: a signal handler may raise SystemExit or KeyboardInterrupt during a call. All others are,
# even those that are not an Exception, such as a panic in Rust.
_PASSED_THROUGH = (KeyboardInterrupt, SystemExit, MemoryError)


class GuardedBackend:
    """A wrapper of a third-party backend that reports its errors with its name and origin.

    Values are not checked; the conformance kit does that.
    """

    def __init__(self, backend: Any, origin: str) -> None:
        self.backend = backend
        self.origin = origin
        self.slice_classes = dict(getattr(backend, "slice_classes", {}))

    def __getattr__(self, name: str) -> Any:
        """The method of an operation, with its errors caught."""
        if name not in OPERATIONS and not any(name in together for together in PART_METHODS.values()):
            raise AttributeError(name)
        return partial(self._call, name)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """See `Backend`; checks that the new array is as requested."""
        library = library_of(like)
        try:
            made = self.backend.empty(shape, dtype, like)
        except _PASSED_THROUGH:
            raise
        except BaseException as error:
            reraise_from_handler(error)
            raise self._failed(f"empty raised {describe_error(error)}") from error
        requested = (library.type_name(like), shape, dtype, library.device(like))
        found: tuple[Any, ...] = (f"{type(made).__module__}.{type(made).__qualname__}",)
        if type(made) is type(like):
            found = (library.type_name(made), *library.signature(made))
        if found != requested:
            raise self._failed(f"empty returned {found}; requested: {requested}")
        return made

    def _call(self, method: str, *arguments: Any) -> None:
        out = arguments[-1]
        library = library_of(out)
        before = library.signature(out)
        try:
            returned = getattr(self.backend, method)(*arguments)
        except _PASSED_THROUGH:
            raise
        except BaseException as error:
            reraise_from_handler(error)
            raise self._failed(f"{method} raised {describe_error(error)}") from error
        if returned is not None and returned is not out:
            raise self._failed(
                f"{method} returned a {type(returned).__name__}; it must write the result to `out` and return None"
            )
        after = library.signature(out)
        if after != before:
            raise self._failed(f"{method} changed `out` from {before} to {after} (shape, dtype, device)")

    def _failed(self, what: str) -> BackendFailedError:
        return BackendFailedError(
            f"{self.origin}: {what}. This is a bug in the backend: report it there; lsm.explain lists other backends"
        )
