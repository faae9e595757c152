"""Where PyInstaller finds its hook for lsm; the entry point `hook-dirs` names this function."""

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folders with hooks."""
    return [str(Path(__file__).parent)]
