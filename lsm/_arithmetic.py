"""Call functions that compute with NumPy: nothing that the caller has set changes their results.

Imported with the first call that computes so, since `import lsm` must stay fast.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from lsm._held import call_within

T = TypeVar("T")

try:
    from lsm.backends._kernels import cpu
except ImportError:  # lsm was installed without a C compiler
    cpu = None


def call_in_float_env(function: Callable[..., T], *args: Any) -> T:
    """Call a function in round-to-nearest with subnormals; in the caller's environment if nothing is compiled."""
    result: T = function(*args) if cpu is None else cpu.call_in_float_env(function, *args)
    return result


def compute(function: Callable[..., T], *args: Any) -> T:
    """Call a function without floating-point warnings, in round-to-nearest with subnormals."""
    result: T = call_within(np.errstate(all="ignore"), call_in_float_env, function, *args)
    return result
