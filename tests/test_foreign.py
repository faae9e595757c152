"""Arrays that are more than numbers in memory, as small stand-ins: recognised and refused before anything is read.

tests/test_zoo.py has the libraries themselves.
"""

import array
import collections
import collections.abc
import subprocess
import sys
import types

import numpy as np
import pytest

import lsm
from lsm import _foreign, _sequences


class ReadingError(Exception):
    """The data was read."""


def reads(*args, **kwargs):
    raise ReadingError


def make(name, **attributes):
    """An object of a class by its full name; every way to its data raises."""
    module, _, own = name.rpartition(".")
    ways = dict.fromkeys(("__array__", "__len__", "__getitem__", "__float__", "__dlpack__"), reads)
    return type(own, (), {"__module__": module, **ways, **attributes})()


def a_property(value):
    return property(lambda self: value)


FLOATS = np.dtype("f8")
DASK = {"__dask_graph__": reads, "compute": reads, "dtype": a_property(FLOATS)}
REFUSED = {
    "xarray.core.dataarray.DataArray": ({"__dask_graph__": reads}, r"x.to_numpy\(\)"),
    "xarray.core.dataset.Dataset": ({}, r"one of them: x\[name\].to_numpy\(\)"),
    "zarr.core.array.Array": ({"chunks": (1,)}, r"x\[...\]"),
    "zarr.core.group.Group": ({}, r"one of them: x\[name\]\[...\]"),
    "h5py._hl.dataset.Dataset": ({}, r"x\[...\]"),
    "h5py._hl.files.File": ({}, r"one of them: x\[name\]\[...\]"),
    "netCDF4._netCDF4.Variable": ({"mask": True}, r"numpy.ma.filled\(x\[...\], -numpy.inf\)"),
    "tensorstore.TensorStore": ({}, r"x.read\(\).result\(\)"),
    "tensorstore.Future": ({}, r"x.result\(\)"),
    "distributed.client.Future": ({}, r"x.result\(\)"),
    "concurrent.futures._base.Future": ({}, r"x.result\(\)"),
    "ray._raylet.ObjectRef": ({"__await__": reads}, r"ray.get\(x\)"),
    "ray.data.dataset.Dataset": ({}, r"x.map_batches\("),
    "polars.lazyframe.frame.LazyFrame": ({}, r"x.collect\(\)"),
    "pyarrow.lib.ChunkedArray": ({"null_count": 2}, r"x.cast\('float64'\).fill_null\(-numpy.inf\)"),
    "pyarrow.lib._Tabular": ({}, "column.cast"),
    "torch.fx.proxy.Proxy": ({}, "a real tensor, outside of tracing"),
    "cubed.array_api.array_object.Array": ({"compute": reads, "chunks": (1,)}, r"x.compute\(\)"),
    "dask.array.core.Array": (DASK | {"numblocks": a_property((1, 4))}, r"x.compute\(\)$"),
    "dask.array._array_expr._collection.Array": (DASK, r"x.compute\(\)$"),
    "scipy.sparse._csr.csr_array": ({"toarray": reads, "todense": reads}, r"x.toarray\(\)"),
    "sparse.COO": ({"todense": reads, "__dlpack_device__": reads}, r"x.todense\(\)"),
    "acme.Masked": ({"mask": a_property(np.array([True, False]))}, r"numpy.where\(x.mask, -numpy.inf, x\)"),
    "acme.MaskedScalar": ({"mask": True}, "numpy.where"),
    "acme.MaskedFloats": (
        {"mask": a_property(np.array([True])), "filled": reads, "dtype": FLOATS},
        r"x.filled\(-numpy.inf\)",
    ),
    "acme.MaskedInts": (
        {"mask": a_property(np.array([True])), "filled": reads, "dtype": np.dtype(int)},
        r"x.astype\(float\).filled",
    ),
    "acme.Quantity": ({"unit": a_property("m"), "to_value": reads, "value": 1}, r"x.to_value\(''\) .* or x.value for"),
    "acme.Measured": ({"units": "km", "magnitude": 3.0}, "x.magnitude"),
    "acme.Length": ({"unit": "m"}, r"numpy.asarray\(x\)"),
    "acme.Both": (
        {"unit": "m", "value": 1, "mask": a_property(np.array(True)), "filled": reads},
        r"x.value.filled\(-numpy.inf\)",
    ),
    "acme.Lazy": ({"compute": reads}, r"x.compute\(\)"),
    "acme.Soon": ({"__await__": reads}, "await x"),
    "acme.Chunked": ({"chunks": (10,)}, r"x\[...\]"),
}


