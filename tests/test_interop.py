"""Tensors of PyTorch and arrays of JAX: no copy, their own type back, and a clear error for the rest.

Needs both, `python -m pip install '.[interop]'`; conftest.py leaves this file out where they are not installed.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import agreement
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
import test_signals
import torch
from cuda_on_cpu import cupy_on_cpu
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import lsm
from lsm import _interop
from lsm._conformance.run import cases, run
from lsm._interop_jax import JaxLibrary
from lsm._operations import OPERATIONS
from lsm._version import DISTRIBUTION
from lsm.backends import cython_
from lsm.backends.cupy_ import CupyBackend

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@pytest.fixture(autouse=True)
def _with_float64():
    with jax.enable_x64(True):
        yield


def to_numpy(a):
    """The values of any array as an ndarray, by way that lsm does not take."""
    if isinstance(a, torch.Tensor):
        return np.array(a.float().tolist() if a.dtype != torch.float64 else a.tolist()).reshape(a.shape)
    return np.asarray(a).astype(np.float64)


LIBRARIES = {
    "torch": (lambda a, dtype: torch.from_numpy(np.array(a, order="C")).to(TORCH[dtype]), torch.Tensor),
    "jax": (lambda a, dtype: jnp.asarray(a).astype(dtype), jax.Array),
}


@pytest.fixture(params=list(LIBRARIES))
def make(request):
    return LIBRARIES[request.param][0]


def is_of(make, a):
    return isinstance(a, next(kind for maker, kind in LIBRARIES.values() if maker is make))


def dtype_of(a):
    return str(a.dtype).removeprefix("torch.")


def address(a):
    if isinstance(a, torch.Tensor):
        return a.data_ptr()
    return a.unsafe_buffer_pointer() if isinstance(a, jax.Array) else a.__array_interface__["data"][0]


@pytest.fixture
def given(monkeypatch):
    """The arrays that the Cython backend's functions are given, and what they return."""
    seen = []
    lsm.refresh_backends()

    def watched(name, function):
        def call(*arguments):
            result = function(*arguments)
            if len(arguments) == len(OPERATIONS[name].inputs) + 2:
                seen.append((*[a for a in arguments if isinstance(a, np.ndarray)], result))
            return result

        return call

    fast = {name: watched(name, function) for name, function in cython_.kernels()["fast"].items()}
    monkeypatch.setitem(cython_.kernels(), "fast", fast)
    yield seen
    lsm.refresh_backends()


@pytest.mark.parametrize("dtype", list(TORCH))
def test_no_copy_and_its_own_type_back(make, dtype, rng, given):
    a, g = rng.standard_normal((2, 30, 40))
    x, dy = make(a, dtype), make(g, dtype)
    for _ in range(3):  # the first call makes the plan, the others may take the short way
        given.clear()
        y = lsm.log_softmax(x)
        dx = lsm.log_softmax_backward(dy, y)
        assert is_of(make, y) and is_of(make, dx)
        assert dtype_of(y) == dtype_of(dx) == dtype
        assert oracle.ulps(to_numpy(y).astype(np_dtype(dtype)), oracle.log_softmax(to_numpy(x))) <= bound(dtype)
        forward, backward = given
        assert address(forward[0]) == address(x) and address(forward[-1]) == address(y)
        assert [address(b) for b in backward[:2]] == [address(dy), address(y)] and address(backward[-1]) == address(dx)
    same = lsm.log_softmax(to_numpy(x).astype(np_dtype(dtype)))
    np.testing.assert_array_equal(to_numpy(y), same.astype(float))


def test_an_array_that_jax_is_free_to_move_gives_another_such():
    """As JAX's own functions do: else the result could not be combined with an array on another device."""
    x = jnp.zeros(3)
    bound_to_it = jax.device_put(x, x.device)
    assert not lsm.log_softmax(x).committed and lsm.log_softmax(bound_to_it).committed


def np_dtype(dtype):
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype


def bound(dtype):
    return 0.501 if dtype.endswith("16") else 4


@pytest.mark.parametrize("dtype", list(TORCH))
@pytest.mark.parametrize("result", list(TORCH))
def test_dtype(make, dtype, result, rng):
    x = make(rng.standard_normal((3, 50)), dtype)
    spellings = [result, TORCH[result]] if is_of(make, x) and isinstance(x, torch.Tensor) else [result]
    spellings.append(getattr(jnp, result))
    for spelling in spellings:
        y = lsm.log_softmax(x, dtype=spelling)
        assert dtype_of(y) == result and is_of(make, y)
        expected = lsm.log_softmax(to_numpy(x).astype(np_dtype(dtype)), dtype=np_dtype(result))
        np.testing.assert_array_equal(to_numpy(y), expected.astype(float))


def test_integers_and_bool_become_float64(make):
    for x in (
        torch.arange(5),
        torch.arange(5, dtype=torch.uint8),
        torch.arange(5) > 2,
        jnp.arange(5),
        jnp.arange(5) > 2,
    ):
        y = lsm.log_softmax(x)
        assert type(y) is type(x) and dtype_of(y) == "float64"
        np.testing.assert_array_equal(to_numpy(y), lsm.log_softmax(to_numpy(x)))
        dx = lsm.log_softmax_backward(x, y)
        assert type(dx) is type(x) and dtype_of(dx) == "float64"


def test_axes_shapes_and_layouts(make, rng):
    a = rng.standard_normal((3, 4, 5))
    for axis in (-1, 0, 1, (0, 2), None, ()):
        y = lsm.log_softmax(make(a, "float64"), axis)
        np.testing.assert_array_equal(to_numpy(y), lsm.log_softmax(a, axis))
        dx = lsm.log_softmax_backward(make(a, "float64"), y, axis)
        np.testing.assert_array_equal(to_numpy(dx), lsm.log_softmax_backward(a, lsm.log_softmax(a, axis), axis))
    for shape in ((), (0,), (2, 0), (0, 3)):
        for dtype in ("bfloat16", "float32"):
            y = lsm.log_softmax(make(np.zeros(shape), dtype))
            assert tuple(y.shape) == shape and is_of(make, y) and dtype_of(y) == dtype
    with pytest.raises(np.exceptions.AxisError):
        lsm.log_softmax(make(a, "float32"), 3)
    for wrong in (1.0, True):
        with pytest.raises(TypeError, match="^axis: "):
            lsm.log_softmax(make(a, "float32"), wrong)
    with pytest.raises(ValueError, match=r"^grad_output, output: shapes \(3, 4, 5\) and \(4, 5\) differ"):
        lsm.log_softmax_backward(make(a, "float32"), make(a[0], "float32"))


@pytest.mark.parametrize("dtype", list(TORCH))
def test_special_values(make, dtype, rng):
    a = rng.standard_normal((6, 7))
    a[0, 1], a[1, 2], a[2], a[3, 4] = np.nan, np.inf, -np.inf, -np.inf
    x = make(a, dtype)
    held = to_numpy(x).astype(np_dtype(dtype))
    for axis in (0, 1):
        y = lsm.log_softmax(x, axis)
        np.testing.assert_array_equal(to_numpy(y), lsm.log_softmax(held, axis).astype(float))
        dx = lsm.log_softmax_backward(make(np.cos(np.arange(42.0)).reshape(6, 7), dtype), y, axis)
        assert (np.isnan(to_numpy(dx)) >= np.isnan(to_numpy(y))).all()


