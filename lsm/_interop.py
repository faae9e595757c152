"""Arrays that are not NumPy's: where they live."""

from typing import Any

import numpy as np

# DLPack's numbers for devices whose memory the CPU reads as its own: CPU, and host memory pinned by CUDA or ROCm.
_HOST = (1, 3, 11)
_KINDS = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda", 14: "oneapi"}


def device_kind(x: Any) -> str:
    """'cpu', 'cuda', ...: the kind of device that holds x, by DLPack; 'cpu' for what does not say."""
    if type(x) is np.ndarray:
        return "cpu"
    tell = getattr(type(x), "__dlpack_device__", None)
    if tell is None:
        return "cpu"
    number = int(tell(x)[0])
    return "cpu" if number in _HOST else _KINDS.get(number, f"device type {number}")
