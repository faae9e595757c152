"""Arrays of JAX, which is never imported here: whoever has an array has imported it."""

import math
import sys
from typing import Any

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand

_ALIGNMENT_BYTES = 64  # bytes: XLA's CPU client copies what lies otherwise


class JaxLibrary(ArrayLibrary):
    """jax.Array on one device; it is immutable, so that none can be `out`."""

    converter = "jax.numpy.asarray"

    def type_name(self, x: Any) -> str:
        """The name by which backends declare this type."""
        return "jax.Array"

    def device_kind(self, x: Any) -> str:
        """As DLPack names it, where JAX says "gpu": of CUDA or of ROCm, or memory of the host that such a one reads."""
        (device,) = x.sharding.device_set
        return super().device_kind(x) if device.platform == "gpu" else str(device.platform)

    def device(self, x: Any) -> str:
        """The very device: JAX may see several CPUs."""
        (device,) = x.sharding.device_set
        return f"{self.device_kind(x)}:{device.id}"

    def validate(self, x: Any, name: str, axis: Any = -1) -> Operand:
        """Look at an argument; raise TypeError for what lsm does not take."""
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):
            raise TypeError(
                f"{name}: an array that JAX traces (within jit, grad, vmap) and that has no values yet; "
                f"call lsm outside, or through jax.pure_callback"
            )
        if len(x.sharding.device_set) != 1:
            raise TypeError(
                f"{name}: an array over {len(x.sharding.device_set)} devices; give its parts, "
                f"[shard.data for shard in {name}.addressable_shards], one by one"
            )
        return super().validate(x, name, axis)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The dtype of the result by name; float64 only where JAX has it, for it would be made float32 silently."""
        wanted = super().result_dtype(own, dtype)
        if wanted == "float64" and not sys.modules["jax"].config.jax_enable_x64:
            raise TypeError(
                "dtype: the result would be float64, which JAX has only with "
                "jax.config.update('jax_enable_x64', True); or give dtype='float32'"
            )
        return wanted

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """The same memory as an ndarray, bfloat16 too: JAX brings ml_dtypes along."""
        try:
            return np.asarray(x)
        except (RuntimeError, TypeError) as error:  # it was deleted, or holds random keys
            raise TypeError(f"{name}: a JAX array that cannot be read ({error})") from error

    def new_numpy(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An ndarray aligned so that JAX takes it over as it is."""
        own = _check.np_dtype(dtype)
        n_bytes = math.prod(shape) * own.itemsize
        memory = np.empty(n_bytes + _ALIGNMENT_BYTES, np.uint8)
        start = -memory.__array_interface__["data"][0] % _ALIGNMENT_BYTES
        return memory[start : start + n_bytes].view(own).reshape(shape)

    def from_numpy(self, y: Any, like: Any) -> Any:
        """A result as an array on the device of `like`, and committed to it if `like` is."""
        device_put = sys.modules["jax"].device_put  # jax.numpy.asarray takes half the time, and copies
        if not getattr(like, "committed", True):
            made = device_put(y, may_alias=True)
            if made.sharding == like.sharding:  # not, if the default device is another by now
                return made
        return device_put(y, like.sharding, may_alias=True)

    def check_out(self, out: Any) -> None:
        """Raise TypeError: nothing writes to such an array."""
        raise TypeError("out: a JAX array, which cannot be written to; leave out= away and take the result")

    def astype(self, x: Any, dtype: str) -> Any:
        """The array in another dtype; itself if it has that already."""
        return x.astype(dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new array on the device of `like`."""
        return sys.modules["jax"].numpy.empty(shape, dtype, device=like.sharding)
