"""Find the backends that installed distributions announce, running none of their code.

Which distributions there are is what ``importlib.metadata`` finds; the name and the version of each are those of its
METADATA or PKG-INFO; the entry points are read with ``entrypoints``. The result is that of
``importlib.metadata.entry_points``, apart from these differences:

- The current directory is not searched: what happens to lie there was not installed.
- A folder whose name starts with no valid name is no distribution, as pip has it: ``~cme-1.0.dist-info`` is what an
  interrupted uninstall leaves behind. Nor is one whose metadata state a name that is not valid.
- A distribution hides those further down the path that have the same name in their metadata, not in the folder's name.
- Of two versions in one folder, the higher one counts, not the one that the disk lists first.
- Metadata that mention the group and cannot be read, or name an entry point twice, are reported.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from itertools import takewhile
from typing import Any, NamedTuple

from lsm._config import INITIAL_DIRECTORY, current_directory, is_valid, normalise
from lsm._texts import describe_error, printable

GROUP = "lsm.backends"
_MAX_NAME_CHARS = 100  # characters of a backend's name


class EntryPoint(NamedTuple):
    """One line of a distribution's entry points.

    `value` is "module:attribute". `problem` says why a metadata file that mentions the group could not be read.
    """

    name: str
    distribution: str
    version: str
    file: str
    value: str
    problem: str = ""

    def load(self) -> Any:
        """Import the module and fetch the object."""
        module, _, path = self.value.partition(":")
        target: Any = import_module(module)
        for attribute in path.split(".") if path else ():
            target = getattr(target, attribute)
        return target


class _Installed(NamedTuple):
    """A distribution in one entry of the path."""

    name: str
    version: str
    file: str  # of its entry points, whether there is one or not
    entry_points: list[EntryPoint]


def find(path: list[str] | None = None) -> list[EntryPoint]:
    """Every entry point of the group on a path, sys.path if it is None, sorted by name and distribution."""
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


def matches(asked: str, name: str, distribution: str) -> bool:
    """Whether "name" or "distribution/name", the distribution in any spelling, asks for this backend."""
    of, slash, asked_name = asked.rpartition("/")
    return asked_name == name and (not slash or normalise(of) == normalise(distribution))


def _is_current(entry: str) -> bool:
    """Whether this is the current directory, or was it when lsm was imported."""
    for here in (INITIAL_DIRECTORY, current_directory()):
        with suppress(OSError):
            if here and os.path.samefile(entry, here):  # noqa: PTH121
                return True
    return False


def _installed(entry: str) -> list[_Installed]:
    """The distributions in a folder or archive, of two versions the higher one first."""
    items = []
    with ExitStack() as opened:
        for distribution in _distributions(entry, opened):
            folder = _folder(distribution)
            name, version = _read_name_and_version(distribution)
            if folder is not None:
                of_folder, _, rest = _stem(str(folder), entry).partition("-")
                if not is_valid(of_folder):
                    continue
                name, version = name or of_folder, version or rest.partition("-")[0]  # "1.0-py3.11" of an egg
            if is_valid(name):
                file = entry if folder is None else str(folder.joinpath("entry_points.txt"))
                found = _entry_points(distribution, name, printable(version), file)
                items.append(_Installed(name, version, file, found))
    items.sort(key=lambda item: item.file)  # .dist-info before .egg-info
    return sorted(items, key=lambda item: [n.zfill(20) for n in re.findall(r"\d+", item.version)], reverse=True)


def _distributions(entry: str, opened: ExitStack) -> list[Any]:
    from importlib import metadata  # 20 ms, which `import lsm` must not take

    if os.path.isfile(entry):  # noqa: PTH113
        # The finder would do, but leave the archive open, and the garbage collector to warn of that.
        return list(map(metadata.PathDistribution, _in_archive(entry, opened)))
    standard = metadata.MetadataPathFinder()
    standard.invalidate_caches()  # it takes a folder for unchanged if its time stamp is, which is coarse
    try:
        return list(metadata.distributions(path=[entry]))
    except Exception:  # from a finder of another package
        return list(standard.find_distributions(metadata.DistributionFinder.Context(path=[entry])))


def _in_archive(entry: str, opened: ExitStack) -> Iterator[Any]:
    """The folders of metadata in a zip file, which stays open until `opened` is left; none in another file."""
    import zipfile

    try:
        archive = opened.enter_context(zipfile.ZipFile(entry))
    except Exception:
        return
    suffixes = (".dist-info", ".egg-info", "/egg-info" if entry.lower().endswith(".egg") else ".egg-info")
    for name in dict.fromkeys(name.partition("/")[0] for name in archive.namelist()):
        if f"/{name}".lower().endswith(suffixes):
            yield zipfile.Path(archive).joinpath(name)


def _folder(distribution: Any) -> Any:
    """The folder of the metadata, on disk or in an archive; None if another package's finder gave the distribution.

    ``importlib.metadata`` has no public name for it, and nothing else that leads to the file and its bytes.
    """
    folder = getattr(distribution, "_path", None)
    return folder if hasattr(folder, "joinpath") else None


def _stem(folder: str, entry: str) -> str:
    """What a folder of metadata is called, without its suffix: "name-version"; of one in an egg, the egg is asked."""
    name = re.split(r"[/\\]", folder.rstrip("/\\"))[-1]
    is_in_egg = name.lower() == "egg-info"
    return (re.split(r"[/\\]", entry.rstrip("/\\"))[-1] if is_in_egg else name).rpartition(".")[0]


def _read(distribution: Any, name: str) -> bytes:
    """A file of the metadata; empty if there is none."""
    folder = _folder(distribution)
    if folder is None:
        return (distribution.read_text(name) or "").encode()
    with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, KeyError):
        data: bytes = folder.joinpath(name).read_bytes()
        return data
    return b""


def _read_name_and_version(distribution: Any) -> tuple[str, str]:
    """The name and the version that the metadata state; empty where they state none."""
    data = b""
    for file in ("METADATA", "PKG-INFO", ""):  # of a wheel; of a source tree or an egg; an .egg-info that is a file
        with suppress(Exception):  # what cannot be read states nothing
            data = data or _read(distribution, file)
    fields: dict[str, str] = {}
    for line in takewhile(str.strip, data.decode("utf-8", "replace").splitlines()):  # a description may follow
        field, _, value = line.partition(":")
        fields.setdefault(field.lower(), value.strip())
    return fields.get("name", ""), fields.get("version", "")


def _entry_points(distribution: Any, name: str, version: str, file: str) -> list[EntryPoint]:
    """The entry points of one distribution, or one item with the problem of its file."""
    try:
        data = _read(distribution, "entry_points.txt")
        if GROUP.encode() not in data.replace(b"\0", b""):  # UTF-16, which is not allowed, has a zero in each character
            return []
        points = _parse(data.decode())
    except Exception as error:
        return [EntryPoint("?", name, version, file, "", f"its metadata file cannot be read: {describe_error(error)}")]
    return [_with_valid_name(EntryPoint(key, name, version, file, value)) for key, value in points.items()]


def _parse(text: str) -> dict[str, str]:
    """The entry points of the group, as "module:attribute"; raises for what `importlib.metadata` overlooks."""
    import entrypoints

    parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",), interpolation=None, default_section="")
    parser.read_string("\n".join(map(str.strip, text.splitlines())))
    return {name: _value(text) for name, text in parser[GROUP].items()} if parser.has_section(GROUP) else {}


def _value(text: str) -> str:
    import entrypoints

    try:
        point = entrypoints.EntryPoint.from_string(re.sub(r"\s*:\s*", ":", text), "")
    except entrypoints.BadEntryPoint:
        return text  # loading it says what is wrong
    return f"{point.module_name}:{point.object_name}" if point.object_name else str(point.module_name)


def _with_valid_name(item: EntryPoint) -> EntryPoint:
    """The same, or a fault with no name if the name could not be shown, or taken for "distribution/name"."""
    if len(item.name) <= _MAX_NAME_CHARS and item.name.isprintable() and "/" not in item.name:
        return item
    shown = printable(item.name[:_MAX_NAME_CHARS])
    problem = (
        f"an entry point has a name of {len(item.name)} characters, '{shown}'; "
        f"accepted: at most {_MAX_NAME_CHARS}, all of them printable and none a slash"
    )
    return item._replace(name="?", problem=problem)
