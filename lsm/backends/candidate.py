"""One backend on its way from a line of metadata to an object that serves calls.

A third-party backend passes through these states:

discovered    an entry point names it; none of its code has run
blocked       LSM_PLUGINS or LSM_PLUGINS_ALLOW excludes it, or its name is reserved for lsm
failed        importing it, or asking it, raised; the exception is kept
incompatible  it is no backend, or was written for another version of the contract
unavailable   it says itself that it cannot be used here, and why
loaded        ready

Only loading runs code of a plugin.
"""

import threading
import warnings
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from lsm._config import normalise, settings
from lsm._errors import (
    BackendBlockedError,
    BackendIncompatibleError,
    BackendLoadError,
    BackendUnavailableError,
    PluginWarning,
)
from lsm._held import ScopedValue, call_locked
from lsm._texts import describe_error, printable
from lsm._version import DISTRIBUTION
from lsm.backends.contract import Declaration, contract_problem, read_declaration
from lsm.backends.discovery import EntryPoint
from lsm.backends.info import BackendInfo

_ERRORS = {"blocked": BackendBlockedError, "failed": BackendLoadError, "incompatible": BackendIncompatibleError}

BUILT_IN = ("cython", "cupy", "numpy")  # in the order of automatic choice; the names are reserved

# The candidates that are being loaded in this context: what one of them imports may ask for it.
_loading: ContextVar[tuple["Candidate", ...] | None] = ContextVar("lsm_loading", default=None)


