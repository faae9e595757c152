"""The name and the version of the distribution, in the one place where they are written."""

__version__ = "0.1.0"

# What pip installs; `import lsm` and the command are called lsm. The name lsm on the package index is another project's.
DISTRIBUTION = "lsm-softmax"


def install_command(extra: str) -> str:
    """What to type for one of the extras."""
    return f"python -m pip install '{DISTRIBUTION}[{extra}]'"
