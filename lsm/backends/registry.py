"""The registry of backends: found on first use, and looked up by name."""

import os
import threading
from typing import Any

from lsm._config import normalise
from lsm._errors import AmbiguousBackendError, UnknownBackendError
from lsm._held import call_within
from lsm._version import DISTRIBUTION, __version__
from lsm.backends import cython_
from lsm.backends.candidate import BUILT_IN, Candidate
from lsm.backends.discovery import EntryPoint, find, matches


class _BuiltInEntryPoint(EntryPoint):
    """A built-in backend without an entry point in the metadata.

    The metadata may have been removed to make an image smaller, or omitted from a frozen program.
    """

    __slots__ = ()

    def load(self) -> Any:
        """Import the module by a statement, which tools such as PyInstaller can detect."""
        if self.name == "cupy":
            from lsm.backends import cupy_

            return cupy_.backend
        from lsm.backends import numpy_

        return numpy_.backend


def _built_in_entry_point(name: str) -> _BuiltInEntryPoint:
    file = os.path.join(os.path.dirname(cython_.__file__), f"{name}_.py")  # noqa: PTH118, PTH120 - pathlib takes 4 ms
    return _BuiltInEntryPoint(name, DISTRIBUTION, __version__, file, f"lsm.backends.{name}_:backend")


def _is_built_in(entry_point: EntryPoint) -> bool:
    """Whether an entry point is that of a built-in backend: of the distribution of lsm, with the same value."""
    is_same_code = entry_point.name in BUILT_IN and entry_point.value == _built_in_entry_point(entry_point.name).value
    return is_same_code and normalise(entry_point.distribution) == DISTRIBUTION


class Registry:
    """All known backends, found on first use.

    All except the default have entry points. Which ones are built in is decided here, not by the metadata, which may
    be missing or wrong.
    """

    def __init__(self) -> None:
        self.default = Candidate(_built_in_entry_point("cython"), cython_.backend, is_built_in=True)
        self._others: tuple[Candidate, ...] | None = None
        self._lock = threading.RLock()

    def others(self) -> tuple[Candidate, ...]:
        """All backends except the default: built-in ones, then by (name, distribution); the first call searches."""
        return self._others or call_within(self._lock, self._search)

    def _search(self) -> tuple[Candidate, ...]:
        if self._others is None:
            self._others = _candidates(find())
            for candidate in self._others:
                if candidate.state == "failed":
                    candidate.warn()
        return self._others

    def replace_locks(self) -> None:
        """Replace all locks in a forked child, where no thread can release them."""
        self._lock = threading.RLock()
        for candidate in (self.default, *(self._others or ())):
            candidate.replace_lock()

    def all(self) -> tuple[Candidate, ...]:
        """The default backend and all others."""
        return (self.default, *self.others())

    def built_in(self, name: str) -> Candidate | None:
        """The built-in backend of this name."""
        if name == self.default.name:
            return self.default
        return next((c for c in self.others() if c.is_built_in and c.name == name), None)

    def third_party(self) -> tuple[Candidate, ...]:
        """The third-party backends that can be selected automatically: not known to be unusable, with a unique name."""
        plugins = [c for c in self.others() if not c.is_built_in and c.state in ("discovered", "loaded")]
        names = [c.name for c in self.others() if not c.is_built_in]
        return tuple(c for c in plugins if names.count(c.name) == 1)

    def label(self, candidate: Candidate) -> str:
        """A unique name of this backend."""
        is_unique = [c for c in self.all() if c.name == candidate.name] == [candidate]
        return candidate.name if is_unique or candidate is self.built_in(candidate.name) else candidate.address

    def get(self, name: str) -> Candidate:
        """The backend named "name" or "distribution/name", the distribution in any spelling.

        Raises
        ------
        UnknownBackendError
            There is none.
        AmbiguousBackendError
            Several distributions provide one.
        """
        if name == self.default.name:
            return self.default
        for candidate in self.all():
            if candidate.is_built_in and candidate.name == name:
                return candidate
        named = [c for c in self.all() if matches(name, c.name, c.entry_point.distribution)]
        ours = [c for c in named if c.is_built_in]
        if ours:
            return ours[0]
        if len(named) == 1:
            return named[0]
        if named:
            addresses = ", ".join(repr(c.address) for c in named)
            raise AmbiguousBackendError(
                f"backend {name!r} is provided by several distributions; use one of {addresses}"
            )
        known = ", ".join(repr(c.name) for c in self.all())
        raise UnknownBackendError(
            f"no backend is named {name!r}; known: {known}. After installing one, call lsm.refresh_backends()"
        )


def _candidates(found: list[EntryPoint]) -> tuple[Candidate, ...]:
    """The built-in backends, with or without entry points, and the third-party ones."""
    declared = {item.name: item._replace(version=__version__) for item in found if _is_built_in(item)}
    ours = (declared.get(name) or _built_in_entry_point(name) for name in BUILT_IN if name != "cython")
    theirs = (Candidate(item) for item in found if not _is_built_in(item))
    return (*(Candidate(item, is_built_in=True) for item in ours), *theirs)


_registry: Registry | None = None
_registry_lock = threading.RLock()


def registry() -> Registry:
    """The registry of this process."""
    return _registry or call_within(_registry_lock, _create)


def _create() -> Registry:
    global _registry
    _registry = _registry or Registry()
    return _registry


def _after_fork_in_child() -> None:
    """Replace locks that a thread of the parent may have held; an interrupted search starts again."""
    global _registry, _registry_lock
    _registry_lock = threading.RLock()
    if _registry is not None:
        _registry.replace_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def reset_registry() -> None:
    """Drop all backends, so that the next use searches again."""
    call_within(_registry_lock, _drop)


def _drop() -> None:
    global _registry
    _registry = None
