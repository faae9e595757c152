"""log-softmax and its gradient: accurate, fast, small, and the same bits every time.

>>> import lsm
>>> lsm.log_softmax([20.0, 0.0]).round(3)
array([ -0., -20.])
"""

from typing import TYPE_CHECKING, Any

from lsm._api import log_softmax, softmax
from lsm._api_gradient import log_softmax_backward, softmax_backward
from lsm._api_reduce import logsumexp
from lsm._decide import Decision
from lsm._dispatch import (
    list_backends,
    refresh_backends,
    set_default_backend,
    use_backend,
)
from lsm._errors import (
    AmbiguousBackendError,
    BackendBlockedError,
    BackendFailedError,
    BackendIncompatibleError,
    BackendLoadError,
    BackendUnavailableError,
    BackendUnsupportedError,
    ConfigurationError,
    LsmError,
    PluginWarning,
    UnknownBackendError,
)
from lsm._threads import get_num_threads, num_threads, set_num_threads
from lsm._version import __version__
from lsm.backends.base import Backend

if TYPE_CHECKING:
    from lsm._api_entropy import entropy, kl_divergence
    from lsm._api_loss import cross_entropy, cross_entropy_value_and_grad
    from lsm._api_partials import partials, partials_backward
    from lsm._api_select import TopK, take_log_softmax, top_k_log_softmax
    from lsm._explain import explain
    from lsm.backends.info import BackendInfo

__all__ = [
    "AmbiguousBackendError",
    "Backend",
    "BackendBlockedError",
    "BackendFailedError",
    "BackendIncompatibleError",
    "BackendInfo",
    "BackendLoadError",
    "BackendUnavailableError",
    "BackendUnsupportedError",
    "ConfigurationError",
    "Decision",
    "LsmError",
    "PluginWarning",
    "TopK",
    "UnknownBackendError",
    "__version__",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "entropy",
    "explain",
    "get_num_threads",
    "kl_divergence",
    "list_backends",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "num_threads",
    "partials",
    "partials_backward",
    "refresh_backends",
    "set_default_backend",
    "set_num_threads",
    "softmax",
    "softmax_backward",
    "take_log_softmax",
    "top_k_log_softmax",
    "use_backend",
]


# Names that are imported on first access, so that `import lsm` stays fast.
_LATER = {
    "BackendInfo": "lsm.backends.info",
    "TopK": "lsm._api_select",
    "cross_entropy": "lsm._api_loss",
    "cross_entropy_value_and_grad": "lsm._api_loss",
    "entropy": "lsm._api_entropy",
    "explain": "lsm._explain",
    "kl_divergence": "lsm._api_entropy",
    "partials": "lsm._api_partials",
    "partials_backward": "lsm._api_partials",
    "take_log_softmax": "lsm._api_select",
    "top_k_log_softmax": "lsm._api_select",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = found = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
