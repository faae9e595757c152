"""Exclude functions from torch.compile, so that it breaks the graph and calls them unchanged.

Otherwise Dynamo would trace them with fake arrays, which the kernels cannot read. PyTorch is not imported here.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_disabled: dict[Any, Any] = {}


def untraced(function: Function) -> Function:
    """The function itself; once torch.compile has been imported, the function excluded from it."""
    if "torch._dynamo" not in sys.modules:
        return function
    if function not in _disabled:
        _disabled[function] = sys.modules["torch"].compiler.disable(function)
    disabled: Function = _disabled[function]
    return disabled
