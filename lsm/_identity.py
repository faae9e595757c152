"""What a file is to others (owner, group, permissions, extended attributes), for the file that takes its place."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACL = "system.posix_acl_access"
# These belong to the contents, which are new: the rights of a program, and signatures.
OF_CONTENTS = ("security.capability", "security.ima", "security.evm")


def copy_metadata(old: Path, new: int | Path) -> str:
    """Give a new file what the old one has; say what could not be given, or nothing.

    Access never becomes wider: the new file comes here closed to all but its owner, its permissions are set last, and
    they leave out what rests on a group or an access control list that it could not be given. setuid is dropped.
    """
    try:
        was = old.stat()
    except FileNotFoundError:  # removed meanwhile
        return ""
    now = os.stat(new)  # noqa: PTH116 (it may be a descriptor)
    kept = mode = stat.S_IMODE(was.st_mode) & 0o777
    lost = []
    has_group = was.st_gid == now.st_gid or _succeeds(os.chown, new, -1, was.st_gid)
    if not has_group:
        lost.append(f"group {was.st_gid}")
        both = kept >> 3 & kept & 0o7  # who was in the group is now among the others, and the other way round
        kept = kept & 0o700 | both << 3 | both
    if was.st_uid != now.st_uid and not _succeeds(os.chown, new, was.st_uid, -1):
        lost.append(f"owner {was.st_uid}")
    wanted = _attributes(old)
    for name in wanted:
        # The entry of a list for "the group" would mean another group.
        if (name == ACL and not has_group) or not _succeeds(_copy_attribute, old, new, name):
            lost.append(f"attribute {name}")
            kept = kept & 0o700 if name == ACL else kept
    # A directory may give new files a list of its own.
    if ACL not in wanted and ACL in _attributes(new) and not _succeeds(os.removexattr, new, ACL):
        kept &= 0o700
    if not _succeeds(os.chmod, new, kept):
        kept = stat.S_IMODE(os.stat(new).st_mode)  # noqa: PTH116
    return ", ".join(lost + [f"permissions {mode:04o} (they are now {kept:04o})"] * (kept != mode))


def _succeeds(function: Callable[..., None], *args: Any) -> bool:
    try:
        function(*args)
    except OSError:
        return False
    return True


def _attributes(file: int | Path) -> list[str]:
    """The names of the extended attributes to keep; none where there are no such attributes."""
    try:
        return [name for name in os.listxattr(file) if name not in OF_CONTENTS]
    except (AttributeError, OSError):
        return []


def _copy_attribute(old: Path, new: int | Path, name: str) -> None:
    value = os.getxattr(old, name)
    if name not in _attributes(new) or os.getxattr(new, name) != value:
        os.setxattr(new, name, value)
