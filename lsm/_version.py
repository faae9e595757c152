"""The name and the version of the distribution, in the one place where they are written."""

__version__ = "0.1.0"

# What pip installs; the import name and the command are lsm, which on the package index is another project.
DISTRIBUTION = "lsm-softmax"


def install_command(extra: str) -> str:
    """What to type for one of the extras."""
    return f"python -m pip install '{DISTRIBUTION}[{extra}]'"
