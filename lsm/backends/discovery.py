"""Find the backends that installed distributions announce, running none of their code."""

import itertools
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lsm._config import normalise
from lsm._texts import printable, told
from lsm._version import DISTRIBUTION

GROUP = "lsm.backends"
_LONGEST_NAME = 100  # characters of a backend's name


class Found(NamedTuple):
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


def find(path: list[str] | None = None) -> list[Found]:
    """Every entry point of the group, sorted by name and distribution.

    The folders of sys.path are read one by one with ``entrypoints``. A folder in which that raises, since
    one file in it is malformed, is read with the standard library, file by file. A distribution that comes
    first on the path hides one of the same name further down. The current directory is not searched:
    what happens to lie there was not installed.
    """
    found: dict[tuple[str, str], Found] = {}
    hidden: set[str] = set()
    for folder in sys.path if path is None else path:
        if not folder and path is not None:
            continue
        folder = str(folder) or _current()
        in_folder = _read_folder(folder)
        if path is None and _is_current(folder):  # lsm itself may have been installed there
            in_folder = [item for item in in_folder if normalise(item.distribution) == DISTRIBUTION]
        for item in map(_named, map(_spelt, in_folder)):
            if normalise(item.distribution) not in hidden:
                found.setdefault((normalise(item.distribution), item.name), item)
        hidden.update(normalise(item.distribution) for item in in_folder)
    return sorted(found.values(), key=lambda item: (item.name, normalise(item.distribution)))


def is_meant(asked: str, name: str, distribution: str) -> bool:
    """Whether "name" or "distribution/name", the distribution in any spelling, asks for this backend."""
    of, slash, asked_name = asked.rpartition("/")
    return asked_name == name and (not slash or normalise(of) == normalise(distribution))


def _spelt(item: Found) -> Found:
    """The same with the distribution as its metadata spell it: a file's name has underscores for hyphens.

    Any other name that they state is not believed: LSM_PLUGINS_ALLOW goes by it, and so do lsm's own backends.
    """
    stated = _stated(item.file, "Name")
    is_the_same = normalise(stated) == normalise(item.distribution) and stated.isascii() and stated.isprintable()
    return item._replace(distribution=stated) if is_the_same else item


def _named(item: Found) -> Found:
    """The same, or a fault with no name if the name could not be shown, or taken for "distribution/name"."""
    if len(item.name) <= _LONGEST_NAME and item.name.isprintable() and "/" not in item.name:
        return item
    shown = printable(item.name[:_LONGEST_NAME])
    problem = (
        f"an entry point has a name of {len(item.name)} characters, '{shown}'; "
        f"accepted: at most {_LONGEST_NAME}, all of them printable and none a slash"
    )
    return item._replace(name="?", problem=problem)


def _current() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it has been removed
        return ""


_STARTED_IN = _current()


def _is_current(folder: str) -> bool:
    """Whether this is the current directory, or was it when lsm was imported."""
    for here in (_STARTED_IN, _current()):
        with suppress(OSError):
            if here and Path(folder).samefile(here):
                return True
    return False


def _read_folder(folder: str) -> list[Found]:
    """The entry points that the distributions in one folder (or zip file) announce, in no order but their own."""
    import entrypoints

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of an entry point that is none it only warns
            points = entrypoints.get_group_all(GROUP, path=[folder])
    except Exception:
        return _read_folder_by_file(folder)
    items = []
    for point in points:
        name, version = point.distro.name, point.distro.version or ""
        value = point.module_name + (f":{point.object_name}" if point.object_name else "")
        file = _metadata_file(folder, name, version)
        items.append(Found(point.name, name, version or _stated(file, "Version"), file, value))
    return sorted(items, key=lambda item: (item.distribution, item.version, item.name), reverse=True)


def _metadata_file(folder: str, name: str, version: str) -> str:
    stem = f"{name}-{version}" if version else name
    for suffix in (".dist-info", ".egg-info"):
        file = Path(folder, stem + suffix, "entry_points.txt")
        if file.exists():
            return str(file)
    return folder


def _stated(file: str, field: str) -> str:
    """What the metadata beside a file of entry points state, as in `Name: lsm-torch`; empty if they do not."""
    for metadata in ("METADATA", "PKG-INFO"):  # of a wheel; of a source tree, whose name has no version
        with suppress(OSError), Path(file).with_name(metadata).open(encoding="utf-8", errors="replace") as lines:
            for line in itertools.takewhile(str.strip, lines):  # a description may follow, after an empty line
                if line.lower().startswith(f"{field.lower()}:"):
                    return line.partition(":")[2].strip()
    return ""


def _read_folder_by_file(folder: str) -> list[Found]:
    """The same with the standard library, file by file: one that is malformed is reported, and ends nothing."""
    from importlib import metadata  # 20 ms, for a case that is rare

    items = []
    for distribution in metadata.distributions(path=[folder]):
        directory = Path(str(getattr(distribution, "_path", folder)))
        file = str(directory / "entry_points.txt")
        name, _, version = directory.stem.partition("-")
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if GROUP not in text:
                continue
            points = _parsed(text)
        except Exception as error:
            if not isinstance(error, UnicodeError) or _mentions_group(Path(file)):
                what = f"its metadata file cannot be read: {told(error)}"
                items.append(Found("?", name, version, file, "", what))
            continue
        items += [Found(key, name, version, file, value.partition("[")[0].strip()) for key, value in points.items()]
    return sorted(items, key=lambda item: (item.distribution, item.version, item.name), reverse=True)


def _parsed(text: str) -> dict[str, str]:
    """The entry points of the group; raises for what the standard library overlooks, such as a name twice."""
    from configparser import ConfigParser

    parser = ConfigParser(delimiters=("=",), interpolation=None, default_section="")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return dict(parser[GROUP]) if parser.has_section(GROUP) else {}


def _mentions_group(file: Path) -> bool:
    try:
        return GROUP.encode() in file.read_bytes()
    except OSError:
        return False
