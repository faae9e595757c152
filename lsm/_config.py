"""The LSM_* environment variables: read once, in one place; a value not understood is an error."""

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from lsm._errors import ConfigurationError

ISA_LEVELS = ("v4", "v3", "v2", "plain")


class Settings(NamedTuple):
    """What the environment asks for; None where it asks for nothing."""

    backend: str | None = None
    plugins: bool = True
    plugins_allow: frozenset[str] | None = None
    num_threads: int | None = None
    force_isa: str | None = None


def normalise(distribution: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def read(environ: Mapping[str, str]) -> Settings:
    """Parse the variables; an empty one counts as absent.

    Raises
    ------
    ConfigurationError
        A value is not understood. The message lists what would be accepted.
    """
    plugins = environ.get("LSM_PLUGINS") or "on"
    if plugins not in ("on", "off"):
        raise ConfigurationError(f"LSM_PLUGINS is {plugins!r}; accepted: 'on', 'off'")

    threads = environ.get("LSM_NUM_THREADS") or None
    if threads is not None and not (re.fullmatch("[0-9]{1,9}", threads) and int(threads) > 0):
        raise ConfigurationError(f"LSM_NUM_THREADS is {threads!r}; accepted: a whole number from 1, such as '4'")

    isa = environ.get("LSM_FORCE_ISA") or None
    if isa is not None and isa not in ISA_LEVELS:
        accepted = ", ".join(map(repr, ISA_LEVELS))
        raise ConfigurationError(f"LSM_FORCE_ISA is {isa!r}; accepted: {accepted}")

    allow = environ.get("LSM_PLUGINS_ALLOW") or None
    allowed = None
    if allow is not None:
        names = [name.strip() for name in allow.split(",")]
        if not all(re.fullmatch("[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) for name in names):
            raise ConfigurationError(
                f"LSM_PLUGINS_ALLOW is {allow!r}; accepted: names of distributions with commas between them, "
                "such as 'lsm-torch,lsm-other'"
            )
        allowed = frozenset(normalise(name) for name in names)

    return Settings(
        backend=environ.get("LSM_BACKEND") or None,
        plugins=plugins == "on",
        plugins_allow=allowed,
        num_threads=None if threads is None else int(threads),
        force_isa=isa,
    )


@cache
def settings() -> Settings:
    """The settings of this process, read when they are first needed."""
    return read(os.environ)