def test_strides_of_torch(rng):
    a = rng.standard_normal((6, 8)).astype("f4")
    t = torch.from_numpy(a)
    for view, held in (
        (t.T, a.T),
        (t[:, ::2], a[:, ::2]),
        (t[2:, 1:], a[2:, 1:]),
        (t[0].expand(4, 8), np.broadcast_to(a[0], (4, 8))),
        (torch.from_numpy(np.frombuffer(b"\0" + a.tobytes(), "u1", offset=1).copy().view("f4").reshape(6, 8)), a),
    ):
        for x in (view, view.bfloat16()):
            before = x.clone()
            for axis in (0, 1):
                y = lsm.log_softmax(x, axis)
                expected = lsm.log_softmax(held.astype(np_dtype(dtype_of(x))), axis)
                np.testing.assert_array_equal(to_numpy(y), expected.astype(float))
            assert torch.equal(x, before)
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert lsm.log_softmax(image, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", list(TORCH))
def test_out_of_torch(dtype, rng):
    x = torch.from_numpy(rng.standard_normal((5, 6))).to(TORCH[dtype])
    y = lsm.log_softmax(x)
    dx = lsm.log_softmax_backward(x, y)
    for _ in range(2):
        for out in (torch.empty_like(x), torch.empty(6, 5, dtype=x.dtype).T, torch.empty(5, 12, dtype=x.dtype)[:, ::2]):
            assert lsm.log_softmax(x, out=out) is out
            assert torch.equal(out, y)
            assert lsm.log_softmax_backward(x, y, out=out) is out
            assert torch.equal(out, dx)
    for function, inputs, expected in ((lsm.log_softmax, (x,), y), (lsm.log_softmax_backward, (x, y), dx)):
        for i in range(len(inputs)):
            copies = [a.clone() for a in inputs]
            assert function(*copies, out=copies[i]) is copies[i]
            assert torch.equal(copies[i], expected)
    memory = torch.empty(31, dtype=x.dtype)
    memory[1:] = x.flatten()
    lsm.log_softmax(memory[1:].view(5, 6), out=memory[:30].view(5, 6))
    assert torch.equal(memory[:30].view(5, 6), y)
    wide = torch.empty(5, 6, dtype=torch.float64)
    assert lsm.log_softmax(x, out=wide, dtype=torch.float64) is wide


def test_out_that_is_refused():
    x = torch.zeros(2, 3)
    for out, error, message in (
        (np.zeros((2, 3), "f4"), TypeError, "a numpy.ndarray; accepted: a torch.Tensor of dtype float32 on cpu"),
        (jnp.zeros((2, 3)), TypeError, "accepted: a torch.Tensor"),
        (torch.zeros(3, 2), ValueError, "has shape"),
        (torch.zeros(2, 3).double(), TypeError, "has dtype float64; the result has dtype float32"),
        (torch.zeros(2, 3).bfloat16(), TypeError, "has dtype bfloat16"),
        (torch.zeros(2, 3, dtype=torch.int32), TypeError, "has dtype int32"),
        (torch.zeros(2, 3, requires_grad=True), TypeError, "requires grad"),
        (torch.zeros(3).expand(2, 3), ValueError, "its elements overlap"),
        (torch.zeros(2, 3, device="meta"), lsm.BackendUnsupportedError, "is on meta, the result on cpu"),
        (torch._neg_view(torch.zeros(2, 3)), TypeError, "negative bit"),
        (torch.zeros(2, 3).to_sparse(), TypeError, "layout"),
    ):
        for call in (
            lambda out=out: lsm.log_softmax(x, out=out),
            lambda out=out: lsm.log_softmax_backward(x, x, out=out),
        ):
            with pytest.raises(error, match=f"^out: .*{message}"):
                call()
    with pytest.raises(TypeError, match=r"^out: a Tensor; accepted: a numpy.ndarray"):
        lsm.log_softmax(np.zeros((2, 3), "f4"), out=x)
    j = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="^out: a JAX array, which cannot be written to; omit out="):
        lsm.log_softmax(j, out=j)
    with pytest.raises(TypeError, match="accepted: a jax.Array of dtype float64"):
        lsm.log_softmax(j, out=np.zeros((2, 3)))


def masked():
    from torch.masked import masked_tensor

    return masked_tensor(torch.zeros(2), torch.tensor([True, False]))


class Subclass(torch.Tensor):
    """Plain memory under another name."""


