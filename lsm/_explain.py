"""`lsm.explain`: the backend that a call would use, with the reasons."""

from typing import Any

from lsm._check import NUMPY, at_least_float32
from lsm._decide import Decision, Request, decide_and_explain
from lsm._dispatch import policy_for
from lsm._errors import BackendUnsupportedError
from lsm._interop import engine_for, library_of
from lsm._operations import DERIVED, OPERATIONS, PARTIALS
from lsm._untraced import untraced


def explain(x: Any, op: str = "log_softmax", *, dtype: Any = None, backend: str | None = None) -> Decision:
    """Show which backend a call would use, and why the others would not be used; computes nothing.

    Parameters
    ----------
    x : array_like
        As for `log_softmax`.
    op : str, optional
        The name of a function of lsm, such as "log_softmax_backward".
    dtype, backend : optional
        As for `log_softmax`.

    Returns
    -------
    Decision
        Prints as a short table. For a dask array it is that of a chunk. If the call would fail, it has the error.

    Raises
    ------
    TypeError
        lsm does not support `x`; the message is that of the call.
    ValueError
        `op` is not an operation of lsm.

    Examples
    --------
    >>> import lsm, numpy
    >>> decision = lsm.explain(numpy.zeros(3, "float32"))
    >>> decision.winner, decision.rule
    ('cython', 'automatic')
    """
    if op not in OPERATIONS and op not in DERIVED and op != PARTIALS:
        accepted = ", ".join(map(repr, (*OPERATIONS, *DERIVED, PARTIALS)))
        raise ValueError(f"op: {op!r} is not an operation; accepted: {accepted}")
    return untraced(_explain)(x, op, dtype, backend)


def _explain(x: Any, op: str, dtype: Any, backend: str | None) -> Decision:
    engine = engine_for((x,))
    if engine is not None:
        explained: Decision = engine.explain(x, op, dtype, backend)
        return explained
    library = library_of(x)
    array, device, own = library.validate(x, "x")
    request = Request(library.type_name(array), device, (own, library.result_dtype(own, dtype)), op)
    decision = explain_request(request, backend)
    if decision.passed_as == NUMPY:
        library.check_readable(array, "x")
    return decision


def explain_request(request: Request, backend: str | None = None) -> Decision:
    """Like `explain`, for a described call, without an array.

    For a derived function, the backend is that of the operation from which it is derived.
    """
    policy = policy_for(backend)
    derived = DERIVED.get(request.op)
    if derived is None:
        return decide_and_explain(request, policy)
    own, result = request.dtypes
    computed = own, at_least_float32(own) if derived.is_loss else result
    decision = decide_and_explain(request._replace(dtypes=computed, op=derived.source.name), policy)
    decision = decision._replace(op=derived.name, derived_from=derived.source.name)
    if request.device == "cpu" or decision.winner is None:
        return decision
    error = BackendUnsupportedError(derived.refusal("x", request.device))
    return decision._replace(winner=None, backend=None, is_built_in=False, error=error)
