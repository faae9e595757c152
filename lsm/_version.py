"""The name and the version of the distribution."""

__version__ = "0.1.0"

# The name for pip. The import name and the command are lsm; on the package index, lsm is another project.
DISTRIBUTION = "lsm-softmax"


def install_command(extra: str) -> str:
    """The command that installs one of the extras."""
    return f"python -m pip install '{DISTRIBUTION}[{extra}]'"
