"""The errors of lsm other than ValueError and TypeError. Every message gives a remedy."""

__all__ = [
    "AmbiguousBackendError",
    "BackendBlockedError",
    "BackendFailedError",
    "BackendIncompatibleError",
    "BackendLoadError",
    "BackendUnavailableError",
    "BackendUnsupportedError",
    "ConfigurationError",
    "LsmError",
    "PluginWarning",
    "UnknownBackendError",
]


class LsmError(Exception):
    """Base class of the errors of lsm."""


class ConfigurationError(LsmError, ValueError):
    """An ``LSM_*`` environment variable has an invalid value."""


class UnknownBackendError(LsmError, LookupError):
    """No backend has the requested name."""


class AmbiguousBackendError(UnknownBackendError):
    """Several distributions provide a backend with the requested name."""


class BackendUnavailableError(LsmError, RuntimeError):
    """The backend is known but cannot be used; `available` returned a reason, or a subclass applies."""


class BackendBlockedError(BackendUnavailableError):
    """A setting excludes the backend, or its name is reserved for lsm."""


class BackendLoadError(BackendUnavailableError):
    """Importing the backend or calling its `available` raised an exception; the cause is chained."""


class BackendIncompatibleError(BackendUnavailableError):
    """The entry point names no backend, or one for another version of the contract."""


class BackendUnsupportedError(LsmError, TypeError):
    """The requested backend does not support this type, device and dtype, or no backend does."""


class BackendFailedError(LsmError, RuntimeError):
    """A third-party backend raised an error in a call, or broke the contract; `out` may have been modified."""


class PluginWarning(UserWarning):
    """A third-party backend is broken, or the compiled kernels cannot be used; lsm continues without them."""
