"""What the user is told about a backend; a module of its own, which `import lsm` can afford."""

from typing import NamedTuple


class BackendInfo(NamedTuple):
    """What is known of one backend; a row of `lsm.list_backends`.

    Attributes
    ----------
    name : str
        As an entry point names it.
    state : str
        "discovered", "blocked", "failed", "incompatible", "unavailable" or "loaded".
    reason : str
        Why it is not loaded; empty if it is.
    devices, dtypes, array_types : tuple of str
        What it declares; empty while that is not known.
    priority : int
        Its rank among third-party backends.
    max_ulp : dict of str to float
        For each of `dtypes` the error that it stays within, in ulps.
    same_bits : bool
        Whether it claims that a frame's bits depend on the frame's values only.
    distribution, version : str
        What was installed to bring it.
    file : str
        The metadata file that names it; the module of one of lsm's own that no metadata name.
    is_built_in : bool
        Whether it is lsm's own.
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
