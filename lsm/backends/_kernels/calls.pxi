# The functions that the public functions call first, with their own arguments, if the first is an ndarray: each looks
# up whether the current policy selects these kernels, and returns None if it does not, or if the call is not small and
# plain.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.ref cimport Py_DECREF, PyObject

cdef extern from "Python.h":
    int PyContextVar_Get(object variable, PyObject* default, PyObject** value) except -1

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define REMEMBERS 0 /* without the GIL, another thread may replace what a thread compares */
    #else
    #define REMEMBERS 1
    #endif
    """
    bint REMEMBERS

cdef object _fastpath = None, _in_context = None  # lsm._fastpath, which has the policies, and its ContextVar
cdef object default_policy = None
cdef dict by_name = {}

# The result of the last lookup, which takes Python 0.1 microseconds: for a policy, bits of the kinds of arrays for
# which it selects these kernels, by operation.
cdef object known_policy = None
cdef unsigned int known_kinds[LOGSUMEXP + 1]


def forget():
    """Look up again what policies select. Called when one changes."""
    global known_policy, default_policy, by_name
    cdef int op
    if not REMEMBERS:
        return
    for op in range(LOGSUMEXP + 1):
        known_kinds[op] = 0
    known_policy, default_policy, by_name = None, _fastpath.default, _fastpath.by_name


cdef inline unsigned int bit_of_kind(object x) noexcept:
    cdef char c = PyArray_DESCR(<PyArrayObject*> x).type
    return 1 if c == c"f" else 2 if c == c"d" else 4 if c == c"e" else 8 if c == c"E" else 0


cdef inline object policy_of(object backend):
    """The policy of a call; None if there is none yet."""
    cdef PyObject* found = NULL
    cdef object policy
    if backend is None:
        PyContextVar_Get(_in_context, NULL, &found)
        policy = <object> found
        Py_DECREF(policy)
        if policy is None:
            policy = default_policy if REMEMBERS else _fastpath.default
        return policy
    if type(backend) is not str:
        return None
    return by_name.get(backend) if REMEMBERS else _fastpath.by_name.get(backend)


cdef inline bint is_selected(int op, object x, object backend):
    """Whether the current policy is known to select these kernels for arrays like x."""
    return (known_kinds[op] & bit_of_kind(x)) != 0 and policy_of(backend) is known_policy


cdef object find_function(int op, object x, object backend):
    """The fast function that the current policy selects for arrays like x, or None: lsm._fastpath.fast_functions."""
    global known_policy
    cdef int other
    policy = policy_of(backend)
    functions = None if policy is None else policy.fast.get(x.dtype)
    function = None if functions is None else getattr(functions, NAMES[op])
    if REMEMBERS and function is not None and function is QUICK[NAMES[op]]:
        if policy is not known_policy:
            known_policy = policy
            for other in range(LOGSUMEXP + 1):
                known_kinds[other] = 0
        known_kinds[op] |= bit_of_kind(x)
    return function


NAMES = {op: name for name, op in OPS.items()}


cdef inline double number_of(object x) noexcept:
    """The value of a float or a small int; NaN for any other object."""
    cdef int overflow = 0
    cdef long value
    if PyFloat_CheckExact(x):
        return PyFloat_AS_DOUBLE(x)
    if not PyLong_CheckExact(x):
        return NAN
    value = PyLong_AsLongAndOverflow(x, &overflow)
    return NAN if overflow else <double> value


cdef object call_map(int op, a, b, axis, out, where, temperature, backend):
    """A public function, or None; a is an ndarray, and b is a if there is one input."""
    cdef double divisor = number_of(temperature)
    if not LEAST_DIVISOR < divisor < INFINITY:
        return None
    if not is_selected(op, a, backend):
        function = find_function(op, a, backend)
        if function is None:
            return None
        if function is not QUICK[NAMES[op]]:
            if where is not None or divisor != 1:
                return None
            return function(a, b, axis, out) if reads_two(op) else function(a, axis, out)
    return quick_map(op, a, b, axis, out, 0, where, divisor)


def call_log_softmax(x, axis, out, where, temperature, backend):
    return call_map(LOG_SOFTMAX, x, x, axis, out, where, temperature, backend)


def call_log_softmax_backward(dy, y, axis, out, where, temperature, backend):
    return call_map(LOG_SOFTMAX_BACKWARD, dy, y, axis, out, where, temperature, backend)


def call_softmax(x, axis, out, where, temperature, backend):
    return call_map(SOFTMAX, x, x, axis, out, where, temperature, backend)


def call_softmax_backward(dy, p, axis, out, where, temperature, backend):
    return call_map(SOFTMAX_BACKWARD, dy, p, axis, out, where, temperature, backend)


def call_logsumexp(x, axis, out, where, temperature, backend):
    if not is_selected(LOGSUMEXP, x, backend):
        function = find_function(LOGSUMEXP, x, backend)
        if function is None or function is not QUICK["logsumexp"]:
            return None if function is None else function(x, axis, out)
    return quick_reduction(LOGSUMEXP, x, x, axis, out, 0, 1)


cdef inline bint is_own(object x, object backend):
    """Whether the functions that are derived from log_softmax are for these kernels."""
    return is_selected(LOG_SOFTMAX, x, backend) or find_function(LOG_SOFTMAX, x, backend) is QUICK["log_softmax"]


cdef inline bint is_temperature(double temperature) noexcept:
    """Whether a temperature and its reciprocal are finite and above 0."""
    return 2.0**-1022 <= temperature < INFINITY


cdef object call_entropy_of(int op, a, b, axis, temperature, backend):
    cdef double divisor = number_of(temperature)
    if not is_temperature(divisor):
        return None
    return quick_reduction(op, a, b, axis, None, 0, divisor) if is_own(a, backend) else None


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
    """Make the public functions call those of this module first."""
    global _fastpath, _in_context
    _fastpath, _in_context = fastpath, fastpath.in_context
    fastpath.forget = forget
    forget()
    for name, function in CALLS.items():
        setattr(fastpath.quick, name, function)