class Own(collections.abc.Sequence):
    """A sequence of another class."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Indexed:
    """NumPy takes this for a sequence too."""

    def __init__(self, items):
        self.items = items

    __len__, __getitem__ = Own.__len__, Own.__getitem__


class Fresh(Own):
    """Whose items are made when they are asked for, and may all have the same id."""

    def __getitem__(self, i):
        return Own(self.items[i])


class Wrapper:
    """All attributes are those of another object."""

    def __init__(self, held, **more):
        self.__dict__ |= {"held": held} | more

    def __getattr__(self, name):
        return getattr(self.held, name)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.held)


@pytest.fixture(params=list(REFUSED))
def case(request):
    attributes, remedy = REFUSED[request.param]
    return make(request.param, **attributes), request.param, remedy


def test_it_is_refused_and_the_message_names_argument_type_and_remedy(case):
    x, kind, remedy = case
    plain = np.zeros(2)
    for call in (lambda: lsm.log_softmax(x), lambda: lsm.explain(x), lambda: lsm.log_softmax(x, axis=7, backend="no")):
        with pytest.raises(TypeError, match=f"^x: an? .*{kind}.*; pass .*{remedy}"):
            call()
    with pytest.raises(TypeError, match=f"^grad_output: an? .*{kind}"):
        lsm.log_softmax_backward(x, plain)
    with pytest.raises(TypeError, match=f"^output: an? .*{kind}.*; pass "):
        lsm.log_softmax_backward(plain, x)
    with pytest.raises(TypeError, match=f"^out: a .*; accepted: a numpy.ndarray of shape .*; this is an? .*{kind}"):
        lsm.log_softmax(plain, out=x)


@pytest.mark.parametrize(
    ("hold", "place"),
    [
        (lambda x: [x, x], r"x\[0\]"),
        (lambda x: (x,), r"x\[0\]"),
        (lambda x: [1.0, [2.0, x]], r"x\[1\]\[1\]"),
        (lambda x: [[0.0] * 5, (1, [np.zeros(3), x])], r"x\[1\]\[1\]\[1\]"),
        (lambda x: collections.deque([x]), r"x\[0\]"),
        (lambda x: collections.UserList([x]), r"x\[0\]"),
        (lambda x: Own([x]), r"x\[0\]"),
        (lambda x: Own([[1.0], Own([2.0, x])]), r"x\[1\]\[1\]"),
        (lambda x: [Own([1.0]), Own([Own([x])])], r"x\[1\]\[0\]\[0\]"),
        (lambda x: Indexed([1.0, x]), r"x\[1\]"),
        (lambda x: Fresh([[1.0], [2.0], [x]]), r"x\[2\]\[0\]"),
    ],
)
def test_so_is_a_list_that_holds_it(case, hold, place):
    x, kind, _ = case
    for call in (lsm.log_softmax, lsm.explain):
        with pytest.raises(TypeError, match=f"^x: {place}: an? .*{kind}"):
            call(hold(x))


def test_a_subclass_is_no_way_around():
    base = type(make("h5py._hl.dataset.Dataset"))
    with pytest.raises(TypeError, match=r"pass x\[...\]"):
        lsm.log_softmax(type("Mine", (base,), {})())


def test_what_a_remedy_of_a_lazy_array_leaves_is_converted_too():
    meta = np.ma.masked_array([1.0])
    for _meta, rest in (
        (meta, r"dask.array.ma.filled\(x, -numpy.inf\)"),
        (make("acme.COO", todense=reads), r"x\.compute\(\)\.todense\(\)"),
        (np.zeros(0), r"x\.compute\(\)$"),
    ):
        with pytest.raises(TypeError, match=f"pass {rest}"):
            lsm.log_softmax(make("dask.array.core.Array", **DASK, _meta=a_property(_meta)))
    lazy = make("dask.array.core.Array", **DASK)
    for unit, found in (("m", r"x.m_as\(''\).compute\(\) if .* x.magnitude.compute\(\)"), ("", "x.magnitude.compute")):
        x = make("pint.Quantity", units=unit, magnitude=a_property(lazy), m_as=reads, **DASK)
        with pytest.raises(TypeError, match=f"pass {found}"):
            lsm.log_softmax(x)


class Held:
    """What NumPy makes an array of."""

    def __array__(self, dtype=None, copy=None):
        return np.array([1.0, 2.0])


class Table(Held):
    """Columns are attributes, as in pandas; and it has methods of these names."""

    def __getattr__(self, name):
        if name in ("unit", "units", "compute", "chunks", "attrs", "filled", "magnitude", "dtype", "null_count"):
            return np.array([1.0, 2.0])
        raise AttributeError(name)

    def mask(self, condition):
        raise AssertionError


class Dimensionless(Held):
    unit, mask = "", None


class Unmasked(Held):
    units, mask = None, False


@pytest.mark.parametrize("kind", [Held, Table, Dimensionless, Unmasked])
def test_what_is_taken_as_before(kind):
    expected = lsm.log_softmax([1.0, 2.0])
    np.testing.assert_array_equal(lsm.log_softmax(kind()), expected)
    np.testing.assert_array_equal(lsm.log_softmax([kind(), kind()]), [expected] * 2)


def test_plain_subclasses_and_files_in_memory_are_taken(tmp_path):
    class Mine(np.ndarray):
        pass

    mapped = np.memmap(tmp_path / "m", "f8", "w+", shape=(3,))
    mapped[:] = [1, 2, 3]
    expected = lsm.log_softmax([1.0, 2.0, 3.0])
    for x in (mapped, mapped.view(Mine), np.asarray(mapped).view(Mine)):
        y = lsm.log_softmax(x)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected)
    assert lsm.log_softmax([1.0, 2.0, 3.0], out=mapped) is mapped
    np.testing.assert_array_equal(mapped, expected)


class InUnit(np.ndarray):
    """As astropy and unyt have it."""

    unit = "m"
    value = property(np.asarray)


def test_subclasses_with_a_unit_are_no_out():
    out = np.zeros(3).view(InUnit)
    with pytest.raises(TypeError, match=r"^out: a InUnit; accepted: a numpy.ndarray .*a quantity .*unit would be lost"):
        lsm.log_softmax(np.zeros(3), out=out)
    assert (out.value == 0).all()
    with pytest.raises(TypeError, match="pass x.value$"):
        lsm.log_softmax(out)


def test_what_an_array_method_gives_is_looked_at():
    for made in (np.zeros(2).view(InUnit), np.ma.masked_array([1.0, 2.0], [True, False])):
        x = type("Holder", (), {"__array__": lambda self, dtype=None, copy=None, made=made: made})()
        with pytest.raises(TypeError, match="^x: a (quantity|masked array)"):
            lsm.log_softmax(x)


def test_masked_integers_are_made_floating_first():
    x = np.ma.masked_array([1, 2, 3], [False, True, False])
    with pytest.raises(TypeError, match=r"pass x\.astype\(float\)\.filled\(-numpy\.inf\)"):
        lsm.log_softmax(x)
    np.testing.assert_allclose(lsm.log_softmax(x.astype(float).filled(-np.inf)), [-2.126928, -np.inf, -0.126928], 1e-5)


@pytest.mark.parametrize(
    ("name", "call", "result"),
    [
        ("b", lambda b: lsm.logsumexp(np.zeros((2, 3)), 1, b=b), np.log([2, 2])),
        ("weight", lambda weight: lsm.cross_entropy(np.zeros((2, 3)), [0, 2], weight=weight), np.log(3)),
        ("temperature", lambda t: lsm.entropy(np.zeros((2, 3)), temperature=t[:1]), np.log([3, 3])),
        ("targets", lambda q: lsm.cross_entropy(np.zeros((1, 3)), q[np.newaxis]), 2 * np.log(3)),
    ],
)
def test_a_masked_array_is_filled_with_what_suits_the_argument(name, call, result):
    x = np.ma.masked_array([1.0, np.nan, 1.0], [False, True, False])
    with pytest.raises(TypeError, match=rf"^{name}: .*; pass {name}\.filled\((\d)\)") as caught:
        call(x)
    value = 1 if name == "temperature" else 0
    assert f".filled({value})" in str(caught.value)
    np.testing.assert_allclose(call(x.filled(value)), result)


X, LABELS = np.zeros((2, 3)), [0, 2]
ARGUMENTS = {
    "x": (
        lsm.softmax,
        lambda x: lsm.take_log_softmax(x, LABELS),
        lambda x: lsm.top_k_log_softmax(x, 1),
        lsm.entropy,
    ),
    "a": (lsm.logsumexp,),
    "b": (lambda b: lsm.logsumexp(X, b=b),),
    "logits": (lambda x: lsm.cross_entropy(x, LABELS), lambda x: lsm.cross_entropy_value_and_grad(x, LABELS)),
    "p_logits": (lambda x: lsm.kl_divergence(x, X),),
    "q_logits": (lambda x: lsm.kl_divergence(X, x),),
    "grad_output": (lambda x: lsm.softmax_backward(x, X),),
    "output": (lambda x: lsm.softmax_backward(X, x),),
    "indices": (lambda indices: lsm.take_log_softmax(X, indices),),
    "targets": (lambda targets: lsm.cross_entropy(X, targets),),
    "weight": (lambda weight: lsm.cross_entropy(X, LABELS, weight=weight),),
    "where": (lambda where: lsm.log_softmax(X, where=where), lambda where: lsm.entropy(X, where=where)),
    "temperature": (
        lambda temperature: lsm.softmax(X, temperature=temperature),
        lambda temperature: lsm.cross_entropy(X, LABELS, temperature=temperature),
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_so_is_every_other_argument_alone_and_in_a_list(name):
    for call in ARGUMENTS[name]:
        for x in (make("dask.array.core.Array", **DASK), np.ma.masked_array([1, 1, 1], [0, 1, 0])):
            with pytest.raises(TypeError, match=f"^{name}: an? .*; pass "):
                call(x)
            with pytest.raises(TypeError, match=rf"^{name}: {name}\[1\]: an? .*; pass "):
                call([[1, 1, 1], x])


def test_masked_classes_of_frames_are_filled_as_integers():
    x = np.ma.masked_array([1, 9], [False, True])
    with pytest.raises(TypeError, match=r"^targets: .*; pass targets\.filled\(-1\), with ignore_index=-1$"):
        lsm.cross_entropy(np.zeros((2, 3)), x)
    with pytest.raises(TypeError, match=r"^indices: .*; pass indices\.filled\(0\), and drop those results$"):
        lsm.take_log_softmax(np.zeros((2, 3)), x)


def test_lists_that_hold_themselves_end():
    x = [1.0]
    x += [x] * 5
    with pytest.raises((ValueError, TypeError), match="^x: "):
        lsm.log_softmax(x)
    y = []
    y += [y] * 1000
    assert list(_sequences.foreign_items(y)) == []
    for around in (x, y):
        around.append(make("acme.Lazy", compute=reads))
        with pytest.raises(TypeError, match=rf"^x: x\[{len(around) - 1}\]: an acme.Lazy"):
            lsm.log_softmax(around)


def test_numbers_in_a_long_list_are_not_looked_at_one_by_one(monkeypatch):
    """A few nanoseconds each; and where no library is there that could have put anything else in, not at all."""
    looked = []
    monkeypatch.setattr(_foreign, "rule_for", lambda x: looked.append(x))
    monkeypatch.setattr(_sequences, "_is_foreign", lambda kind: looked.append(kind))
    assert list(_sequences.foreign_items([[1.0, 2, np.float16(3)] for _ in range(10_000)])) == []
    assert set(looked) == {float, int, np.float16} and len(looked) == 3

    class Counting(list):
        def __iter__(self):
            for n, item in enumerate(super().__iter__()):
                seen.append(n)
                yield item

    for is_loaded in (False, True):
        seen = []
        monkeypatch.setattr(_sequences, "LIBRARIES", {"sys"} if is_loaded else {"no such library"})
        assert list(_sequences.foreign_items(Counting([1.0] * 20_000))) == []
        assert len(seen) == (20_000 if is_loaded else _sequences._SAMPLE_ITEMS)


def test_nothing_is_imported_and_a_plain_call_looks_at_nothing():
    code = """
