"""The errors that lsm raises beyond ValueError and TypeError, each saying what would do instead."""

__all__ = [
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
    """No backend has the name that was asked for, or more than one has it."""


class BackendUnavailableError(LsmError, RuntimeError):
    """The backend is known, but cannot be used here: it is blocked, broken, or lacks what it needs."""


class BackendUnsupportedError(LsmError, TypeError):
    """The backend, or every backend, does not serve this type, device and dtype."""


class PluginWarning(UserWarning):
    """A third-party backend is broken; lsm goes on without it."""
