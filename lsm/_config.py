"""The LSM_* environment variables, read once; an invalid value is an error."""

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from lsm._errors import ConfigurationError

ISA_LEVELS = ("v4", "v3", "v2", "plain")

# The variables that are read at run time, and their valid values.
ACCEPTED = {
    "LSM_BACKEND": "the name of a backend, such as 'numpy'",
    "LSM_PLUGINS": "'on', 'off'",
    "LSM_PLUGINS_ALLOW": "comma-separated names of distributions, such as 'lsm-torch,lsm-other'",
    "LSM_NUM_THREADS": "a positive integer, such as '4'",
    "LSM_FORCE_ISA": ", ".join(map(repr, ISA_LEVELS)),
}
BUILD_VARIABLES = ("LSM_LEVELS", "LSM_NO_OPENMP", "LSM_SANITIZE")  # read by setup.py


def current_directory() -> str:
    """The current directory; empty if it was deleted."""
    try:
        return os.getcwd()  # noqa: PTH109 - importing pathlib takes 4 ms
    except OSError:
        return ""


INITIAL_DIRECTORY = current_directory()  # at import; a program may change it before plugins are searched for


class Settings(NamedTuple):
    """The settings from the environment; None where a variable is not set."""

    backend: str | None = None
    plugins: bool = True
    plugins_allow: frozenset[str] | None = None
    num_threads: int | None = None
    force_isa: str | None = None


def normalise(distribution: str) -> str:
    """Normalise the name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_valid(distribution: str) -> bool:
    """Whether this is a valid name of a distribution (PEP 508)."""
    return re.fullmatch("[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", distribution) is not None


def read(environ: Mapping[str, str]) -> Settings:
    """Parse the variables; an empty one counts as not set.

    Raises
    ------
    ConfigurationError
        A value is invalid. The message lists the valid ones.
    """
    values = {name: environ.get(name) or None for name in ACCEPTED}

    def check(name: str, is_valid_value: bool) -> None:
        if values[name] is not None and not is_valid_value:
            raise ConfigurationError(f"{name} is {values[name]!r}; accepted: {ACCEPTED[name]}")

    name = values["LSM_BACKEND"] or ""
    check("LSM_BACKEND", name == name.strip() and name.isprintable())
    check("LSM_PLUGINS", values["LSM_PLUGINS"] in ("on", "off"))
    allowed = [name.strip() for name in (values["LSM_PLUGINS_ALLOW"] or "").split(",")]
    check("LSM_PLUGINS_ALLOW", all(map(is_valid, allowed)))
    threads = values["LSM_NUM_THREADS"] or ""
    check("LSM_NUM_THREADS", re.fullmatch("[0-9]{1,9}", threads) is not None and int(threads) > 0)
    check("LSM_FORCE_ISA", values["LSM_FORCE_ISA"] in ISA_LEVELS)
    return Settings(
        backend=values["LSM_BACKEND"],
        plugins=values["LSM_PLUGINS"] != "off",
        plugins_allow=frozenset(map(normalise, allowed)) if values["LSM_PLUGINS_ALLOW"] else None,
        num_threads=int(threads) if threads else None,
        force_isa=values["LSM_FORCE_ISA"],
    )


@cache
def settings() -> Settings:
    """The settings of this process, read on first use."""
    return read(os.environ)
