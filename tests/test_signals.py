"""What a signal handler raises passes through: it is no fault of the plugin, file or array that it interrupts."""

import functools
import importlib.metadata
import signal
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import lsm
from lsm import _cgroup, _check, _texts
from lsm._conformance import run as kit
from lsm.backends import discovery
from lsm.backends.candidate import Candidate
from lsm.backends.discovery import EntryPoint

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")


class StopError(Exception):
    pass


class Hard(BaseException):
    pass


ERRORS = (StopError, Hard, TimeoutError, SystemExit, ImportError, ValueError)


class Raiser:
    """What a signal raises, once, in each form of a handler."""

    def __init__(self, error):
        self.error, self.is_armed = error, True

    def __call__(self, number, frame):
        return self.handle(number, frame)

    def handle(self, number, frame):
        if self.is_armed:
            self.is_armed = False
            raise self.error


@pytest.fixture(params=["function", "method", "partial", "object"])
def form(request):
    return request.param


@pytest.fixture
def arm():
    """Install a handler that raises this error at the next `interrupt`."""

    def install(error, form="function"):
        raiser = Raiser(error)
        forms = {
            "function": lambda number, frame: raiser.handle(number, frame),
            "method": raiser.handle,
            "partial": functools.partial(raiser.handle),
            "object": raiser,
        }
        signal.signal(signal.SIGUSR1, forms[form])

    before = signal.getsignal(signal.SIGUSR1)
    yield install
    signal.signal(signal.SIGUSR1, before)


def interrupt(*args, **kwargs):
    signal.raise_signal(signal.SIGUSR1)
    raise OSError("not reached")


PLUGIN = """
import signal
{interrupt}
class Mine:
    name, api_version, devices, dtypes, array_types = "acme", 1, ("cpu",), ("float32",), ("numpy.ndarray",)
    def available(self): {available}
    def log_softmax(self, x, axis, out): out[...] = 42
    def log_softmax_backward(self, dy, y, axis, out): pass
backend = Mine()
"""
RAISE = "signal.raise_signal(signal.SIGUSR1)"
WRAPPED = f"try:\n    {RAISE}\nexcept BaseException:\n    raise ImportError('no libacme')"


@pytest.fixture
def candidate(request, tmp_path, monkeypatch):
    """A plugin whose import or available() a signal interrupts."""
    monkeypatch.syspath_prepend(tmp_path)
    interrupted, available = request.param
    (tmp_path / "acme_signals.py").write_text(PLUGIN.format(interrupt=interrupted, available=available))
    yield Candidate(EntryPoint("acme", "acme-lsm", "1.0", "entry_points.txt", "acme_signals:backend"))
    sys.modules.pop("acme_signals", None)


WAYS = {"import": (RAISE, "return None"), "wrapped": (WRAPPED, "return None"), "available": ("", f"return {RAISE}")}


@pytest.mark.parametrize("candidate", WAYS.values(), ids=WAYS, indirect=True)
@pytest.mark.parametrize("error", ERRORS)
def test_a_plugin_can_be_loaded_after_it_was_interrupted(candidate, error, arm, form):
    arm(error, form)
    with pytest.raises(error) as caught:
        candidate.load()
    assert type(caught.value) is error and candidate.state == "discovered" and candidate.error is None
    assert candidate.load().name == "acme"


def test_a_plugin_that_raises_by_itself_is_blamed(tmp_path, monkeypatch, arm):
    arm(StopError)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_raises.py").write_text("raise TimeoutError('no licence server')")
    with pytest.raises(lsm.BackendUnavailableError, match="TimeoutError: no licence server"):
        Candidate(EntryPoint("acme", "acme-lsm", "1.0", "entry_points.txt", "acme_raises:backend")).load()


class Own:
    """A backend whose methods a signal interrupts."""

    name, api_version, devices, dtypes, array_types = "acme", 1, ("cpu",), ("float32",), ("numpy.ndarray",)

    def available(self):
        return None

    def log_softmax(self, *args):
        interrupt()

    log_softmax_backward = log_softmax


@pytest.mark.parametrize("error", ERRORS)
def test_a_call_of_a_plugin(installed, error, arm):
    installed(Own())
    arm(error)
    with pytest.raises(error):
        lsm.log_softmax(np.zeros(3, "f4"), backend="acme")
    with pytest.raises(lsm.BackendFailedError, match="not reached"):  # the handler raises once
        lsm.log_softmax(np.zeros(3, "f4"), backend="acme")


@pytest.mark.parametrize("error", ERRORS)
def test_a_case_of_the_kit(installed, error, arm):
    installed(Own())
    todo = [case for case in kit.cases("acme") if case.check.title == "forward: ordinary frames"]
    arm(error)
    with pytest.raises(error):
        kit.run(todo[0])


class Metadata:
    read_text = staticmethod(interrupt)


def in_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZipFile", interrupt)
    with ExitStack() as stack:
        list(discovery._in_archive(str(tmp_path), stack))


def with_a_finder(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", interrupt)
    with ExitStack() as stack:
        discovery._distributions(str(tmp_path), stack)


def current(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery.os.path, "samefile", interrupt)
    discovery._is_current(str(tmp_path))


def read_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", interrupt)
    discovery._read(importlib.metadata.PathDistribution(tmp_path), "METADATA")


def quota(tmp_path, monkeypatch):
    monkeypatch.setattr(_cgroup, "_lines", interrupt)
    _cgroup.cgroup_quota()


class UnprintableError(Exception):
    __str__ = interrupt


READS = {
    "name and version": lambda *_: discovery._read_name_and_version(Metadata),
    "entry points": lambda *_: discovery._entry_points(Metadata, "acme", "1.0", "entry_points.txt"),
    "an archive": in_archive,
    "a finder": with_a_finder,
    "the current directory": current,
    "a file": read_bytes,
    "the quota": quota,
    "an error's text": lambda *_: _texts.describe_error(UnprintableError()),
    "a dtype": lambda *_: _check.result_dtype("float32", type("D", (), {"dtype": property(interrupt)})()),
    "__array__": lambda *_: lsm.log_softmax(type("A", (), {"__array__": interrupt})()),
    "__dlpack_device__": lambda *_: lsm.log_softmax(type("A", (), {"__dlpack_device__": interrupt})()),
    "__dlpack__": lambda *_: lsm.log_softmax(
        type("A", (), {"__dlpack_device__": lambda self: (1, 0), "__dlpack__": interrupt})()
    ),
}


@pytest.mark.parametrize("error", [StopError, TimeoutError, PermissionError, ValueError])
@pytest.mark.parametrize("read", READS)
def test_what_is_read_or_asked(read, error, arm, tmp_path, monkeypatch):
    arm(error)
    with pytest.raises(error) as caught:
        READS[read](tmp_path, monkeypatch)
    assert type(caught.value) is error and "lsm" not in str(caught.value)
