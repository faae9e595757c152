"""What torch.compile does not look into: it breaks the graph there, calls it as it is, and the result is right.

Dynamo runs Python with stand-ins and imitates NumPy, of which no kernel can read. PyTorch is not imported here.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_hidden: dict[Any, Any] = {}


def untraced(function: Function) -> Function:
    """The function itself; where torch.compile was imported, the same hidden from it."""
    if "torch._dynamo" not in sys.modules:
        return function
    if function not in _hidden:
        _hidden[function] = sys.modules["torch"].compiler.disable(function)
    hidden: Function = _hidden[function]
    return hidden
