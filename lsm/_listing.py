"""The output of `lsm backends`: all backends with their state, the kernels, and the environment."""

import os
import textwrap
from collections.abc import Iterator
from typing import Any

import lsm
from lsm._config import ACCEPTED, BUILD_VARIABLES, normalise
from lsm.backends import _levels
from lsm.backends.base import DEFAULT_MAX_ULP
from lsm.backends.discovery import matches


def status() -> dict[str, Any]:
    """The whole status, as for JSON; loads all backends."""
    return {
        "lsm": lsm.__version__,
        "kernels": _kernel_level(),
        "num_threads": lsm.get_num_threads(),
        "environment": dict.fromkeys(ACCEPTED)
        | {name: value for name, value in sorted(os.environ.items()) if name.startswith("LSM_")},
        "backends": [info._asdict() for info in lsm.list_backends()],
    }


def _kernel_level() -> str | None:
    """The instruction level of the compiled kernels; None if they cannot be used."""
    try:
        return str(_levels.kernels()["level"])
    except lsm.BackendUnavailableError:
        return None


def lines(status: dict[str, Any], n_columns: int) -> Iterator[str]:
    """Format the status as text: names, states and devices in columns, the reason and the file below."""
    yield f"lsm {status['lsm']}, kernels: {status['kernels'] or 'none'}, threads: {status['num_threads']}"
    for name, value in status["environment"].items():
        if value is not None:
            note = _note(name, value, status["backends"])
            yield f"{name}={value}" + (f"  ({note})" if note else "")
    yield from textwrap.wrap(
        f"not set: {', '.join(name for name, value in status['environment'].items() if value is None) or 'none'}",
        max(n_columns, 40),
        subsequent_indent=" " * 9,
    )
    yield ""
    heads = {"name": "NAME", "state": "STATE", "origin": "FROM", "devices": "DEVICES"}
    rows = [heads | {"dtypes": "DTYPES", "reason": "", "accuracy": "", "file": ""}]
    for info in status["backends"]:
        texts = {key: ", ".join(info[key]) or "-" for key in ("devices", "dtypes")}
        texts["accuracy"] = _other_bounds(info["max_ulp"])
        rows.append(info | texts | {"origin": f"{info['distribution']} {info['version']}".strip()})
    widths = {key: max(len(row[key]) for row in rows) for key in heads}
    below = " " * (widths["name"] + 2)
    for row in rows:
        start = "".join(f"{row[key]:<{width}}  " for key, width in widths.items())
        # Too long a line is better than a column of dtypes too narrow to read.
        yield from textwrap.wrap(
            row["dtypes"],
            max(n_columns, len(start) + 24),
            initial_indent=start,
            subsequent_indent=" " * len(start),
        )
        yield from textwrap.wrap(
            row["reason"], max(n_columns, 40), initial_indent=below, subsequent_indent=below, break_on_hyphens=False
        )
        if row["accuracy"]:
            yield below + row["accuracy"]
        if row["file"]:
            yield below + row["file"]  # not wrapped, so that it can be copied


def _note(variable: str, value: str, backends: list[dict[str, Any]]) -> str:
    """A likely mistake in the name or value of a variable; empty if there is none."""
    if variable not in (*ACCEPTED, *BUILD_VARIABLES):
        return "lsm has no such variable"
    if variable == "LSM_BACKEND":
        is_known = any(matches(value, info["name"], info["distribution"]) for info in backends)
        return "" if is_known else "no backend has this name"
    if variable == "LSM_PLUGINS_ALLOW":
        theirs = {normalise(info["distribution"]) for info in backends if not info["is_built_in"]}
        unknown = [name.strip() for name in value.split(",") if normalise(name.strip()) not in theirs]
        return f"no plugin is installed from {', '.join(unknown)}" if unknown else ""
    return ""


def _other_bounds(bounds: dict[str, float]) -> str:
    """The accuracy that a backend declares, if it differs from lsm's own."""
    others = {dtype: bound for dtype, bound in bounds.items() if bound != DEFAULT_MAX_ULP.get(dtype)}
    own = ", ".join(f"{dtype} {DEFAULT_MAX_ULP[dtype]:g}" for dtype in others if dtype in DEFAULT_MAX_ULP)
    declared = ", ".join(f"{dtype} {bound:g}" for dtype, bound in others.items())
    return f"accuracy in ulps: {declared} (lsm: {own or 'none'})" if others else ""