import sys, numpy as np
import lsm
from lsm import _foreign
_foreign.rule_for = None  # a call of it would raise
x = np.zeros((2, 3), "f4")
lsm.log_softmax(x), lsm.log_softmax_backward(x, x), lsm.log_softmax(x.T), lsm.log_softmax(x, out=x, dtype="f4")
lsm.log_softmax_backward(x, x, (0, 1))
print([name for name in _foreign.LIBRARIES if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[]"], done.stdout + done.stderr


def test_a_library_that_is_half_imported_does_no_harm(monkeypatch):
    for name in ("dask", "astropy", "zarr", "pandas"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert lsm.log_softmax([1.0, 2.0]).shape == (2,)


# -- results without dimensions -------------------------------------------------------------------------------------


def test_results_without_dimensions_are_scalars(backend, dtype):
    """As those of NumPy and SciPy."""
    for x in (np.array(3.5, dtype), dtype.type(3.5), np.array(3.5, dtype.newbyteorder())):
        for axis in (-1, 0, None, ()):
            y = lsm.log_softmax(x, axis, backend=backend)
            dx = lsm.log_softmax_backward(x, y, axis, backend=backend)
            assert type(y) is type(dx) is dtype.type
            assert y == dx == 0
    out = np.array(7, dtype)
    assert lsm.log_softmax(dtype.type(3), out=out, backend=backend) is out and out == 0


def test_a_number_gives_a_scalar():
    for x in (3.5, 3, True, np.int8(1)):
        assert type(lsm.log_softmax(x)) is type(lsm.log_softmax_backward(x, x)) is np.float64
    assert type(lsm.log_softmax(3.5, dtype="f4")) is np.float32
    assert type(lsm.log_softmax([3.5])) is np.ndarray
    assert np.isnan(lsm.log_softmax(np.inf))


# -- dtypes that are refused ----------------------------------------------------------------------------------------


class Raising:
    """An object whose dtype cannot be read."""

    def __init__(self, error):
        self.error = error

    def __repr__(self):
        return f"Raising({self.error!r})"  # the name of a test, the same in every process

    @property
    def dtype(self):
        raise self.error


@pytest.mark.parametrize(
    "dtype",
    ["f4,(", "4(", "f4,", {"names": ["a"]}, {}, [], (), b"\xff", 5, ("f4", -1), [("a", "f4")] * 2]
    + [Raising(error("no")) for error in (ValueError, RuntimeError, KeyError, OSError)],
    ids=repr,
)
def test_a_dtype_that_numpy_refuses_in_whatever_way(dtype):
    for call in (lsm.log_softmax, lsm.explain):
        with pytest.raises(TypeError, match=r"(?s)^dtype: .*accepted: float16, bfloat16, float32"):
            call([1.0], dtype=dtype)


@pytest.mark.parametrize(
    "x",
    [
        [1.0, 2.0],
        Own([1.0, 2.0]),
        Indexed([1.0, 2.0]),
        range(1, 3),
        Own([np.float64(1), np.array(2.0)]),
        Wrapper(np.array([1.0, 2.0])),
        Wrapper(np.array([1.0, 2.0]), mask=None),
    ],
    ids=lambda x: type(x).__name__,
)
def test_sequences_and_wrappers_of_numbers_are_taken(x):
    np.testing.assert_array_equal(lsm.log_softmax(x), lsm.log_softmax(np.array([1.0, 2.0])), strict=True)


def test_buffers_keep_their_dtype():
    assert lsm.log_softmax(array.array("f", [1, 2])).dtype == np.float32


def test_a_sequence_without_end_is_an_error():
    class Endless(Own):
        def __getitem__(self, i):
            if i:
                raise IndexError
            return Endless([None])

    with pytest.raises((TypeError, ValueError), match="^x: "):
        lsm.log_softmax(Endless([None]))


@pytest.mark.parametrize("mask", [(False, True), [False, True], np.array([False, True]), np.True_], ids=repr)
@pytest.mark.parametrize("way", ["of the class", "of the object", "made up"])
def test_a_mask_in_any_form(mask, way):
    values = np.array([1.0, 2.0])
    if way == "of the class":
        x = type("Masked", (), {"mask": a_property(mask), "__array__": lambda self, dtype=None, copy=None: values})()
    elif way == "of the object":
        x = Wrapper(values, mask=mask)
    else:
        held = np.ma.masked_array(values, mask) if np.ndim(mask) else types.SimpleNamespace(mask=mask)
        x = Wrapper(held if isinstance(mask, (np.ndarray, np.generic)) else types.SimpleNamespace(mask=mask, ndim=1))
    for call in (lsm.log_softmax, lsm.explain, lambda x: lsm.log_softmax([x, x])):
        with pytest.raises(TypeError, match="^x: .*masked array .*; pass numpy.where"):
            call(x)


@pytest.mark.parametrize("name", ["unit", "units"])
def test_a_unit_within_a_wrapper(name):
    values = np.array([1.0, 2.0])
    for unit in ("percent", types.SimpleNamespace(name="m")):
        x = Wrapper(types.SimpleNamespace(**{name: unit, "__array__": reads}))
        for call in (lsm.log_softmax, lsm.explain, lambda x: lsm.log_softmax([x, x])):
            with pytest.raises(TypeError, match=r"^x: .*quantity .*Wrapper\), whose unit .*; pass numpy.asarray\(x"):
                call(x)
    for unit in ("", None, values):  # the last is a column
        held = values.view(type("Held", (np.ndarray,), {}))
        setattr(held, name, unit)
        np.testing.assert_array_equal(lsm.log_softmax(Wrapper(held)), lsm.log_softmax(values))


@pytest.mark.parametrize("name", ["__dask_graph__", "compute", "todense", "__await__", "chunks"])
def test_what_is_pending_within_a_wrapper(name):
    held = types.SimpleNamespace(**{name: (2,) if name == "chunks" else reads, "__array__": reads})
    with pytest.raises(TypeError, match="^x: a .*Wrapper"):
        lsm.log_softmax(Wrapper(held))


def test_a_column_is_no_mask():
    class Table(Wrapper):
        ndim, shape = 2, (2, 2)

        def __getattr__(self, name):
            if name in ("mask", "compute", "chunks"):
                return np.array([True, False])
            raise AttributeError(name)

    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(lsm.log_softmax(Table(x)), lsm.log_softmax(x))
