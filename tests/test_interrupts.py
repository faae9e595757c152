"""An exception at any point of a call, as Ctrl-C raises it, leaves no lock held and no limit changed."""

import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import lsm
from lsm import _dispatch, _fastpath, _held, _threads
from lsm.backends import cython_, registry

# A file that is left open, or an exception in a generator that is closed; it may be noticed in the next test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PACKAGE = str(Path(lsm.__file__).parent)
X = np.random.default_rng(0).standard_normal((40, 1000)).astype("f4")  # enough for two threads
Y = lsm.log_softmax(X)
OUT = np.empty_like(X)
LABELS = np.arange(40)


def in_blocks():
    with lsm.num_threads(1), lsm.use_backend("cython"), lsm.num_threads(2):
        lsm.log_softmax(X, out=OUT)


@lsm.use_backend("numpy")
def decorated():
    lsm.log_softmax([1.0, 2.0])


def renewed():
    lsm.refresh_backends()
    lsm.set_default_backend("cython")
    lsm.log_softmax(X, out=OUT)
    lsm.set_default_backend(None)


CALLS = {
    "forward": lambda: lsm.log_softmax(X, out=OUT),
    "backward": lambda: lsm.log_softmax_backward(X, Y, out=OUT),
    "strided": lambda: lsm.log_softmax(X[:, ::2], out=OUT[:, ::2]),
    "several axes": lambda: lsm.log_softmax(X.reshape(4, 10, 1000), axis=(0, 2)),
    "overlapping out": lambda: lsm.log_softmax(np.zeros(50_000)[:40_000], out=np.zeros(50_000)[10_000:]),
    "dtype=": lambda: lsm.log_softmax(X, dtype="f8"),
    "backend=": lambda: lsm.log_softmax(X, backend="cython"),
    "numpy": lambda: lsm.log_softmax(X[:2], backend="numpy"),
    "a list": lambda: lsm.log_softmax([1.0, 2.0]),
    "blocks": in_blocks,
    "decorated": decorated,
    "refreshed": renewed,
    "softmax": lambda: lsm.softmax(X, out=OUT),
    "softmax backward": lambda: lsm.softmax_backward(X, np.exp(Y), out=OUT),
    "logsumexp": lambda: lsm.logsumexp(X, -1),
    "b=": lambda: lsm.logsumexp(X[:2], -1, b=X[:2], return_sign=True),
    "where=": lambda: lsm.log_softmax(X, where=X > 0, temperature=2.0, out=OUT),
    "take": lambda: lsm.take_log_softmax(X, LABELS),
    "top k": lambda: lsm.top_k_log_softmax(X, 3),
    "cross-entropy": lambda: lsm.cross_entropy_value_and_grad(X, LABELS, label_smoothing=0.1, out=OUT),
    "entropy": lambda: lsm.entropy(X),
    "kl": lambda: lsm.kl_divergence(X, Y),
    "explain": lambda: lsm.explain(X),
    "list_backends": lsm.list_backends,
}


class Interrupt(BaseException):
    """What the trace function raises."""


def interrupted(call, after):
    """Run a call that is interrupted after so many steps of lsm's own code; tell whether it was.

    Python drops an exception that is raised while a generator is closed; the call then goes on.
    """
    steps, is_raised = 0, False

    def trace(frame, event, argument):
        nonlocal steps, is_raised
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        steps += 1
        if steps > after:
            sys.settrace(None)
            is_raised = True
            raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        pass
    finally:
        sys.settrace(None)
    return is_raised


def locks():
    """All that a call may hold."""
    known = registry.registry()
    yield from (_dispatch._lock, registry._registry_lock, known._lock)
    yield from (candidate._lock for candidate in known.all())


def state():
    """What a call may not change; other tests of the process may have."""
    states = {info.name: info.state for info in lsm.list_backends() if info.is_built_in}
    return lsm.get_num_threads(), np.geterr(), states


def check_nothing_is_held(before):
    free = []

    def take():  # in another thread, since a lock may be one that its holder can take again
        for lock in locks():
            free.append(lock.acquire(blocking=False))
            if free[-1]:
                lock.release()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(timeout=10)  # what is held keeps it waiting
    assert not thread.is_alive() and all(free), free
    kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
    assert kernels.region_threads(2) == 2
    assert _threads._in_context.get() is None and _fastpath.in_context.get() is None
    assert state() == before


def test_the_file_that_gives_back_is_compiled():
    assert not _held.__file__.endswith(".py"), "build lsm anew: pip install -e ."


@pytest.mark.parametrize("call", CALLS)
def test_an_exception_at_every_bytecode(call):
    CALLS[call]()
    lsm.set_default_backend(None)
    before, after = state(), 0
    while interrupted(CALLS[call], after):
        lsm.set_default_backend(None)
        check_nothing_is_held(before)
        after += 1 + after // 20  # some calls have thousands of steps
    assert after > 5
    assert (lsm.log_softmax(X) == Y).all()


SIGNALS = """
import random, signal, sys, time
import numpy as np
import lsm
from lsm import _threads
from lsm.backends import cython_
from importlib import import_module

class Alarm(Exception):
    pass

is_armed = False


def handle(*_):
    global is_armed
    if is_armed:
        is_armed = False
        raise Alarm

kernels = import_module(f"lsm.backends._kernels.{cython_.kernels()['level']}")
x = np.zeros((400, 4000), "f4")
out = np.empty_like(x)
dy = x[:, ::2]
before = lsm.get_num_threads(), kernels.region_threads(2)
signal.signal(signal.SIGALRM, handle)
n_raised, end = 0, time.monotonic() + 4
while time.monotonic() < end:
    try:
        is_armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-3))
        with lsm.num_threads(2), lsm.use_backend("cython"):
            lsm.log_softmax(x, out=out)
        lsm.log_softmax_backward(x, out, out=out)
        with lsm.num_threads(1):
            lsm.log_softmax(dy)
            lsm.log_softmax(x[0])
        lsm.log_softmax(x, out=out)
        is_armed = False
    except Alarm:
        n_raised += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert (lsm.get_num_threads(), kernels.region_threads(2)) == before
    assert _threads.count_threads(x.size) == before[0]
print(n_raised)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM here")
def test_signals_in_a_loop():
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_a_signal_handler_may_call_lsm_while_it_searches():
    code = """
import signal
import numpy as np
import lsm
from lsm.backends import registry
own = registry.find
def find():
    lsm.explain(np.zeros(3), backend="numpy")  # as a handler that runs now would
    return own()
registry.find = lambda: (setattr(registry, "find", own), find())[1]
print([info.name for info in lsm.list_backends(load=False)][:3], lsm.explain(np.zeros(3)).winner)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['cython', 'cupy', 'numpy'] cython", done.stdout + done.stderr
