"""A backend and its state, from an entry point to a loaded object.

The states are:

discovered    found in the metadata; none of its code has run
blocked       excluded by LSM_PLUGINS or LSM_PLUGINS_ALLOW, or its name is reserved for lsm
failed        its import or its `available` raised; the exception is kept
incompatible  not a backend, or for another version of the contract
unavailable   its `available` returned a reason why it cannot be used
loaded        ready for use

Only loading runs the code of a plugin.
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
from lsm._held import ScopedValue, call_within
from lsm._signals import ignoring, reraise_from_handler
from lsm._texts import describe_error, printable
from lsm._version import DISTRIBUTION
from lsm.backends.contract import Declaration, contract_problem, read_declaration
from lsm.backends.discovery import EntryPoint
from lsm.backends.info import BackendInfo

_ERRORS = {"blocked": BackendBlockedError, "failed": BackendLoadError, "incompatible": BackendIncompatibleError}

BUILT_IN = ("cython", "cupy", "numpy")  # in the order of automatic selection; the names are reserved

# The candidates being loaded in this context, to detect that the import of one uses it.
_loading: ContextVar[tuple["Candidate", ...] | None] = ContextVar("lsm_loading", default=None)


class Candidate:
    """A backend: its entry point, its state, and the object once it is loaded.

    The registry decides whether it is built in, because metadata can claim any name.
    """

    def __init__(self, entry_point: EntryPoint, backend: Any = None, *, is_built_in: bool = False) -> None:
        self.entry_point = entry_point
        self.name = entry_point.name
        self.address = f"{entry_point.distribution}/{entry_point.name}"
        self.is_built_in = is_built_in
        self.backend = backend
        self.declaration = Declaration()  # set when it is loaded or unavailable
        self.state = "discovered"
        self.error: BaseException | None = None
        self._reason = "not loaded: not needed so far"
        self._lock = threading.RLock()
        self._screen()

    @property
    def reason(self) -> str:
        """The reason for its state."""
        if self.state == "discovered" and self._is_loading():
            return "it is being loaded, and its own import or available() uses it"
        return self._reason

    def _screen(self) -> None:
        """Set the state as far as possible without running any of its code."""
        allow = settings().plugins_allow
        if self.entry_point.problem:
            self._set_state("failed", self.entry_point.problem)
        elif self.is_built_in:
            return
        elif self.name in BUILT_IN:
            self._set_state("blocked", f"the name {self.name!r} is reserved for lsm's own backend")
        elif self._claims_to_be_lsm():
            reason = f"{self.entry_point.distribution!r} is lsm's own distribution, which has no such backend"
            self._set_state("blocked", reason)
        elif not settings().plugins:
            self._set_state("blocked", "LSM_PLUGINS is 'off'")
        elif allow is not None and normalise(self.entry_point.distribution) not in allow:
            self._set_state("blocked", f"LSM_PLUGINS_ALLOW does not include {self.entry_point.distribution!r}")

    def _claims_to_be_lsm(self) -> bool:
        return not self.is_built_in and normalise(self.entry_point.distribution) == DISTRIBUTION

    def _set_state(self, state: str, reason: str, error: BaseException | None = None) -> None:
        self.state, self._reason, self.error = state, reason, error

    def load(self) -> Any:
        """Load the backend, once; returns the object. A failure is remembered.

        Raises
        ------
        BackendUnavailableError
            It cannot be used. The message has the reason, and the cause is chained.
        """
        if self.state != "loaded":
            call_within(self._lock, self._load_once)
        if self.state != "loaded":
            raise self.unavailable_error()
        return self.backend

    def peek_declaration(self) -> Declaration:
        """The declaration of a built-in backend, without calling its `available`, which may import large libraries.

        For a third-party backend it is empty until it is loaded.
        """
        if self.is_built_in and self.state == "discovered":
            with ignoring(Exception):  # `load` reports why it cannot be imported
                return read_declaration(self.backend or self.entry_point.load())
        return self.declaration

    def unavailable_error(self, addition: str = "") -> BackendUnavailableError:
        """The error for a call that needs this backend, with the cause."""
        error = _ERRORS.get(self.state, BackendUnavailableError)(self.describe() + addition)
        error.__cause__ = self.error
        return error

    def replace_lock(self) -> None:
        """As `Registry.replace_locks`."""
        self._lock = threading.RLock()

    def origin(self) -> str:
        """Its name and, for a plugin, the distribution."""
        source = f" (from {self.entry_point.distribution} {self.entry_point.version}, {self.entry_point.file})"
        return f"backend {self.name!r}" + ("" if self.is_built_in else source)

    def describe(self) -> str:
        """Its origin, the reason why it cannot be used, and the remedy."""
        return f"{self.origin()} is {self.state}: {self.reason}{self._remedy()}"

    def _remedy(self) -> str:
        distribution = self.entry_point.distribution
        if self.is_built_in:
            return ""
        if self.state == "discovered":
            return "; neither may use it"
        if self.state == "unavailable":
            return "; when that is fixed, call lsm.refresh_backends()"
        if self.state == "failed":
            return f"; repair, upgrade or uninstall {distribution}"
        if self.state == "incompatible":
            return f"; install a release of {distribution} for this version of lsm, or uninstall it"
        if self._claims_to_be_lsm():
            return f"; reinstall {distribution}, or remove {self.entry_point.file} if another package installed it"
        if self.name in BUILT_IN:
            return f"; its author must rename it; until then, uninstall {distribution}"
        return f"; to load it, set LSM_PLUGINS=on, and unset LSM_PLUGINS_ALLOW or add {distribution} to it"

    def _load_once(self) -> None:
        if self._is_loading():  # its own import uses it
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
                problem = f"its method available returned {missing!r}; it must return None, or a reason as str"
            self._set_state("incompatible", printable(problem))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit, or a panic in Rust, which is not an Exception
            reraise_from_handler(error)
            if self.is_built_in and not isinstance(error, ImportError):
                raise
            self._set_state("failed", describe_error(error), error)
        self.warn()

    def warn(self) -> None:
        """Warn once that this plugin is broken."""
        with suppress(PluginWarning):  # even if warnings are errors, calls that do not need it continue
            warnings.warn(f"lsm continues without it: {self.describe()}", PluginWarning, stacklevel=2)

    def info(self) -> BackendInfo:
        """The row for `list_backends`."""
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
