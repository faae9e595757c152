"""What a third-party backend does in a call is looked over: its errors, and the shape, dtype and device of `out`."""

from functools import partial
from typing import Any

from lsm._errors import BackendFailedError
from lsm._interop import library_of
from lsm._operations import OPERATIONS
from lsm._texts import describe_error

# Not a backend's fault. A signal's handler may ask the process to end, by SystemExit as by KeyboardInterrupt, in the
# middle of a call. All else is, also what is no Exception: a panic in a backend written in Rust, say.
_PASSED_THROUGH = (KeyboardInterrupt, SystemExit, MemoryError)


class GuardedBackend:
    """A backend of another distribution, whose faults become errors that say whose they are.

    No value is looked at: that is for the kit that tests a backend.
    """

    def __init__(self, backend: Any, origin: str) -> None:
        self.backend = backend
        self.origin = origin

    def __getattr__(self, name: str) -> Any:
        """The method of an operation, its faults caught."""
        if name not in OPERATIONS:
            raise AttributeError(name)
        return partial(self._call, name)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """See `Backend`: a new array, checked to be the one that was asked for."""
        library = library_of(like)
        try:
            made = self.backend.empty(shape, dtype, like)
        except _PASSED_THROUGH:
            raise
        except BaseException as error:
            raise self._failed(f"empty raised {describe_error(error)}") from error
        wanted = (library.type_name(like), shape, dtype, library.device(like))
        found: tuple[Any, ...] = (f"{type(made).__module__}.{type(made).__qualname__}",)
        if type(made) is type(like):
            found = (library.type_name(made), *library.signature(made))
        if found != wanted:
            raise self._failed(f"empty gave {found}, and was asked for {wanted}")
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
            raise self._failed(f"{method} raised {describe_error(error)}") from error
        if returned is not None and returned is not out:
            raise self._failed(
                f"{method} returned a {type(returned).__name__}; it must write the result into `out` and return None"
            )
        after = library.signature(out)
        if after != before:
            raise self._failed(f"{method} made {after} of `out`, which was {before} (shape, dtype, device)")

    def _failed(self, what: str) -> BackendFailedError:
        return BackendFailedError(
            f"{self.origin}: {what}. The fault is the backend's: report it there; lsm.explain lists who else serves"
        )