class Wrapper(torch.Tensor):
    """A tensor that has no memory of its own."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        raise NotImplementedError


def jagged():
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


def fake():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(2)


def quantised():
    return torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, requires_grad=True), r"requires grad, .*\n    \w+\.detach\(\) .*\n    lsm_torch.log_softmax"),
        (torch.zeros(2, requires_grad=True) * 2, "requires grad"),
        (torch.zeros(2, dtype=torch.bfloat16, requires_grad=True), "requires grad"),
        (torch.nn.Parameter(torch.zeros(2)), "requires grad"),
        (torch.zeros(2, dtype=torch.complex64), r"complex64 numbers have no order; pass \w+.real or abs"),
        (torch.zeros(2, dtype=torch.complex64).conj(), "complex64"),
        (torch.zeros(2).to_sparse(), r"layout torch.sparse_coo; pass \w+.to_dense\(\)"),
        (torch.zeros(2).to_mkldnn(), "layout torch._mkldnn"),
        (torch.zeros(2, dtype=torch.float8_e5m2), "dtype torch.float8_e5m2 is not accepted; accepted: float16"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested tensor; pass its parts"),
        (quantised, r"quantised tensor \(torch.qint8\); pass \w+.dequantize"),
        (masked, r"a masked array \(torch.masked.*\), whose mask would be lost; pass \w+.to_tensor\(-torch.inf\)"),
        (lambda: torch.zeros(2).as_subclass(Subclass), r"a Subclass, a subclass of torch.Tensor .*as_subclass"),
        (lambda: Wrapper(torch.zeros(2)), "a Wrapper, a subclass of torch.Tensor .*the plain tensor that it wraps"),
        (lambda: torch._efficientzerotensor(2), "memory cannot be read"),
        (lambda: torch.nn.UninitializedParameter(requires_grad=False), "has no values yet"),
        (jagged, r"nested tensor .*unbind\(\)"),
        (fake, "FakeTensor, a placeholder without values"),
        (lambda: jnp.zeros(2, "complex64"), "complex64 numbers have no order"),
        (lambda: jnp.zeros(2, "float8_e5m2"), "dtype float8_e5m2 is not accepted"),
        (lambda: jax.random.key(0), "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's prototypes say so
def test_what_is_refused(x, message):
    x = x if isinstance(x, torch.Tensor) else x()
    good = torch.zeros(2) if isinstance(x, torch.Tensor) else jnp.zeros(2)
    lsm.log_softmax(good)  # so that there is a plan, and the short way is tried
    lsm.log_softmax(torch.zeros(2, dtype=torch.bfloat16))
    for _ in range(2):
        with pytest.raises(TypeError, match=message) as caught:
            lsm.log_softmax(x)
        assert str(caught.value).startswith("x: ")
        with pytest.raises(TypeError, match=message):
            lsm.log_softmax_backward(x, good)
        with pytest.raises(TypeError):
            lsm.log_softmax_backward(good, x)
    with pytest.raises(TypeError, match=message):
        lsm.explain(x)


def test_a_device_that_no_backend_supports():
    x = torch.zeros(2, device="meta")
    message = "no backend supports torch.Tensor of float32 on meta: .* does not move .* on cpu, use 'cython' or 'numpy'"
    for call in (lambda: lsm.log_softmax(x), lambda: lsm.log_softmax_backward(x, x), lambda: lsm.log_softmax(x, out=x)):
        with pytest.raises(lsm.BackendUnsupportedError, match=message):
            call()
    assert lsm.explain(x).device == "meta" and lsm.explain(x).winner is None


def test_what_is_taken_after_all():
    z = torch.complex(torch.zeros(3), torch.arange(3.0)).conj().imag  # real, and carries the negative bit
    assert z.is_neg()
    assert torch.equal(lsm.log_softmax(z), lsm.log_softmax(-torch.arange(3.0)))
    assert torch.equal(lsm.log_softmax(z.bfloat16()), lsm.log_softmax(-torch.arange(3.0).bfloat16()))
    frozen = torch.nn.Parameter(torch.arange(3.0), requires_grad=False)
    assert type(lsm.log_softmax(frozen)) is torch.Tensor
    with torch.no_grad(), pytest.raises(TypeError, match="requires grad"):  # whatever the mode, never a guess
        lsm.log_softmax(torch.zeros(2, requires_grad=True))
    with torch.inference_mode():
        assert lsm.log_softmax(torch.zeros(2)).shape == (2,)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # make_dual calls it
def test_within_transformations():
    for transformed in (jax.jit, jax.grad, jax.vmap):
        with pytest.raises(TypeError, match=r"^x: a JAX tracer .*jax.pure_callback"):
            transformed(lambda x: lsm.log_softmax(x).sum())(jnp.zeros((2, 3)))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, 3, dtype=dtype)
        plain = {2: x, 1: torch.zeros(3, dtype=dtype)}
        for _ in range(2):  # with a plan, too
            for transformed in (torch.func.vmap, torch.func.functionalize):
                for call, name in (
                    (lsm.log_softmax, "x"),
                    (lambda a: lsm.log_softmax(a.unsqueeze(0)), "x"),
                    (lsm.explain, "x"),
                    (lambda a: lsm.log_softmax([a, a]), "x"),
                    (lambda a: lsm.log_softmax_backward(a, a), "grad_output"),
                    (lambda a, plain=plain: lsm.log_softmax(plain[a.dim()], out=a), "out"),
                ):
                    with pytest.raises(TypeError, match=f"^{name}: .*a tensor whose memory cannot be read"):
                        transformed(call)(x.clone())
            lsm.log_softmax(x), lsm.log_softmax_backward(x, x)
    with pytest.raises(TypeError, match="requires grad"):
        torch.func.grad(lambda x: lsm.log_softmax(x).sum())(torch.zeros(3))

    def within(call):
        return lambda a: call(a)

    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for call in (lsm.log_softmax, lsm.explain, lambda a: lsm.take_log_softmax(a, a.argmax(-1))):
            with pytest.raises(TypeError, match=r"^x: a tensor within make_fx, whose graph would hold .*constant"):
                make_fx(within(call), tracing_mode="real")(torch.zeros(2, 3, dtype=dtype))
            with pytest.raises(TypeError, match=r"^x: a tensor within make_fx, whose graph would hold .*constant"):
                make_fx(within(call), tracing_mode="real", pre_dispatch=True)(torch.zeros(2, 3, dtype=dtype))
    with FlopCounterMode(display=False):  # a mode that records nothing
        assert lsm.log_softmax(torch.zeros(2, 3)).shape == (2, 3)

    with torch.autograd.forward_ad.dual_level():
        for dtype in (torch.float32, torch.bfloat16):
            lsm.log_softmax(torch.zeros(3, dtype=dtype))
            x = torch.autograd.forward_ad.make_dual(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
            with pytest.raises(TypeError, match=r"^x: a dual tensor .*unpack_dual\(x\).primal"):
                lsm.log_softmax(x)
            lsm.log_softmax(torch.autograd.forward_ad.unpack_dual(x).primal)
    with pytest.raises(TypeError, match="^x: a dual tensor"):
        torch.func.jacfwd(lsm.log_softmax)(torch.zeros(3))

    def called_back(x):
        return jax.pure_callback(lambda x: lsm.log_softmax(np.asarray(x)), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jax.jit(called_back)(x), lsm.log_softmax(x))  # what the message proposes


@pytest.mark.parametrize("name", ["torch", "cupy", "jax"])
def test_threads_that_are_first_share_a_library(name):
    """Each of them may run what `cache` is to run once."""
    first = getattr(_interop, f"{name}_library")
    assert first.__wrapped__() is first.__wrapped__() is first()


def test_jax_without_float64():
    with jax.enable_x64(False):
        assert lsm.log_softmax(jnp.zeros(3)).dtype == np.float32
        for call in (
            lambda: lsm.log_softmax(jnp.arange(3)),
            lambda: lsm.log_softmax(jnp.zeros(3), dtype="float64"),
            lambda: lsm.log_softmax_backward(jnp.arange(3), jnp.zeros(3)),
        ):
            with pytest.raises(TypeError, match="^dtype: .*jax_enable_x64.*; or pass dtype='float32'"):
                call()
        assert lsm.log_softmax(jnp.arange(3), dtype="float32").dtype == np.float32


def test_jax_arrays_that_are_gone():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(TypeError, match="^x: a JAX array that cannot be read .*deleted"):
        lsm.log_softmax(x)


def test_several_jax_devices():
    code = """
import jax, jax.numpy as jnp, numpy as np, lsm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
first, second = jax.devices()
x = jax.device_put(jnp.arange(4.0), second)
assert lsm.log_softmax(x).devices() == {second}
assert lsm.log_softmax(jnp.arange(4.0)).devices() == {first}
try:
    lsm.log_softmax_backward(x, jnp.arange(4.0))
except lsm.BackendUnsupportedError as error:
    assert "on cpu:1 and cpu:0; lsm does not move" in str(error), error
else:
    raise AssertionError("it was moved")
spread = jax.device_put(jnp.zeros((4, 3)), NamedSharding(Mesh(np.array([first, second]), "i"), PartitionSpec("i")))
try:
    lsm.log_softmax(spread)
except TypeError as error:
    assert "x: an array sharded over 2 devices; pass its shards" in str(error), error
    parts = [lsm.log_softmax(shard.data) for shard in spread.addressable_shards]
    assert [part.devices() for part in parts] == [{first}, {second}]
    print("done")
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["done"], done.stderr


def test_libraries_are_not_mixed():
    n, t, j = np.zeros(3, "f4"), torch.zeros(3), jnp.zeros(3, "float32")
    for a, b, message in (
        (t, n, r"a torch.Tensor and a numpy.ndarray; pass torch.as_tensor\(output\)"),
        (n, t, r"a numpy.ndarray and a torch.Tensor; pass torch.as_tensor\(grad_output\)"),
        (j, n, r"a jax.Array and a numpy.ndarray; pass jax.numpy.asarray\(output\)"),
        (t, j, r"a torch.Tensor and a jax.Array; pass"),
        (t, [0.0] * 3, r"torch.as_tensor\(output\)"),
    ):
        with pytest.raises(TypeError, match=f"^grad_output, output: .*{message}"):
            lsm.log_softmax_backward(a, b)
    with pytest.raises(lsm.BackendUnsupportedError, match="on cpu and meta; lsm does not move"):
        lsm.log_softmax_backward(t, torch.zeros(3, device="meta"))


def test_dtypes_of_the_gradient_promote_as_numpys_do(make):
    a = np.zeros(3)
    for first, second, expected in (
        ("float32", "float64", "float64"),
        ("bfloat16", "float32", "float32"),
        ("float16", "float64", "float64"),
        ("float16", "bfloat16", "float32"),
    ):
        for pair in ((first, second), (second, first)):
            assert dtype_of(lsm.log_softmax_backward(*(make(a, dtype) for dtype in pair))) == expected


