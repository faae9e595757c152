"""The errors that lsm raises beyond ValueError and TypeError, each saying what would do instead."""

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
    """Base of every error that is lsm's own."""


class ConfigurationError(LsmError, ValueError):
    """An ``LSM_*`` environment variable holds a value that is not understood."""


class UnknownBackendError(LsmError, LookupError):
    """No backend has the name that was asked for."""


class AmbiguousBackendError(UnknownBackendError):
    """Several distributions bring a backend of the name that was asked for."""


class BackendUnavailableError(LsmError, RuntimeError):
    """The backend is known, but cannot be used here: it says so itself, or one of the following holds."""


class BackendBlockedError(BackendUnavailableError):
    """A setting keeps the backend from being loaded, or its name is reserved for lsm's own."""


class BackendLoadError(BackendUnavailableError):
    """Importing the backend, or asking it whether it is available, raised; that error is the cause."""


class BackendIncompatibleError(BackendUnavailableError):
    """What the entry point names is no backend, or one for another version of the contract."""


class BackendUnsupportedError(LsmError, TypeError):
    """The backend, or every backend, does not serve this type, device and dtype."""


class BackendFailedError(LsmError, RuntimeError):
    """A third-party backend raised an error in the middle of a call, or broke the contract; `out` may be changed."""


class PluginWarning(UserWarning):
    """A third-party backend is broken, or the compiled kernels cannot be used; lsm goes on without them."""
