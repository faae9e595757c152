"""The description of a backend for users; a separate module to keep `import lsm` fast."""

from typing import NamedTuple


class BackendInfo(NamedTuple):
    """A backend as listed by `lsm.list_backends`.

    Attributes
    ----------
    name : str
        The name of the entry point.
    state : str
        "discovered", "blocked", "failed", "incompatible", "unavailable" or "loaded".
    reason : str
        Why it is not loaded; empty if it is.
    devices, dtypes, array_types : tuple of str
        The devices, dtypes and array types that it supports; empty until it is loaded.
    priority : int
        Its priority among third-party backends.
    max_ulp : dict of str to float
        The error bound for each of `dtypes`, in ulps.
    same_bits : bool
        Whether it claims that a frame's bits depend only on the frame's values.
    distribution, version : str
        The distribution that provides it.
    file : str
        The metadata file with its entry point, or the module of a built-in backend without one.
    is_built_in : bool
        Whether it is part of lsm.
    """

    name: str
    state: str
    reason: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    array_types: tuple[str, ...]
    priority: int
    max_ulp: dict[str, float]
    same_bits: bool
    distribution: str
    version: str
    file: str
    is_built_in: bool
