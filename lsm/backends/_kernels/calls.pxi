# What the public functions call first, with their own arguments, if the first is an ndarray: each looks up whether the
# current policy selects these kernels, and returns None if it does not, or if the call is not small and plain.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.ref cimport Py_DECREF, PyObject

cdef extern from "Python.h":
    int PyContextVar_Get(object variable, PyObject* default, PyObject** value) except -1

# C variables, which take less time to read than those of a module: lsm._fastpath, its ContextVar, and fast functions.
cdef object _fastpath = None, _in_context = None
cdef object of_log_softmax = quick_log_softmax, of_log_softmax_backward = quick_log_softmax_backward
cdef object of_softmax = quick_softmax, of_softmax_backward = quick_softmax_backward, of_logsumexp = quick_logsumexp


cdef inline object find_functions(object x, object backend):
    """The fast functions that the current policy selects for arrays like x, or None: lsm._fastpath.fast_functions."""
    cdef PyObject* found = NULL
    cdef object policy
    if backend is None:
        PyContextVar_Get(_in_context, NULL, &found)
        policy = <object> found
        Py_DECREF(policy)
        if policy is None:
            policy = _fastpath.default
    elif type(backend) is str:
        policy = (<dict> _fastpath.by_name).get(backend)
    else:
        return None
    return None if policy is None else (<dict> policy.fast).get(<object> PyArray_DESCR(<PyArrayObject*> x))


cdef inline bint is_one(object temperature) noexcept:
    """Whether this is the float 1.0; other numbers that equal 1 are recognised later."""
    return PyFloat_CheckExact(temperature) and PyFloat_AS_DOUBLE(temperature) == 1


def call_log_softmax(x, axis, out, where, temperature, backend):
    functions = find_functions(x, backend) if is_one(temperature) else None
    if functions is None:
        return None
    function = functions.log_softmax
    if function is of_log_softmax:
        return quick_map(LOG_SOFTMAX, x, x, axis, out, 0, where)
    return function(x, axis, out) if where is None else None


def call_log_softmax_backward(dy, y, axis, out, where, temperature, backend):
    functions = find_functions(dy, backend) if is_one(temperature) else None
    if functions is None:
        return None
    function = functions.log_softmax_backward
    if function is of_log_softmax_backward:
        return quick_map(LOG_SOFTMAX_BACKWARD, dy, y, axis, out, 0, where)
    return function(dy, y, axis, out) if where is None else None


def call_softmax(x, axis, out, where, temperature, backend):
    functions = find_functions(x, backend) if is_one(temperature) else None
    if functions is None:
        return None
    function = functions.softmax
    if function is of_softmax:
        return quick_map(SOFTMAX, x, x, axis, out, 0, where)
    return function(x, axis, out) if where is None else None


def call_softmax_backward(dy, p, axis, out, where, temperature, backend):
    functions = find_functions(dy, backend) if is_one(temperature) else None
    if functions is None:
        return None
    function = functions.softmax_backward
    if function is of_softmax_backward:
        return quick_map(SOFTMAX_BACKWARD, dy, p, axis, out, 0, where)
    return function(dy, p, axis, out) if where is None else None


def call_logsumexp(x, axis, out, where, temperature, backend):
    functions = find_functions(x, backend)
    if functions is None:
        return None
    function = functions.logsumexp
    if function is of_logsumexp:
        return quick_reduction(LOGSUMEXP, x, x, axis, out, 0, 1)
    return function(x, axis, out)


cdef inline bint is_own(object x, object backend):
    """Whether the functions that are derived from log_softmax are for these kernels."""
    functions = find_functions(x, backend)
    return functions is not None and functions.log_softmax is of_log_softmax


cdef inline bint is_temperature(double temperature) noexcept:
    """Whether its reciprocal is finite, too."""
    return 2.0**-1022 <= temperature < INFINITY


cdef object call_entropy_of(int op, a, b, axis, temperature, backend):
    if not (PyFloat_CheckExact(temperature) and is_temperature(PyFloat_AS_DOUBLE(temperature))):
        return None
    return quick_reduction(op, a, b, axis, None, 0, temperature) if is_own(a, backend) else None


def call_entropy(x, axis, temperature, backend):
    return call_entropy_of(ENTROPY, x, x, axis, temperature, backend)


def call_kl_divergence(x, other, axis, temperature, backend):
    return call_entropy_of(DIVERGENCE, x, other, axis, temperature, backend)


def call_take_log_softmax(x, indices, axis, backend):
    return quick_take(x, indices, axis) if is_own(x, backend) else None


def call_top_k_log_softmax(x, k, axis, backend):
    return quick_top_k(x, k, axis) if is_own(x, backend) else None


def call_cross_entropy(x, labels, axis, reduction, backend):
    return quick_cross_entropy(x, labels, axis, reduction) if is_own(x, backend) else None


def call_cross_entropy_value_and_grad(x, labels, axis, reduction, out, backend):
    return quick_loss(x, labels, axis, reduction, out) if is_own(x, backend) else None


CALLS = {
    "log_softmax": call_log_softmax,
    "log_softmax_backward": call_log_softmax_backward,
    "softmax": call_softmax,
    "softmax_backward": call_softmax_backward,
    "logsumexp": call_logsumexp,
    "entropy": call_entropy,
    "kl_divergence": call_kl_divergence,
    "take_log_softmax": call_take_log_softmax,
    "top_k_log_softmax": call_top_k_log_softmax,
    "cross_entropy": call_cross_entropy,
    "cross_entropy_value_and_grad": call_cross_entropy_value_and_grad,
}


def connect(fastpath):
    """Have the public functions call those of this module first."""
    global _fastpath, _in_context
    _fastpath, _in_context = fastpath, fastpath.in_context
    for name, function in CALLS.items():
        setattr(fastpath.quick, name, function)