def test_bfloat16_needs_no_ml_dtypes():
    """PyTorch does without; the bits are passed as they are, and the reference says what it needs."""
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, torch, lsm
x = torch.randn(7, 300).bfloat16()
y = lsm.log_softmax(x)
assert y.dtype == torch.bfloat16
wide = lsm.log_softmax(x.double())
assert ((y.double() - wide).abs() <= wide.abs() * 2.0**-8).all()
assert torch.equal(lsm.log_softmax(x, dtype=torch.float32), lsm.log_softmax(x.float()))
assert torch.equal(lsm.log_softmax(x.float(), dtype="bfloat16"), y)
for axis in (0, 1, None):
    out = torch.empty_like(x)
    assert lsm.log_softmax(x, axis, out=out) is out
    assert torch.equal(lsm.log_softmax(x, axis), out)
    dx = lsm.log_softmax_backward(x, out, axis)
    assert dx.dtype == torch.bfloat16 and dx.isfinite().all()
assert torch.equal(lsm.log_softmax(x.T.contiguous().T), y)
assert lsm.log_softmax_backward(x.float(), y).dtype == torch.float32
assert lsm.log_softmax(x[:0]).dtype == torch.bfloat16
for call in (
    lambda: lsm.log_softmax(x, backend="numpy"),
    lambda: lsm.log_softmax(np.zeros(3, "f4"), dtype="bfloat16"),
    lambda: lsm.log_softmax(np.zeros(3, [("bfloat16", "u2")])),
):
    try:
        call()
    except TypeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numpy_, dtype, structured = done.stdout.splitlines()
    assert "needs ml_dtypes for bfloat16: python -m pip install 'lsm-softmax[bfloat16]'; use backend='cython'" in numpy_
    assert dtype == "dtype: NumPy has bfloat16 only with ml_dtypes: python -m pip install 'lsm-softmax[bfloat16]'"
    assert "structured" in structured


def test_losses_of_bfloat16_need_no_ml_dtypes():
    code = """
import sys
sys.modules["ml_dtypes"] = None
import torch, lsm
x, t = torch.randn(70, 30).bfloat16(), torch.randint(0, 30, (70,))
where = torch.rand(70, 30) < 0.8
assert torch.equal(lsm.take_log_softmax(x, t), lsm.log_softmax(x).gather(1, t[:, None])[:, 0])
values, indices = lsm.top_k_log_softmax(x, 3, where=where)
assert torch.equal(indices, lsm.top_k_log_softmax(x.float(), 3, where=where).indices)
assert torch.equal(lsm.entropy(x, where=where), lsm.entropy(x.float(), where=where))
assert torch.equal(lsm.kl_divergence(x, x.flip(0)), lsm.kl_divergence(x.float(), x.flip(0).float()))
for targets in (t, torch.rand(70, 30).bfloat16()):
    for options in ({}, {"label_smoothing": 0.1}, {"where": where}, {"z_loss": 0.1}):
        value, dx = lsm.cross_entropy_value_and_grad(x, targets, **options)
        wide = targets if targets.dtype == torch.int64 else targets.float()
        expected, gradient = lsm.cross_entropy_value_and_grad(x.float(), wide, **options)
        assert value == expected and torch.equal(dx, gradient.bfloat16()), options
narrow = lsm.cross_entropy(x, t, dtype="bfloat16", reduction="none")
assert torch.equal(narrow, lsm.cross_entropy(x, t, reduction="none").bfloat16())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_readme_shows():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert type(names["y"]) is torch.Tensor and names["y"].shape == (64, 1000)


def test_lsm_imports_neither():
    code = """
