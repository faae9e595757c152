"""Call functions that compute with NumPy, so that the caller's floating-point settings do not change their results.

Imported with the first such call, since `import lsm` must stay fast.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from lsm._held import call_within

T = TypeVar("T")


def _call(function: Callable[..., T], *args: Any) -> T:
    """Call a function in the caller's floating-point environment."""
    return function(*args)


try:
    from lsm.backends._kernels import cpu
except ImportError:  # lsm was installed without a C compiler
    call_in_float_env: Callable[..., Any] = _call
else:
    call_in_float_env = cpu.call_in_float_env


def compute(function: Callable[..., T], *args: Any) -> T:
    """Call a function without floating-point warnings, in round-to-nearest with subnormals."""
    result: T = call_within(np.errstate(all="ignore"), call_in_float_env, function, *args)
    return result
