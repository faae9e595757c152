"""The CUDA source of the kernels; `plan` says which to launch."""

from functools import cache
from pathlib import Path

# NVRTC compiles a single string: these files, in this order.
_FRAMES = ("rows.cu", "rows_backward.cu", "columns.cu", "columns_backward.cu")
_FILES = ("numbers.cu", "exponential.cu", "sums.cu", "gradient.cu", "loadstore.cu", *_FRAMES)


@cache
def source() -> str:
    """The CUDA C++ of all kernels. `plan.module_key` gives the options that compile one family of them."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text(encoding="utf-8")}\n' for name in _FILES)
