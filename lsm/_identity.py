"""Copy owner, group, permissions and extended attributes to the file that replaces another."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACL = "system.posix_acl_access"
# These describe the contents, which are new: capabilities of a program, and signatures.
OF_CONTENTS = ("security.capability", "security.ima", "security.evm")


def copy_metadata(old: Path, new: int | Path) -> str:
    """Copy the metadata of a file to a new one; returns a text that lists everything that could not be copied.

    Access is never widened: the new file starts out accessible to its owner only, permissions are set last, and they
    exclude access that depends on a group or access control list that could not be copied. setuid is dropped.
    """
    try:
        was = old.stat()
    except FileNotFoundError:  # deleted in the meantime
        return ""
    now = os.stat(new)  # noqa: PTH116 (it may be a descriptor)
    kept = mode = stat.S_IMODE(was.st_mode) & 0o777
    lost = []
    has_group = was.st_gid == now.st_gid or _succeeds(os.chown, new, -1, was.st_gid)
    if not has_group:
        lost.append(f"group {was.st_gid}")
        both = kept >> 3 & kept & 0o7  # members of the old group are now "others", and vice versa
        kept = kept & 0o700 | both << 3 | both
    if was.st_uid != now.st_uid and not _succeeds(os.chown, new, was.st_uid, -1):
        lost.append(f"owner {was.st_uid}")
    attributes = _attributes(old)
    for name in attributes:
        # The group entry of a list would apply to another group.
        if (name == ACL and not has_group) or not _succeeds(_copy_attribute, old, new, name):
            lost.append(f"attribute {name}")
            kept = kept & 0o700 if name == ACL else kept
    # A directory may have a default list for new files.
    if ACL not in attributes and ACL in _attributes(new) and not _succeeds(os.removexattr, new, ACL):
        kept &= 0o700
    if not _succeeds(os.chmod, new, kept):
        kept = stat.S_IMODE(os.stat(new).st_mode)  # noqa: PTH116
    return ", ".join(lost + [f"permissions {mode:04o} (now {kept:04o})"] * (kept != mode))


def _succeeds(function: Callable[..., None], *args: Any) -> bool:
    try:
        function(*args)
    except OSError:
        return False
    return True


def _attributes(file: int | Path) -> list[str]:
    """The names of the extended attributes to copy; none where they are not supported."""
    try:
        return [name for name in os.listxattr(file) if name not in OF_CONTENTS]
    except (AttributeError, OSError):
        return []


def _copy_attribute(old: Path, new: int | Path, name: str) -> None:
    value = os.getxattr(old, name)
    if name not in _attributes(new) or os.getxattr(new, name) != value:
        os.setxattr(new, name, value)
