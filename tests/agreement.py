"""Whether `lsm.explain` says what a call then does: each backend notes that it ran.

A script too, for what the environment asks for:

    python tests/agreement.py RULE [LIBRARY ...]
"""

import contextlib
import sys

import numpy as np

import lsm
from lsm._operations import OPERATIONS
from lsm.backends import cython_, numpy_
from lsm.backends.contract import has_operation

DTYPES = ("float16", "bfloat16", "float32", "float64", "longdouble", "int32", "bool", "complex64")
CALLS = ((None, None), ("float32", None), (None, "numpy"), (None, "cython"), (None, "nope"))


def arrays(library):
    """Arrays of one library of every dtype that it has."""
    for dtype in DTYPES:
        if library == "torch":
            torch = sys.modules["torch"]
            own = getattr(torch, dtype, None)
            x = None if own is None else torch.ones(3, 4, dtype=own)
        elif library == "jax":
            x = None if dtype == "longdouble" else sys.modules["jax"].numpy.ones((3, 4), dtype)
        else:
            own = sys.modules["ml_dtypes"].bfloat16 if dtype == "bfloat16" else dtype
            x = np.ones((3, 4), own)
        if x is not None:
            yield x


@contextlib.contextmanager
def watched():
    """Let the built-in backends note in the list that is yielded that they run, by whichever way they are called."""
    ran, undo = [], []

    def note(name, op, function):
        def call(*arguments):
            result = function(*arguments)
            by_lsm = len(arguments) == len(OPERATIONS[op].inputs) + 2  # not by the method itself
            if "quick" not in function.__name__ or (by_lsm and result is not None):
                ran.append(name)
            return result

        return call

    for name, backend in (("cython", cython_.backend), ("numpy", numpy_.backend)):
        for method in [op for op in OPERATIONS if has_operation(backend, op)]:
            original = getattr(backend, method)
            setattr(backend, method, note(name, method, original))
            undo.append((backend, method))
    fast = cython_.kernels()["fast"]
    cython_.kernels()["fast"] = {op: note("cython", op, function) for op, function in fast.items()}
    lsm.refresh_backends()
    try:
        yield ran
    finally:
        for backend, method in undo:
            delattr(backend, method)
        cython_.kernels()["fast"] = fast
        lsm.refresh_backends()


def check(ran, rule, library):
    """Compare for one policy and library; gives the number of calls that were served and refused."""
    counts = [0, 0]
    for x in arrays(library):
        for dtype, backend in CALLS:
            for _ in range(2):  # the second call finds the plan
                one_call(ran, rule, x, dtype, backend, counts)
    return counts


def one_call(ran, rule, x, dtype, backend, counts):
    try:
        decision = lsm.explain(x, dtype=dtype, backend=backend)
    except TypeError as refused:
        expected, decision = refused, None
    else:
        expected = decision.error
        assert decision.rule == ("backend=" if backend else rule), decision
        assert (decision.winner is None) == (expected is not None)
        assert decision.winner or all(decision.reasons.values())
    ran.clear()
    raised = None
    try:
        y = lsm.log_softmax(x, dtype=dtype, backend=backend)
        if dtype is None:
            again = lsm.explain(x, op="log_softmax_backward", backend=backend)
            lsm.log_softmax_backward(y, y, backend=backend)
            assert ran == [decision.winner, again.winner], (x, decision, ran)
        else:
            assert ran == [decision.winner], (x, decision, ran)
        counts[0] += 1
    except (TypeError, lsm.LsmError) as error:
        raised = error
        counts[1] += 1
    assert type(raised) is type(expected) and str(raised) == str(expected), (raised, expected)
    assert raised is None or ran == []


if __name__ == "__main__":
    for library in sys.argv[2:]:
        __import__(library)
    __import__("ml_dtypes")
    with watched() as ran:
        print(*(n for library in ("numpy", *sys.argv[2:]) for n in check(ran, sys.argv[1], library)))
