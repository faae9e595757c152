"""The CUDA source of the kernels; `plan` says which to launch."""

from functools import cache
from pathlib import Path


@cache
def source() -> str:
    """The CUDA C++ of all kernels. `plan.module_key` gives the options that compile one family of one operation."""
    folder = Path(__file__).parent
    # NVRTC compiles a single string: these files, in this order.
    files = [folder / f"{name}.cu" for name in ("numbers", "exponential", "sums", "loadstore")]
    files += [*sorted(folder.glob("reduce_*.cu")), *sorted(folder.glob("op_*.cu"))]
    files += [folder / f"{name}.cu" for name in ("rows", "columns", "kernels")]
    return "".join(f'#line 1 "{file.name}"\n{file.read_text(encoding="utf-8")}\n' for file in files)
