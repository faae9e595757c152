"""Find the entry points of backends in installed distributions, without running any of their code.

``importlib.metadata`` finds the distributions. Their names and versions are those in METADATA or PKG-INFO, and
``entrypoints`` reads the entry points. The result is that of ``importlib.metadata.entry_points``, except:

- The current directory is not searched: files there are not installed.
- As in pip, a folder or metadata with an invalid name is ignored, such as ``~cme-1.0.dist-info`` from an interrupted
  uninstall.
- A distribution hides those further down the path with the same name in the metadata, not in the name of the folder.
- Of two versions in one folder, the higher one counts, not the one listed first by the file system.
- Metadata that mention the group but cannot be read, or repeat an entry point, are reported.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import Any, NamedTuple

from lsm._config import INITIAL_DIRECTORY, current_directory, is_valid, normalise
from lsm._signals import ignoring, reraise_from_handler
from lsm._texts import describe_error, printable

GROUP = "lsm.backends"
_MAX_NAME_CHARS = 100


class EntryPoint(NamedTuple):
    """An entry point of a distribution.

    `value` is "module:attribute". `problem` is the reason why a metadata file that mentions the group cannot be read.
    """

    name: str
    distribution: str
    version: str
    file: str
    value: str
    problem: str = ""

    def load(self) -> Any:
        """Import the module and get the object."""
        module, _, path = self.value.partition(":")
        target: Any = import_module(module)
        for attribute in path.split(".") if path else ():
            target = getattr(target, attribute)
        return target


class _Installed(NamedTuple):
    """A distribution in one entry of the path."""

    name: str
    version: str
    file: str  # of its entry points, whether or not it exists
    entry_points: list[EntryPoint]


def find(path: list[str] | None = None) -> list[EntryPoint]:
    """All entry points of the group on a path (default: sys.path), sorted by name and distribution."""
    found: list[EntryPoint] = []
    hidden: set[str] = set()
    for entry in map(str, sys.path if path is None else path):
        if not entry or (path is None and _is_current(entry)):
            continue
        for distribution in _installed(entry):
            name = normalise(distribution.name)
            if name not in hidden:
                hidden.add(name)
                found += distribution.entry_points
    return sorted(found, key=lambda item: (item.name, normalise(item.distribution)))


def matches(requested: str, name: str, distribution: str) -> bool:
    """Whether "name" or "distribution/name", the distribution in any spelling, refers to this backend."""
    prefix, slash, requested_name = requested.rpartition("/")
    return requested_name == name and (not slash or normalise(prefix) == normalise(distribution))


def _is_current(entry: str) -> bool:
    """Whether this is the current directory, now or when lsm was imported."""
    for here in (INITIAL_DIRECTORY, current_directory()):
        with ignoring(OSError):
            if here and os.path.samefile(entry, here):  # noqa: PTH121
                return True
    return False


def _installed(entry: str) -> list[_Installed]:
    """The distributions in a folder or archive, higher versions first."""
    items = []
    with ExitStack() as opened:
        for distribution in _distributions(entry, opened):
            folder = _folder(distribution)
            name, version = _read_name_and_version(distribution)
            if folder is not None:
                # "name-1.0" or "name-1.0-py3.11"; the name may contain hyphens, although it should not.
                of_folder, rest = re.fullmatch(r"(.*?)(?:-(\d.*))?", _stem(str(folder), entry), re.DOTALL).groups()  # type: ignore[union-attr]
                if not is_valid(of_folder):
                    continue
                name, version = name or of_folder, version or (rest or "").partition("-")[0]
            if is_valid(name):
                file = entry if folder is None else str(folder.joinpath("entry_points.txt"))
                found = _entry_points(distribution, name, printable(version), file)
                items.append(_Installed(name, version, file, found))
    items.sort(key=lambda item: item.file)  # .dist-info before .egg-info
    return sorted(items, key=lambda item: _version_key(item.version), reverse=True)


def _version_key(version: str) -> tuple[Any, ...]:
    """The key that orders versions, as far as that matters within one folder (PEP 440)."""
    epoch, release, rest = re.fullmatch(r"(?:(\d+)!)?([\d.]*)(.*)", version, re.DOTALL).groups()  # type: ignore[union-attr]
    numbers = tuple(int(n) for n in release.split(".") if n)
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    phases = {"dev": -4, "a": -3, "b": -2, "rc": -1, "c": -1, "post": 1}
    phase, number = re.match(r"[-_.]?([a-z]*)[-_.]?(\d*)", rest.lower()).groups()  # type: ignore[union-attr]
    return int(epoch or 0), numbers, phases.get(phase, 0), int(number or 0)


def _distributions(entry: str, opened: ExitStack) -> list[Any]:
    from importlib import metadata  # takes 20 ms, too slow for `import lsm`

    if os.path.isfile(entry):  # noqa: PTH113
        # The standard finder would leave the archive open, which causes a ResourceWarning.
        return list(map(metadata.PathDistribution, _in_archive(entry, opened)))
    standard = metadata.MetadataPathFinder()
    standard.invalidate_caches()  # the cache relies on time stamps, whose resolution is coarse
    try:
        return list(metadata.distributions(path=[entry]))
    except Exception as error:  # raised by a finder of another package
        reraise_from_handler(error)
        return list(standard.find_distributions(metadata.DistributionFinder.Context(path=[entry])))


def _in_archive(entry: str, opened: ExitStack) -> Iterator[Any]:
    """The metadata folders in a zip file, which stays open until `opened` exits; none in other files."""
    import zipfile

    try:
        archive = opened.enter_context(zipfile.ZipFile(entry))
    except Exception as error:
        reraise_from_handler(error)
        return
    suffixes = (".dist-info", ".egg-info", "/egg-info" if entry.lower().endswith(".egg") else ".egg-info")
    for name in dict.fromkeys(name.partition("/")[0] for name in archive.namelist()):
        if f"/{name}".lower().endswith(suffixes):
            yield zipfile.Path(archive).joinpath(name)


def _folder(distribution: Any) -> Any:
    """The metadata folder, on disk or in an archive; None if the distribution is from another package's finder.

    ``importlib.metadata`` has no public access to it, nor to the path and the bytes of its files.
    """
    folder = getattr(distribution, "_path", None)
    return folder if hasattr(folder, "joinpath") else None


def _stem(folder: str, entry: str) -> str:
    """The name of a metadata folder, or of the egg that contains it, without its suffix: "name-version"."""
    name = re.split(r"[/\\]", folder.rstrip("/\\"))[-1]
    is_in_egg = name.lower() == "egg-info"
    return (re.split(r"[/\\]", entry.rstrip("/\\"))[-1] if is_in_egg else name).rpartition(".")[0]


def _read(distribution: Any, name: str) -> bytes:
    """The contents of a metadata file; empty if there is none."""
    folder = _folder(distribution)
    if folder is None:
        return (distribution.read_text(name) or "").encode()
    with ignoring(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, KeyError):
        data: bytes = folder.joinpath(name).read_bytes()
        return data
    return b""


def _read_name_and_version(distribution: Any) -> tuple[str, str]:
    """The name and the version in the metadata; empty if missing."""
    data = b""
    for file in ("METADATA", "PKG-INFO", ""):  # of a wheel; of a source tree or an egg; an .egg-info that is a file
        with ignoring(Exception):  # an unreadable file counts as missing
            data = data or _read(distribution, file)
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n"):
        field, colon, value = line.partition(":")
        if line[:1] in (" ", "\t"):  # continues a field
            continue
        if not colon:  # the fields have ended; a description may follow
            break
        fields.setdefault(field.lower(), value.strip())
    return fields.get("name", ""), fields.get("version", "")


def _entry_points(distribution: Any, name: str, version: str, file: str) -> list[EntryPoint]:
    """The entry points of one distribution, or one item with the problem of the file."""
    try:
        data = _read(distribution, "entry_points.txt")
        if GROUP.encode() not in data.replace(b"\0", b""):  # also finds it in UTF-16, which is invalid and reported
            return []
        points = _parse(data.decode())
    except Exception as error:
        reraise_from_handler(error)
        return [EntryPoint("?", name, version, file, "", f"its metadata file cannot be read: {describe_error(error)}")]
    return [_with_valid_name(EntryPoint(key, name, version, file, value)) for key, value in points.items()]


def _parse(text: str) -> dict[str, str]:
    """The entry points of the group, as "module:attribute"; raises on errors that `importlib.metadata` ignores."""
    import entrypoints

    parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",), interpolation=None, default_section="")
    parser.read_string("\n".join(map(str.strip, text.splitlines())))
    return {name: _value(text) for name, text in parser[GROUP].items()} if parser.has_section(GROUP) else {}


def _value(text: str) -> str:
    import entrypoints

    try:
        point = entrypoints.EntryPoint.from_string(re.sub(r"\s*:\s*", ":", text), "")
    except entrypoints.BadEntryPoint:
        return text  # loading it reports the error
    return f"{point.module_name}:{point.object_name}" if point.object_name else str(point.module_name)


def _with_valid_name(item: EntryPoint) -> EntryPoint:
    """The item; with a problem instead of the name if that is too long, not printable, or contains a slash."""
    if len(item.name) <= _MAX_NAME_CHARS and item.name.isprintable() and "/" not in item.name:
        return item
    shown = printable(item.name[:_MAX_NAME_CHARS])
    problem = (
        f"an entry point has a name of {len(item.name)} characters, '{shown}'; "
        f"accepted: at most {_MAX_NAME_CHARS} printable characters without a slash"
    )
    return item._replace(name="?", problem=problem)
