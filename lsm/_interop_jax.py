"""JAX arrays. JAX is not imported here: a program that has an array has imported it."""

import math
import sys
from typing import Any

import numpy as np

from lsm import _check
from lsm._interop_base import ArrayLibrary, Operand
from lsm._operations import Operation
from lsm._signals import reraise_from_handler

_ALIGNMENT_BYTES = 64  # XLA's CPU client copies less aligned memory


class JaxLibrary(ArrayLibrary):
    """jax.Array on one device; immutable, so it cannot be `out`."""

    converter = "jax.numpy.asarray"
    has_fast_path = True

    def type_name(self, x: Any) -> str:
        """The name of this type in `Backend.array_types`."""
        return "jax.Array"

    def device_kind(self, x: Any) -> str:
        """The kind of device; for JAX's "gpu", that of DLPack: CUDA, ROCm or pinned host memory."""
        (device,) = x.sharding.device_set
        return super().device_kind(x) if device.platform == "gpu" else str(device.platform)

    def device(self, x: Any) -> str:
        """The device; JAX may have several CPU devices."""
        (device,) = x.sharding.device_set
        return f"{self.device_kind(x)}:{device.id}"

    def validate(self, x: Any, name: str) -> Operand:
        """Check an argument; raise TypeError if lsm does not support it."""
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):
            raise TypeError(
                f"{name}: a JAX tracer (inside jit, grad or vmap), which has no values yet; "
                f"call lsm outside, or through jax.pure_callback"
            )
        if len(x.sharding.device_set) != 1:
            raise TypeError(
                f"{name}: an array sharded over {len(x.sharding.device_set)} devices; pass its shards, "
                f"[shard.data for shard in {name}.addressable_shards], one by one"
            )
        return super().validate(x, name)

    def result_dtype(self, own: str, dtype: Any) -> str:
        """The name of the dtype of the result; float64 only if enabled in JAX, which would silently use float32."""
        name = super().result_dtype(own, dtype)
        if name == "float64" and not sys.modules["jax"].config.jax_enable_x64:
            raise TypeError(
                "dtype: the result would be float64, which JAX has only with "
                "jax.config.update('jax_enable_x64', True); or pass dtype='float32'"
            )
        return name

    def has_int64(self, x: Any) -> bool:
        """Whether 64 bits are enabled in JAX."""
        return bool(sys.modules["jax"].config.jax_enable_x64)

    def view_as_numpy(self, x: Any, name: str) -> Any:
        """A view as an ndarray, bfloat16 included: JAX requires ml_dtypes."""
        try:
            return np.asarray(x)
        except (RuntimeError, TypeError) as error:  # deleted, or an array of random keys
            reraise_from_handler(error)
            raise TypeError(f"{name}: a JAX array that cannot be read ({error})") from error

    def fast_key(self, x: Any, dtype: str = "") -> Any:
        """("jax", dtype); None if x must be converted to another dtype."""
        return ("jax", x.dtype) if not dtype or x.dtype.name == dtype else None

    def call_fast_function(
        self, operation: Operation, function: Any, arrays: tuple[Any, ...], axis: Any, out: Any
    ) -> Any:
        """Call the function of a map on views of arrays on one CPU device."""
        if out is not None or operation.is_reduction:
            return None
        views, devices = [], set()
        for x in arrays:
            if isinstance(x, sys.modules["jax"].core.Tracer):
                return None
            devices |= x.sharding.device_set
            if len(devices) != 1 or next(iter(devices)).platform != "cpu":
                return None
            try:
                views.append(np.asarray(x))
            except (RuntimeError, TypeError):  # `view_as_numpy` reports the reason
                return None
        target = self.new_numpy(views[0].shape, _check.dtype_name(views[0].dtype))
        y = function(*views, axis, target)
        return None if y is None else self.from_numpy(y, arrays[0])

    def new_numpy(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A new ndarray, aligned so that JAX does not copy it."""
        own = _check.np_dtype(dtype)
        n_bytes = math.prod(shape) * own.itemsize
        buffer = np.empty(n_bytes + _ALIGNMENT_BYTES, np.uint8)
        start = -buffer.__array_interface__["data"][0] % _ALIGNMENT_BYTES
        return buffer[start : start + n_bytes].view(own).reshape(shape)

    def from_numpy(self, y: Any, like: Any) -> Any:
        """Convert a result to a JAX array on the device of `like`, committed to it if `like` is."""
        device_put = sys.modules["jax"].device_put  # jax.numpy.asarray takes half the time, but copies
        if not getattr(like, "committed", True):
            made = device_put(y, may_alias=True)
            if made.sharding == like.sharding:  # False if the default device has changed
                return made
        return device_put(y, like.sharding, may_alias=True)

    def check_out(self, out: Any) -> None:
        """Raise TypeError: JAX arrays are immutable."""
        raise TypeError("out: a JAX array, which cannot be written to; omit out= and use the returned array")

    def astype(self, x: Any, dtype: str) -> Any:
        """The array in another dtype; itself if it already has it."""
        return x.astype(dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any, backend: Any) -> Any:
        """A new array on the device of `like`."""
        return sys.modules["jax"].numpy.empty(shape, dtype, device=like.sharding)