import sys, numpy as np, lsm
lsm.log_softmax(np.zeros(3)), lsm.explain([1.0]), lsm.list_backends()
print([name for name in ("torch", "jax", "ml_dtypes") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[]"], done.stderr


def test_half_an_import_is_no_library(monkeypatch):
    import types

    for name in ("torch", "jax"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # another thread is importing it
        assert _interop.library_of(3.0 + 0j) is _interop.NUMPY_LIBRARY
        monkeypatch.setitem(sys.modules, name, None)
        assert lsm.log_softmax(np.zeros(3)).shape == (3,)


def test_numpy_and_threads_serve_them_too(make, rng):
    a = rng.standard_normal((300, 200))
    x = make(a, "float32")
    np.testing.assert_allclose(to_numpy(lsm.log_softmax(x, backend="numpy")), to_numpy(lsm.log_softmax(x)), rtol=1e-6)
    with lsm.use_backend("numpy"):
        assert is_of(make, lsm.log_softmax(x))
        assert lsm.explain(x).winner == "numpy"
    assert is_of(make, lsm.log_softmax(x, 0))  # large enough for threads
    for wrong in (3, ["numpy"]):
        with pytest.raises(TypeError, match="^backend: "):
            lsm.log_softmax(x, backend=wrong)


class Native:
    """A third-party backend for tensors as they are; it computes with float64 in its own way."""

    name, api_version, priority = "native", 1, 0
    devices, dtypes, array_types = ("cpu", "meta"), ("float16", "bfloat16", "float32", "float64"), ("torch.Tensor",)

    def __init__(self):
        self.calls = []

    def available(self):
        return None

    def log_softmax(self, x, axis, out):
        self.calls.append((x, axis, out))
        out.copy_(torch.log_softmax(x.double(), axis))

    def log_softmax_backward(self, grad_output, output, axis, out):
        self.calls.append((grad_output, output, axis, out))
        dy = grad_output.double()
        out.copy_(dy - output.double().exp() * dy.sum(axis, keepdim=True))


@pytest.mark.parametrize("dtype", list(TORCH))
def test_a_backend_for_tensors_is_given_them_as_they_are(installed, dtype, rng):
    native = installed(Native())
    x = torch.from_numpy(rng.standard_normal((4, 6))).to(TORCH[dtype])
    decision = lsm.explain(x, backend="native")
    assert (decision.winner, decision.passed_as) == ("native", "torch.Tensor")
    assert (lsm.explain(x).winner, lsm.explain(x).passed_as) == (
        "cython",
        "numpy.ndarray",
    )  # installing changes nothing
    with lsm.use_backend("native"):
        for axis in (0, 1, None, (1, 0), ()):
            native.calls.clear()
            y = lsm.log_softmax(x, axis)
            assert len(native.calls) == 1 and y.dtype == x.dtype
            if isinstance(axis, int):
                assert native.calls[0][0] is x and native.calls[0][2] is y
            close = 0.04 if dtype == "bfloat16" else 4e-3 if dtype == "float16" else 1e-6
            torch.testing.assert_close(y, lsm.log_softmax(x, axis, backend="cython"), atol=close, rtol=0)
            dx = lsm.log_softmax_backward(x, y, axis)
            torch.testing.assert_close(dx, lsm.log_softmax_backward(x, y, axis, backend="cython"), atol=close, rtol=0)
        y = lsm.log_softmax(x)
        assert torch.equal(lsm.log_softmax(x, out=(a := x.clone())), y) and native.calls[-1][2] is a
        assert lsm.log_softmax(a := x.clone(), out=a) is a and torch.equal(a, y) and native.calls[-1][0] is a
        memory = torch.empty(25, dtype=x.dtype)
        memory[1:] = x.flatten()
        part = memory[1:].view(4, 6)
        lsm.log_softmax(part, out=memory[:24].view(4, 6))
        assert torch.equal(memory[:24].view(4, 6), y)
        assert native.calls[-1][0] is not part  # which `out` overlaps, and is not
        assert lsm.log_softmax(x, dtype="float64").dtype == torch.float64
        assert lsm.log_softmax(torch.arange(4)).dtype == torch.float64
        assert lsm.log_softmax(x[:0]).shape == (0, 6)
        assert lsm.log_softmax(x.T).stride() == x.T.stride()
        assert lsm.log_softmax(torch.zeros(2, 3, device="meta", dtype=x.dtype)).device.type == "meta"
        for out, error, message in (
            (torch.empty(6, dtype=x.dtype), ValueError, "has shape"),
            (torch.empty(4, 6, dtype=torch.int32), TypeError, "has dtype int32"),
            (torch.empty(6, dtype=x.dtype).expand(4, 6), ValueError, "its elements overlap"),
            (torch.empty(4, 6, dtype=x.dtype, device="meta"), lsm.BackendUnsupportedError, "is on meta"),
        ):
            with pytest.raises(error, match=f"^out: .*{message}"):
                lsm.log_softmax(x, out=out)
        with pytest.raises(lsm.BackendUnsupportedError, match="supports torch.Tensor, not numpy.ndarray"):
            lsm.log_softmax(np.zeros(3))
    assert lsm.explain(torch.zeros(2, 3, device="meta", dtype=x.dtype)).winner == "native"  # which no built-in serves


def test_a_tensor_that_is_not_what_was_let_in(installed):
    native = installed(Native())
    for spoil, what in (
        (lambda self, x, axis, out: out.resize_(7), r"changed `out` from .* to \(\(7,\), 'float32', 'cpu'\)"),
        (lambda self, x, axis, out: out.transpose_(0, 1), r"changed `out` from .* to \(\(3, 2\), "),
        (lambda self, x, axis, out: torch.log_softmax(x, axis), "returned a Tensor"),
    ):
        native.log_softmax = spoil.__get__(native)
        with pytest.raises(lsm.BackendFailedError, match=what):
            lsm.log_softmax(torch.zeros(2, 3), backend="native")


def test_a_backend_for_jax_arrays(installed):
    native = Native()
    native.array_types = ("jax.Array",)
    native.log_softmax = lambda x, axis, out: native.calls.append((x, axis, out))
    installed(native)
    x = jnp.zeros((2, 3), "float32")
    for axis in (1, 0, None):
        y = lsm.log_softmax(x, axis, backend="native")
        assert isinstance(y, jax.Array) and y.shape == (2, 3) and y.dtype == np.float32
    assert native.calls[0][0] is x and native.calls[2][0].shape == (6,)
    assert lsm.log_softmax(x, dtype="float64", backend="native").dtype == np.float64


def enter(how, requested):
    """Request a backend in one of several ways."""
    if how == "set_default_backend":
        lsm.set_default_backend(requested)
    return lsm.use_backend(requested) if how == "use_backend" else contextlib.nullcontext()


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("requested", ["cython", "numpy", f"{DISTRIBUTION}/numpy"])
@pytest.mark.parametrize("how", ["automatic", "set_default_backend", "use_backend"])
def test_what_explain_says_is_what_happens(how, requested, library):
    with agreement.watched() as ran, enter(how, requested):
        n_served, n_refused = agreement.check(ran, how, library)
    assert n_served > 20 and n_refused > 20


@pytest.mark.parametrize("requested", ["cython", "numpy", "nope"])
def test_what_explain_says_of_the_environment_is_what_happens(requested):
    command = [sys.executable, agreement.__file__, "LSM_BACKEND", "torch", "jax"]
    done = subprocess.run(command, env=os.environ | {"LSM_BACKEND": requested}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(int(n) > 10 for n in done.stdout.split())


# -- the CuPy backend, which takes CUDA tensors as they are ---------------------------------------------------------


class ForTensors(CupyBackend):
    """The backend for tensors on the CPU, as if that were a device: the kernels run there too."""

    name, devices, array_types = "cuda-for-tensors", ("cpu",), ("torch.Tensor",)

    def __init__(self):
        super().__init__(cupy_on_cpu.module())
        self._tensors.device = lambda x: 0


@pytest.fixture
def for_tensors(installed, monkeypatch):
    stream = type("Stream", (), {"cuda_stream": 77})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(cupy_on_cpu._state, "launches", [])
    return installed(ForTensors()).name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_cupy_backend_takes_tensors_as_they_are(for_tensors, dtype):
    x = (torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    for view in (x, x.transpose(0, 2), x[:, ::2], x[:, :, 1:], x[1:]):
        for axis in (0, 1, 2, (0, 2), None):
            y = lsm.log_softmax(view, axis, backend=for_tensors)
            expected = lsm.log_softmax(view, axis, backend="numpy")
            assert (type(y), y.dtype, y.shape) == (torch.Tensor, dtype, view.shape)
            torch.testing.assert_close(y, expected)
            out = torch.full_like(view, 7)
            assert lsm.log_softmax(view, axis, out=out, backend=for_tensors) is out
            assert torch.equal(out, y)
            dx = lsm.log_softmax_backward(view, y, axis, backend=for_tensors)
            torch.testing.assert_close(dx, lsm.log_softmax_backward(view, y, axis, backend="numpy"))
    assert lsm.log_softmax(x, dtype=torch.float32, backend=for_tensors).dtype == torch.float32
    streams = {stream for _, _, stream in cupy_on_cpu.state().launches}
    assert streams == {77}  # PyTorch's current one, and not CuPy's


def test_the_cupy_backend_writes_tensors_in_place_and_between_others(for_tensors):
    memory = torch.randn(6, 8)
    before, x = memory.clone(), memory[:, ::2]
    expected = lsm.log_softmax(x, backend=for_tensors)
    assert lsm.log_softmax(x, out=x, backend=for_tensors) is x
    assert torch.equal(x, expected) and torch.equal(memory[:, 1::2], before[:, 1::2])
    with pytest.raises(TypeError, match="requires grad"):
        lsm.log_softmax(torch.zeros(3, requires_grad=True), backend=for_tensors)


def test_tensors_that_no_kernel_could_read_are_refused(for_tensors, monkeypatch):
    unaligned = torch.from_dlpack(np.zeros(25, "u1")[1:].view("f4"))
    assert lsm.log_softmax(unaligned).shape == (6,)  # a processor reads them
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    x = torch.zeros(6)
    for name, call in (
        ("x", lambda **k: lsm.log_softmax(unaligned, **k)),
        ("out", lambda **k: lsm.log_softmax(x, out=unaligned, **k)),
        ("grad_output", lambda **k: lsm.log_softmax_backward(unaligned, x, **k)),
        ("output", lambda **k: lsm.log_softmax_backward(x, unaligned, **k)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: its elements are not aligned to their size, 4 bytes"):
            call(backend=for_tensors)
    with pytest.raises(lsm.BackendFailedError, match="TypeError: a tensor whose memory cannot be read"):
        torch.func.vmap(lambda v: lsm.log_softmax(v, backend=for_tensors))(torch.zeros(2, 3))


def test_long_frames_of_tensors_get_their_workspace_from_pytorch(for_tensors, monkeypatch):
    made = []
    original = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, n, **k: made.append(n) or original(x, n, **k))
    x = torch.randn(2, 70_000)
    torch.testing.assert_close(lsm.log_softmax(x, backend=for_tensors), lsm.log_softmax(x))
    assert len(made) == 1


def test_the_cupy_backend_keeps_its_claims_for_tensors(for_tensors):
    some = [case for case in cases(for_tensors) if case.subject.dtype_name in ("bfloat16", "float32")]
    outcomes = [run(case) for case in some if case.check.per != "backend"]
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    assert not failed, failed[0]
    assert sum(outcome.outcome == "passed" for outcome in outcomes) > 50


@pytest.mark.parametrize("axis", [-1, (0, 1)], ids=["straight to the kernels", "the ordinary way"])
def test_autograd_finds_out_that_out_was_written(axis):
    """Otherwise it would take the result for what it had saved, and give a wrong gradient without a word."""
    a = torch.randn(3, 4)
    lsm.log_softmax(a)  # a plan is made
    for write in (
        lambda out: lsm.log_softmax(a, axis, out=out),
        lambda out: lsm.log_softmax_backward(a, a, axis, out=out),
    ):
        x = torch.zeros(3, 4, requires_grad=True)
        w = (x * 2).exp()
        write(w.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            w.sum().backward()
    with torch.inference_mode():
        out = torch.empty(3, 4)
        assert lsm.log_softmax(a, axis, out=out) is out


@pytest.mark.parametrize(("number", "kind"), [(2, "cuda"), (10, "rocm"), (3, "cpu")])
def test_jax_calls_every_gpu_gpu(number, kind):
    """DLPack tells CUDA's from ROCm's, and both from pinned memory of the host."""

    class Sharding:
        device_set = {type("Device", (), {"platform": "gpu", "id": 0})}  # noqa: RUF012

    class Array:
        sharding = Sharding

        def __dlpack_device__(self):
            return number, 0

    assert _interop.jax_library().device_kind(Array()) == kind


COMPILED = """
import itertools, sys, warnings
warnings.simplefilter("error")
import torch, lsm
dtype = getattr(torch, sys.argv[1])
def block(a):
    with lsm.use_backend("numpy"):
        return lsm.log_softmax(a) * 2
broken = {
    "plain": lsm.log_softmax,
    "transposed": lambda a: lsm.log_softmax(a.t(), axis=0) + 1,
    "several axes": lambda a: lsm.log_softmax(a, (0, 1)) * 2,
    "out": lambda a: lsm.log_softmax(a + 1, out=torch.empty_like(a)) * 2,
    "dtype": lambda a: lsm.log_softmax(a, dtype=torch.float64) + 1,
    "backward": lambda a: lsm.log_softmax_backward(a * 2, a.t().contiguous().t()) + 1,
    "explain": lambda a: a * len(lsm.explain(a).winner),
    "a block": block,
}
x = torch.randn(6, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
for what, function in broken.items():
    torch._dynamo.reset()
    y = [torch.compile(function, backend="eager")(x) for _ in range(2)]
    expected = function(x)
    for one in y:
        assert one.dtype == expected.dtype and torch.equal(one, expected), what
many = torch.compile(lambda a: lsm.log_softmax(a, 0), backend="eager")
for shape in [(n,) * d for n, d in itertools.product((2, 3, 5), (1, 2, 3, 4))]:  # more than the limit of recompilations
    a = torch.ones(shape, dtype=dtype)
    assert torch.equal(many(a), lsm.log_softmax(a, 0))
try:
    many(torch.zeros(2, requires_grad=True))
except TypeError as error:
    print("x: a tensor that requires grad" in str(error))
n = x.float().numpy().T
print((torch.compile(lambda a: lsm.log_softmax(a, 0), backend="eager")(n) == lsm.log_softmax(n, 0)).all())
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_torch_compile_breaks_the_graph_and_the_result_is_right(dtype):
    """In a fresh process, so that nothing was called outside of it before."""
    done = subprocess.run([sys.executable, "-c", COMPILED, dtype], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stdout + done.stderr


def test_what_traces_without_values_is_refused():
    with pytest.raises(TypeError, match=r"^x: a torch.fx.proxy.Proxy, a placeholder"):
        torch.fx.symbolic_trace(lambda a: lsm.log_softmax(a))
    from torch._subclasses import FakeTensorMode

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, dtype=dtype)
        lsm.log_softmax(x)
        with FakeTensorMode(), pytest.raises(TypeError, match="^x: a tensor whose memory cannot be read"):
            lsm.log_softmax(x)


def test_lists_of_tensors():
    for items, message in (
        ([torch.zeros(2, requires_grad=True)], r"^x: x\[0\]: a tensor that requires grad"),
        ([torch.zeros(2), Wrapper(torch.zeros(2))], r"^x: x\[1\]: a Wrapper"),
        ([[fake()]], r"^x: x\[0\]\[0\]: .*FakeTensor"),
    ):
        with pytest.raises(TypeError, match=message):
            lsm.log_softmax(items)
    np.testing.assert_array_equal(lsm.log_softmax([torch.zeros(2)] * 3), np.full((3, 2), -np.log(2), "f4"))


DISTRIBUTED = """
import torch, lsm
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
x = torch.arange(6.0).reshape(2, 3)
spread = distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])
for call in (lsm.log_softmax, lsm.explain, lambda a: lsm.log_softmax(x, out=a), lambda a: lsm.log_softmax([a, a])):
    try:
        call(spread)
    except TypeError as error:
        print(".to_local() if each part has whole frames, or" in str(error), ".full_tensor()" in str(error))
print(*[torch.equal(lsm.log_softmax(part), lsm.log_softmax(x)) for part in (spread.to_local(), spread.full_tensor())])
dist.destroy_process_group()
"""


def test_tensors_that_lie_with_several_processes():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", DISTRIBUTED], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 10, done.stdout + done.stderr


def test_what_the_remedies_of_torch_give(tmp_path):
    with pytest.warns(UserWarning, match="prototype"):
        held = masked()
    y = lsm.log_softmax(held.to_tensor(-torch.inf))
    assert torch.equal(y, torch.tensor([0.0, -torch.inf]))
    assert [lsm.log_softmax(part).shape for part in jagged().unbind()] == [(2,), (3,)]
    assert lsm.log_softmax(torch.zeros(2).as_subclass(Subclass).as_subclass(torch.Tensor)).shape == (2,)


def test_results_without_dimensions_are_the_librarys_own(make):
    for dtype in TORCH:
        x = make(np.array(3.0), dtype)
        y = lsm.log_softmax(x)
        assert is_of(make, y) and tuple(y.shape) == () and dtype_of(y) == dtype and float(y) == 0
        assert is_of(make, lsm.log_softmax_backward(x, y, None))


# -- operations that few backends have: the library's own arrays come back -------------------------------------------


def test_losses_and_selections_of_tensors_and_jax_arrays(make, rng):
    """What NumPy's arrays give, in the library's own type."""
    a, t, weight = rng.standard_normal((40, 30)), rng.integers(0, 30, 40), rng.uniform(0.5, 2, 30)
    of_library = torch.from_numpy if make is LIBRARIES["torch"][0] else jnp.asarray
    where = rng.random((40, 30)) < 0.8
    for dtype in ("float32", "bfloat16", "float64"):
        x, own = make(a, dtype), np.asarray(to_numpy(make(a, dtype)), ml_dtypes.bfloat16 if dtype[0] == "b" else dtype)
        q = make(np.exp(a), "float32")
        for options in ({}, {"label_smoothing": 0.1}, {"temperature": 0.5}, {"weight": weight}, {"where": where}):
            given = {k: of_library(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            value, dx = lsm.cross_entropy_value_and_grad(x, of_library(t), **given)
            expected, gradient = lsm.cross_entropy_value_and_grad(own, t, **options)
            assert is_of(make, value) and is_of(make, dx) and dtype_of(dx) == dtype and value.shape == ()
            assert float(value) == expected and (to_numpy(dx) == gradient.astype(float)).all()
        assert is_of(make, lsm.cross_entropy(x, q))
        assert float(lsm.cross_entropy(x, q)) == lsm.cross_entropy(own, np.exp(a).astype(np.float32))
        y = lsm.take_log_softmax(x, of_library(t), where=of_library(where))
        assert is_of(make, y) and dtype_of(y) == dtype
        assert (to_numpy(y) == lsm.take_log_softmax(own, t, where=where).astype(float)).all()
        p = lsm.partials(x, where=of_library(where))
        assert (np.asarray(p) == lsm.partials(own, where=where)).all() and np.asarray(p).dtype == np.float64
        assert is_of(make, p) or not jax.config.jax_enable_x64
        for whole in (p, np.asarray(p)):
            y = lsm.log_softmax(x, partials=whole, where=of_library(where))
            assert is_of(make, y) and dtype_of(y) == dtype
            assert (to_numpy(y) == lsm.log_softmax(own, where=where).astype(float)).all()
        values, indices = lsm.top_k_log_softmax(x, 3)
        assert is_of(make, values) and is_of(make, indices) and dtype_of(indices) == "int64"
        assert (np.asarray(indices) == lsm.top_k_log_softmax(own, 3).indices).all()
        for result, of_numpy in (
            (lsm.entropy(x), lsm.entropy(own)),
            (lsm.kl_divergence(x, x[::-1] if make is not LIBRARIES["torch"][0] else x.flip(0)), None),
        ):
            assert is_of(make, result) and (of_numpy is None or (to_numpy(result) == of_numpy).all())


def test_arrays_beside_logits_belong_to_their_library():
    x, t = torch.zeros(2, 3), np.array([0, 1])
    for call, name in (
        (lambda: lsm.cross_entropy(x, t), "targets"),
        (lambda: lsm.cross_entropy(x, [0, 1]), "targets"),
        (lambda: lsm.take_log_softmax(x, t), "indices"),
        (lambda: lsm.cross_entropy(x, torch.tensor([0, 1]), weight=np.ones(3)), "weight"),
        (lambda: lsm.cross_entropy(np.zeros((2, 3)), torch.tensor([0, 1])), "targets"),
        (lambda: lsm.kl_divergence(x, np.zeros((2, 3))), "q_logits"),
    ):
        with pytest.raises(TypeError, match=rf"^\w+, {name}: a .* and a .*; pass "):
            call()
    with pytest.raises(TypeError, match=r"^logits: a tensor that requires grad"):
        lsm.cross_entropy(x.clone().requires_grad_(), torch.tensor([0, 1]))
    for function, remedy in ((lsm.entropy, "compute it from"), (lambda x: lsm.top_k_log_softmax(x, 1), "index the")):
        with pytest.raises(lsm.BackendUnsupportedError, match=f"^x: is on meta.*; {remedy}"):
            function(x.to("meta"))
    decision = lsm.explain(x.to("meta"), "entropy")
    assert decision.winner is None and decision.error is not None


def test_gradients_into_tensors(rng):
    x, t = torch.from_numpy(rng.standard_normal((300, 500))).float(), torch.from_numpy(rng.integers(0, 500, 300))
    value, dx = lsm.cross_entropy_value_and_grad(x, t)
    a = x.clone()
    version = a._version
    in_place = lsm.cross_entropy_value_and_grad(a, t, out=a)
    assert in_place[1] is a and torch.equal(a, dx) and in_place[0] == value and a._version > version
    out = torch.empty(300)
    assert lsm.take_log_softmax(x, t, out=out) is out
    assert torch.equal(out, lsm.log_softmax(x).gather(1, t[:, None])[:, 0])
    with pytest.raises(TypeError, match="^out: a numpy.ndarray; accepted: a torch.Tensor"):
        lsm.take_log_softmax(x, t, out=np.empty(300, np.float32))
    with pytest.raises(TypeError, match="^out: a JAX array, which cannot be written to"):
        lsm.cross_entropy_value_and_grad(jnp.zeros((2, 3)), jnp.zeros(2, int), out=jnp.zeros((2, 3)))


def test_losses_agree_with_torch_where_it_is_right(rng):
    functional = torch.nn.functional
    x, t = torch.from_numpy(rng.standard_normal((30, 7, 4))), torch.from_numpy(rng.integers(0, 7, (30, 4)))
    q, weight = torch.softmax(torch.from_numpy(rng.standard_normal((30, 7, 4))), 1), torch.rand(7, dtype=x.dtype)
    t[::5] = -100
    for reduction in ("mean", "sum", "none"):
        for options in ({}, {"weight": weight}, {"label_smoothing": 0.2}, {"weight": weight, "label_smoothing": 0.2}):
            for targets, ignored in ((t, {"ignore_index": -100}), (q, {})):
                logits = x.clone().requires_grad_()
                expected = functional.cross_entropy(logits, targets, reduction=reduction, **options)
                expected.sum().backward()
                value, dx = lsm.cross_entropy_value_and_grad(x, targets, 1, reduction=reduction, **options, **ignored)
                torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-15)
                torch.testing.assert_close(dx, logits.grad, rtol=1e-11, atol=1e-15)
    for k in (1, 3, 7):
        found, expected = lsm.top_k_log_softmax(x, k, 1), torch.topk(torch.log_softmax(x, 1), k, 1)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(lsm.entropy(x, 1), torch.distributions.Categorical(logits=x.swapaxes(1, 2)).entropy())
    kl = functional.kl_div(q.log(), torch.log_softmax(x, 1), log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(lsm.kl_divergence(x, q.log(), 1), kl)


def test_losses_by_a_backend_for_tensors(installed, rng):
    native = installed(Native())
    x, t = torch.from_numpy(rng.standard_normal((40, 30))).float(), torch.from_numpy(rng.integers(0, 30, 40))
    for options in ({}, {"where": torch.from_numpy(rng.random((40, 30)) < 0.8)}, {"temperature": 0.5}):
        value, dx = lsm.cross_entropy_value_and_grad(x, t, **options, backend="native")
        expected, gradient = lsm.cross_entropy_value_and_grad(x, t, **options)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(dx, gradient)
    assert native.calls and isinstance(native.calls[0][0], torch.Tensor)
    for y in (lsm.take_log_softmax(x, t, backend="native"), lsm.top_k_log_softmax(x, 2, backend="native").values):
        assert isinstance(y, torch.Tensor)


def test_classes_of_jax_without_64_bits():
    with jax.enable_x64(False):
        values, indices = lsm.top_k_log_softmax(jnp.asarray([[1.0, 3.0, 2.0]]), 2)
        assert indices.dtype == np.int32 and indices.tolist() == [[1, 2]] and values.dtype == np.float32
        assert lsm.cross_entropy(jnp.asarray([[1.0, 3.0]]), jnp.asarray([1])).dtype == np.float32
        with pytest.raises(TypeError, match="^dtype: the result would be float64"):
            lsm.cross_entropy(jnp.asarray([[1, 3]]), jnp.asarray([1]))


def test_softmax_and_logsumexp_of_tensors_and_jax_arrays(rng):
    x = rng.standard_normal((4, 7)).astype(np.float32)
    p, dy = lsm.softmax(x), rng.standard_normal((4, 7)).astype(np.float32)
    for make in (torch.from_numpy, jnp.asarray):
        kind = type(make(x))
        for result, wanted in (
            (lsm.softmax(make(x)), p),
            (lsm.softmax_backward(make(dy), make(p)), lsm.softmax_backward(dy, p)),
            (lsm.logsumexp(make(x), 1), lsm.logsumexp(x, 1)),
            (lsm.logsumexp(make(x), 0, keepdims=True), lsm.logsumexp(x, 0, keepdims=True)),
            (lsm.logsumexp(make(x)), lsm.logsumexp(x)),
            (lsm.logsumexp(make(np.full((2, 3), -np.inf, np.float32)), 1, return_sign=True)[1], np.zeros(2)),
            (lsm.logsumexp(make(x), return_sign=True)[1], 1),
        ):
            assert isinstance(result, kind) and result.dtype == make(x).dtype
            np.testing.assert_array_equal(np.asarray(result), wanted)
    out = torch.empty(4)
    assert lsm.logsumexp(torch.from_numpy(x), 1, out=out) is out
    np.testing.assert_array_equal(out.numpy(), lsm.logsumexp(x, 1))
    halves = lsm.logsumexp(torch.zeros((3, 2), dtype=torch.bfloat16), -1, return_sign=True)
    assert halves[0].dtype == halves[1].dtype == torch.bfloat16 and (halves[1] == 1).all()


# -- signal handlers, as in test_signals.py -------------------------------------------------------------------------

arm = test_signals.arm


@pytest.mark.parametrize("method", ["numpy", "data_ptr"])
def test_what_a_handler_raises_within_a_tensor_passes_through(method, arm, monkeypatch):
    x = torch.zeros(3)
    monkeypatch.setattr(torch.Tensor, method, test_signals.interrupt)
    for call in (lsm.log_softmax, lambda x: lsm.log_softmax(x, dtype=torch.float64)):
        arm(test_signals.StopError)
        with pytest.raises(test_signals.StopError):
            call(x)


def test_what_a_handler_raises_within_an_array_of_jax_passes_through(arm, monkeypatch):
    x = jnp.zeros(3)
    monkeypatch.setattr(np, "asarray", test_signals.interrupt)
    arm(RuntimeError)
    with pytest.raises(RuntimeError):
        JaxLibrary().view_as_numpy(x, "x")


# -- keywords -------------------------------------------------------------------------------------------------------


def test_masks_temperatures_and_factors_of_both_libraries():
    a = np.array([[1.0, 2.0, np.nan], [3.0, 0.5, -1.0]], np.float32)
    mask = np.array([True, True, False])
    t = np.array([[0.5], [2.0]], np.float32)
    masked = lsm.softmax(a, where=mask, temperature=t)
    total, sign = lsm.logsumexp(a, 1, b=np.float32([1, -1, 0]), return_sign=True)
    for convert in (torch.from_numpy, jnp.asarray):
        x, m, own = convert(a), convert(mask), convert(t)
        for temperature in (own, t.astype(float)):  # of the array's library, or an ndarray
            p = lsm.softmax(x, where=m, temperature=temperature)
            assert type(p) is type(x)
            np.testing.assert_array_equal(np.asarray(p), masked)
        found = lsm.logsumexp(x, 1, b=convert(np.float32([1, -1, 0])), return_sign=True)
        assert [type(y) for y in found] == [type(x)] * 2
        np.testing.assert_array_equal(np.asarray(found[0]), total)
        np.testing.assert_array_equal(np.asarray(found[1]), sign)
        assert lsm.logsumexp(x, b=2.0).dtype == x.dtype
        for wrong in (mask, [True, True, False]):
            with pytest.raises(TypeError, match=r"^x, where: .*; pass (torch\.as_tensor|jax\.numpy\.asarray)\(where\)"):
                lsm.softmax(x, where=wrong)
        with pytest.raises(TypeError, match=r"^a, b: "):
            lsm.logsumexp(x, b=np.ones(3))
    out = torch.empty(2, 3)
    assert (
        lsm.softmax(torch.from_numpy(a), where=torch.from_numpy(mask), temperature=torch.from_numpy(t), out=out) is out
    )
    np.testing.assert_array_equal(out.numpy(), masked)
    with pytest.raises(TypeError, match="^temperature: a tensor that requires grad"):
        lsm.softmax(torch.zeros(3), temperature=torch.ones(1, requires_grad=True))
    with pytest.raises(lsm.BackendUnsupportedError, match="^x, where: on cpu and meta"):
        lsm.softmax(torch.zeros(3), where=torch.ones(3, dtype=torch.bool, device="meta"))


class OfTensors(lsm.Backend):
    """A backend that takes tensors as they are."""

    name, api_version, dtypes, array_types = "of-tensors", 1, ("bfloat16", "float32", "float64"), ("torch.Tensor",)

    def log_softmax(self, x, axis, out):
        out.copy_(torch.log_softmax(x.double(), axis))

    def log_softmax_backward(self, grad_output, output, axis, out):
        out.copy_(grad_output - output.exp() * grad_output.sum(axis, keepdim=True))


def test_keywords_with_a_backend_for_tensors(installed):
    installed(OfTensors())
    x, mask = torch.tensor([[1.0, 2.0, torch.nan], [3.0, 0.5, -1.0]]), torch.tensor([True, True, False])
    for dtype, close in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        for temperature in (1, 0.5, torch.tensor([[0.5], [2.0]]), np.array([[0.5], [2.0]])):
            options = {"where": mask, "temperature": temperature}
            y = lsm.log_softmax(x.to(dtype), **options, backend="of-tensors")
            expected = lsm.log_softmax(x.to(dtype), **options)
            torch.testing.assert_close(y, expected, rtol=close, atol=0)
            dx = lsm.log_softmax_backward(x.to(dtype), y, **options, backend="of-tensors")
            torch.testing.assert_close(dx, lsm.log_softmax_backward(x.to(dtype), y, **options), rtol=close, atol=close)
    for dtype in (torch.float32, torch.float64):
        assert lsm.log_softmax(x.to(dtype), where=mask, backend="of-tensors").dtype == dtype
    with pytest.raises(lsm.BackendUnsupportedError, match="^temperature, b: a Tensor to float64 is not supported"):
        lsm.log_softmax(x.double(), temperature=2, backend="of-tensors")


def test_the_message_about_another_library_names_the_logits():
    x, temperature = np.zeros((2, 3)), torch.ones(2, 1)
    for name, call in (
        ("x", lambda **options: lsm.softmax(x, **options)),
        ("grad_output", lambda **options: lsm.softmax_backward(x, x, **options)),
        ("logits", lambda **options: lsm.cross_entropy(x, [0, 1], **options)),
        ("p_logits", lambda **options: lsm.kl_divergence(x, x, **options)),
    ):
        with pytest.raises(TypeError, match=rf"^{name}, temperature: .*pass torch.as_tensor\({name}\)"):
            call(temperature=temperature)


def test_what_to_do_about_padding_is_for_the_library_of_the_arrays():
    x, indices = torch.zeros(2, 3), torch.tensor([1, -1])
    with pytest.raises(IndexError, match=r"pass torch.where\(indices < 0, 0, indices\) for padding"):
        lsm.take_log_softmax(x, indices)
    assert lsm.take_log_softmax(x, torch.where(indices < 0, 0, indices)).shape == (2,)


def test_a_bool_of_torch_is_no_integer():
    assert lsm.top_k_log_softmax([1, 2, 3], torch.tensor(2)).values.shape == (2,)
    with pytest.raises(TypeError, match="^k: "):
        lsm.top_k_log_softmax([1, 2, 3], torch.tensor(True))
    with pytest.raises(TypeError, match="^ignore_index: "):
        lsm.cross_entropy([1, 2, 3], 0, ignore_index=torch.tensor(True))
    with pytest.raises(TypeError, match="^axis: "):
        lsm.entropy(np.zeros((2, 3)), axis=torch.tensor(True))
