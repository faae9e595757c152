"""Fixtures for `pytest benchmarks`: the cases and implementations of lsm.bench, made once for all benchmarks."""

import gc
import warnings
from dataclasses import replace

import pytest

import lsm
from lsm.bench import peers
from lsm.bench.data import Data
from lsm.bench.machine import equal_threads, possible_threads
from lsm.bench.options import SCALE, SETS, OptionError, Options
from lsm.bench.run import shrunk
from lsm.bench.workloads import cases

LISTS = {"only": "parts of names of workloads", "implementations": "parts of names of implementations"}


def pytest_addoption(parser):
    group = parser.getgroup("lsm")
    group.addoption("--bench-set", choices=SETS, default="quick", help="set of workloads (default: quick)")
    group.addoption("--bench-threads", type=int, help="threads of each implementation (default: those of lsm)")
    for name, about in LISTS.items():
        group.addoption(f"--bench-{name}", default="", metavar="NAME,...", help=f"{about} (default: all)")


def _named(config, name):
    return tuple(filter(None, config.getoption(f"--bench-{name}").split(",")))


def pytest_configure(config):
    """Reject invalid options at once, rather than in each benchmark."""
    if config.getoption("--bench-set", None) is None:  # found too late, when a parent folder is collected
        return
    try:
        config.stash[STAGE] = Stage(config)
    except OptionError as error:
        raise pytest.UsageError(f"--bench-{error.option}: {error.problem}") from None
    except ValueError as error:  # lsm.num_threads
        raise pytest.UsageError(f"--bench-threads: {str(error).partition(': ')[2]}") from None


class Stage:
    """The implementations of a session, and the arrays of the current case."""

    def __init__(self, config):
        n_threads = config.getoption("--bench-threads")
        (self.n_threads,), _ = possible_threads([lsm.get_num_threads() if n_threads is None else n_threads])
        wanted = _named(config, "implementations")
        self.cases = cases(Options(set=config.getoption("--bench-set"), only=_named(config, "only")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from importing the peers
            self.makers, self.absent = peers.usable(
                wanted, "cpu", peers.peers_of(config.getoption("--bench-set") == SCALE)
            )
        self._case = self.data = None

    def implementations(self, case):
        """The implementations of a case, on its arrays."""
        if self._case is None or self._case.arrays != case.arrays:
            self._case = self.data = None
            gc.collect()
            self.data = Data(case, [each.op for each in self.cases if each.arrays == case.arrays])
        self._case = case
        return self._made(case, self.data)

    def names(self, case):
        """The implementations of a case, found on small arrays."""
        small = replace(case, shape=shrunk(case.shape))
        return [one.key for one in self._made(small, Data(small, [case.op]))]

    def _made(self, case, data):
        return peers.made(self.makers, case, data, self.n_threads)[0]


@pytest.fixture(scope="session")
def stage(pytestconfig):
    made = pytestconfig.stash[STAGE]
    with equal_threads(made.n_threads):
        yield made


STAGE = pytest.StashKey()


def pytest_generate_tests(metafunc):
    if "implementation" not in metafunc.fixturenames:
        return
    made = metafunc.config.stash[STAGE]
    found = [(case, key) for case in made.cases for key in made.names(case)]
    ids = [f"{case.label}-{name}-{way}".replace(",", "").replace(" ", "_") for case, (name, way) in found]
    metafunc.parametrize(("case", "implementation"), found, ids=ids)


def pytest_report_header(config):
    made = config.stash.get(STAGE, None)
    return [f"{name}: {reason}" for name, reason in made.absent.items()] if made else []
