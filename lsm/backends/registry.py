"""Which backends there are: found once, when they are first needed, and fetched by name."""

import os
import threading
from typing import Any

from lsm._config import normalise
from lsm._errors import AmbiguousBackendError, UnknownBackendError
from lsm._held import call_locked
from lsm._version import DISTRIBUTION, __version__
from lsm.backends import cython_
from lsm.backends.candidate import BUILT_IN, Candidate
from lsm.backends.discovery import EntryPoint, find, matches


class _BuiltInEntryPoint(EntryPoint):
    """One of lsm's own backends as the code knows it, for where no entry point names it.

    The metadata may have been removed to make an image small, or left out of a frozen program.
    """

    __slots__ = ()

    def load(self) -> Any:
        """Import the module by a statement, which PyInstaller and its like can see."""
        if self.name == "cupy":
            from lsm.backends import cupy_

            return cupy_.backend
        from lsm.backends import numpy_

        return numpy_.backend


def _built_in_entry_point(name: str) -> _BuiltInEntryPoint:
    file = os.path.join(os.path.dirname(cython_.__file__), f"{name}_.py")  # noqa: PTH118, PTH120 - pathlib takes 4 ms
    return _BuiltInEntryPoint(name, DISTRIBUTION, __version__, file, f"lsm.backends.{name}_:backend")


def _is_built_in(entry_point: EntryPoint) -> bool:
    """Whether this entry point declares one of lsm's own backends: by lsm's name, and leading to this code."""
    leads_here = entry_point.name in BUILT_IN and entry_point.value == _built_in_entry_point(entry_point.name).value
    return leads_here and normalise(entry_point.distribution) == DISTRIBUTION


class Registry:
    """All backends that are known, found once when they are first needed.

    Entry points bring all but the default. Which are lsm's own is known here and not read from the metadata, which may
    be missing or claim what they like.
    """

    def __init__(self) -> None:
        self.default = Candidate(_built_in_entry_point("cython"), cython_.backend, is_built_in=True)
        self._others: tuple[Candidate, ...] | None = None
        self._lock = threading.Lock()

    def others(self) -> tuple[Candidate, ...]:
        """Every backend but the default: lsm's own, then by (name, distribution); scans on the first call."""
        return self._others or call_locked(self._lock, self._search)

    def _search(self) -> tuple[Candidate, ...]:
        if self._others is None:
            self._others = _candidates(find())
            for candidate in self._others:
                if candidate.state == "failed":
                    candidate.warn()
        return self._others

    def replace_locks(self) -> None:
        """Forget who holds what: in a forked child, nobody does."""
        self._lock = threading.Lock()
        for candidate in (self.default, *(self._others or ())):
            candidate.replace_lock()

    def all(self) -> tuple[Candidate, ...]:
        """The default backend and all others."""
        return (self.default, *self.others())

    def built_in(self, name: str) -> Candidate | None:
        """lsm's own backend of this name."""
        if name == self.default.name:
            return self.default
        return next((c for c in self.others() if c.is_built_in and c.name == name), None)

    def third_party(self) -> tuple[Candidate, ...]:
        """The others' backends that may be chosen automatically: usable so far, and alone with their name."""
        theirs = [c for c in self.others() if not c.is_built_in and c.state in ("discovered", "loaded")]
        names = [c.name for c in self.others() if not c.is_built_in]
        return tuple(c for c in theirs if names.count(c.name) == 1)

    def label(self, candidate: Candidate) -> str:
        """The name by which this backend, and no other, can be asked for."""
        alone = [c for c in self.all() if c.name == candidate.name] == [candidate]
        return candidate.name if alone or candidate is self.built_in(candidate.name) else candidate.address

    def get(self, name: str) -> Candidate:
        """The backend of this name, or of this "distribution/name", the distribution in any spelling.

        Raises
        ------
        UnknownBackendError
            There is none.
        AmbiguousBackendError
            Several distributions bring one.
        """
        if name == self.default.name:
            return self.default
        named = [c for c in self.all() if matches(name, c.name, c.entry_point.distribution)]
        ours = [c for c in named if c.is_built_in]
        if ours:
            return ours[0]
        if len(named) == 1:
            return named[0]
        if named:
            addresses = ", ".join(repr(c.address) for c in named)
            raise AmbiguousBackendError(f"backend {name!r} is brought by several distributions; name one: {addresses}")
        known = ", ".join(repr(c.name) for c in self.all())
        raise UnknownBackendError(
            f"no backend is named {name!r}; known: {known}. After installing another, lsm.refresh_backends() finds it"
        )


def _candidates(found: list[EntryPoint]) -> tuple[Candidate, ...]:
    """lsm's own backends, by their entry points or without, and those of others."""
    declared = {item.name: item._replace(version=__version__) for item in found if _is_built_in(item)}
    ours = (declared.get(name) or _built_in_entry_point(name) for name in BUILT_IN if name != "cython")
    theirs = (Candidate(item) for item in found if not _is_built_in(item))
    return (*(Candidate(item, is_built_in=True) for item in ours), *theirs)


_registry: Registry | None = None
_registry_lock = threading.Lock()


def registry() -> Registry:
    """The registry of this process."""
    return _registry or call_locked(_registry_lock, _create)


def _create() -> Registry:
    global _registry
    _registry = _registry or Registry()
    return _registry


def _after_fork_in_child() -> None:
    """Renew what a thread of the parent may have held, and search anew if it was in the middle of that."""
    global _registry, _registry_lock
    _registry_lock = threading.Lock()
    if _registry is not None:
        _registry.replace_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def reset_registry() -> None:
    """Drop what was found, so that the next use searches again."""
    call_locked(_registry_lock, _drop)


def _drop() -> None:
    global _registry
    _registry = None