class Candidate:
    """One backend: what was found of it, its state, and the object once it is loaded.

    Whether it is lsm's own is for the registry to say: the metadata can claim any name.
    """

    def __init__(self, entry_point: EntryPoint, backend: Any = None, *, is_built_in: bool = False) -> None:
        self.entry_point = entry_point
        self.name = entry_point.name
        self.address = f"{entry_point.distribution}/{entry_point.name}"
        self.is_built_in = is_built_in
        self.backend = backend
        self.declaration = Declaration()  # which is filled once it is loaded or unavailable
        self.state = "discovered"
        self.error: BaseException | None = None
        self._reason = "not loaded: nothing has needed it"
        self._lock = threading.RLock()
        self._screen()

    @property
    def reason(self) -> str:
        """Why it is in its state."""
        if self.state == "discovered" and self._is_loading():
            return "it is being loaded, and what it imports uses it"
        return self._reason

    def _screen(self) -> None:
        """Settle what can be settled without running any of its code."""
        allow = settings().plugins_allow
        if self.entry_point.problem:
            self._set_state("failed", self.entry_point.problem)
        elif self.is_built_in:
            return
        elif self.name in BUILT_IN:
            self._set_state("blocked", f"the name {self.name!r} is reserved for lsm's own backend")
        elif self._claims_to_be_lsm():
            self._set_state(
                "blocked", f"{self.entry_point.distribution!r} is lsm's own distribution, which has no such backend"
            )
        elif not settings().plugins:
            self._set_state("blocked", "LSM_PLUGINS is 'off'")
        elif allow is not None and normalise(self.entry_point.distribution) not in allow:
            self._set_state("blocked", f"LSM_PLUGINS_ALLOW does not name {self.entry_point.distribution!r}")

    def _claims_to_be_lsm(self) -> bool:
        return not self.is_built_in and normalise(self.entry_point.distribution) == DISTRIBUTION

    def _set_state(self, state: str, reason: str, error: BaseException | None = None) -> None:
        self.state, self._reason, self.error = state, reason, error

    def load(self) -> Any:
        """The backend object; loaded once, and a failure is remembered.

        Raises
        ------
        BackendUnavailableError
            It cannot be used; the text says why, and the cause is chained.
        """
        if self.state != "loaded":
            call_locked(self._lock, self._load_once)
        if self.state != "loaded":
            raise self.unavailable_error()
        return self.backend

    def peek_declaration(self) -> Declaration:
        """What one of lsm's own declares, read without asking whether it is available, which may import much.

        Of a third party's nothing is known, and none of its code runs, before it is loaded.
        """
        if self.is_built_in and self.state == "discovered":
            with suppress(Exception):  # loading it says why it cannot be imported
                return read_declaration(self.backend or self.entry_point.load())
        return self.declaration

    def unavailable_error(self, addition: str = "") -> BackendUnavailableError:
        """The error of whoever needs it although it is not loaded, with the cause."""
        error = _ERRORS.get(self.state, BackendUnavailableError)(self.describe() + addition)
        error.__cause__ = self.error
        return error

    def replace_lock(self) -> None:
        """As `Registry.replace_locks`."""
        self._lock = threading.RLock()

    def origin(self) -> str:
        """Its name, and what was installed to bring it."""
        brought = f" (from {self.entry_point.distribution} {self.entry_point.version}, {self.entry_point.file})"
        return f"backend {self.name!r}" + ("" if self.is_built_in else brought)

    def describe(self) -> str:
        """What keeps it from being used, with its origin and the remedy."""
        return f"{self.origin()} is {self.state}: {self.reason}{self._remedy()}"

    def _remedy(self) -> str:
        distribution = self.entry_point.distribution
        if self.is_built_in:
            return ""
        if self.state == "discovered":
            return "; neither its import nor its method available may ask for it"
        if self.state == "unavailable":
            return "; once that is remedied, lsm.refresh_backends() makes lsm ask it again"
        if self.state == "failed":
            return f"; repair, upgrade or uninstall {distribution}"
        if self.state == "incompatible":
            return f"; install a release of {distribution} that was made for this lsm, or uninstall it"
        if self._claims_to_be_lsm():
            return f"; reinstall {distribution}, or remove {self.entry_point.file} if another package brought it"
        if self.name in BUILT_IN:
            return f"; its author must give it another name, or you uninstall {distribution}"
        return f"; LSM_PLUGINS=on without LSM_PLUGINS_ALLOW, or with {distribution} in it, would let it be loaded"

    def _load_once(self) -> None:
        if self._is_loading():  # its own import asks for it
            raise BackendUnavailableError(self.describe())
        if self.state == "discovered":
            with ScopedValue(_loading, lambda: (*(_loading.get() or ()), self)):
                self._load()

    def _is_loading(self) -> bool:
        return any(candidate is self for candidate in _loading.get() or ())

    def _load(self) -> None:
        try:
            backend = self.backend or self.entry_point.load()
            problem = contract_problem(backend, self.name)
            if not problem:
                declaration, missing = read_declaration(backend), backend.available()
                if missing is None or (isinstance(missing, str) and missing.strip()):
                    self.backend, self.declaration = backend, declaration
                    self._set_state("loaded" if missing is None else "unavailable", printable(missing or ""))
                    return
                problem = f"its method available returned {missing!r}; it must return None, or why not as text"
            self._set_state("incompatible", printable(problem))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # its own affair, be it an exit, or a panic of Rust, which is no Exception
            if self.is_built_in and not isinstance(error, ImportError):  # a signal's handler raised it
                raise
            self._set_state("failed", describe_error(error), error)
        self.warn()

    def warn(self) -> None:
        """Say once that this plugin is broken."""
        with suppress(PluginWarning):  # where warnings are errors, a call that does not need it shall go on
            warnings.warn(f"lsm goes on without it: {self.describe()}", PluginWarning, stacklevel=2)

    def info(self) -> BackendInfo:
        """This candidate as a row for the user."""
        known = self.declaration
        return BackendInfo(
            name=self.name,
            state=self.state,
            reason=self.reason,
            devices=known.devices,
            dtypes=known.dtypes,
            array_types=known.array_types,
            priority=known.priority,
            max_ulp=dict(known.max_ulp),
            same_bits=known.same_bits,
            distribution=self.entry_point.distribution,
            version=self.entry_point.version,
            file=self.entry_point.file,
            is_built_in=self.is_built_in,
        )
