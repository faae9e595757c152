"""The CUDA kernels as one text, and which to launch for what (`plan`)."""

from functools import cache
from pathlib import Path

# NVRTC takes one text: the files in this order.
_FRAMES = ("rows.cu", "rows_backward.cu", "columns.cu", "columns_backward.cu")
_FILES = ("numbers.cu", "exponential.cu", "sums.cu", "gradient.cu", "loadstore.cu", *_FRAMES)


@cache
def source() -> str:
    """The CUDA C++ of every kernel; `plan.module_key` says with which options a part of it is compiled."""
    folder = Path(__file__).parent
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text(encoding="utf-8")}\n' for name in _FILES)
