"""DataArrays of xarray: results keep dimensions, coordinates, attributes and name, and are lazy if the input is.

Needs the extra `zoo`, as test_zoo.py; conftest.py leaves this file out where one of its libraries is not installed.
"""

import dask
import dask.array as da
import numpy as np
import pandas
import pint
import pytest
import xarray as xr

import lsm

VALUES = np.random.default_rng(0).normal(size=(6, 5, 4))
LABELS = np.random.default_rng(1).integers(0, 5, size=(6, 4))


def make(values=VALUES, chunks=None):
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    coords = {"time": np.arange(6), "class": list("abcde"), "second": ("time", np.arange(6) / 2), "scalar": 3}
    return xr.DataArray(data, dims=("time", "class", "place"), coords=coords, attrs={"units": "m"}, name="logits")


def labels(values=LABELS):
    return xr.DataArray(values, dims=("time", "place"), coords={"time": np.arange(6)})


def computed(*args, **kwargs):
    raise AssertionError("computed")


CHUNKS = (2, 5, 3)
# Calls on make(), the same on VALUES, and the dimensions and coordinates of the result.
ALL = ("time", "class", "place"), {"time", "class", "second", "scalar"}
FRAMES = ("time", "place"), {"time", "second", "scalar"}
LONG = ALL[0], FRAMES[1]
CALLS = {
    "log_softmax": (lambda x: lsm.log_softmax(x, "class"), lambda x: lsm.log_softmax(x, 1), *ALL),
    "by number": (lambda x: lsm.softmax(x, -2, dtype="float32"), lambda x: lsm.softmax(x, 1, dtype="float32"), *ALL),
    "backward": (
        lambda x: lsm.log_softmax_backward(x, lsm.log_softmax(x, "class"), "class"),
        lambda x: lsm.log_softmax_backward(x, lsm.log_softmax(x, 1), 1),
        *ALL,
    ),
    "backward, other order": (
        lambda x: lsm.softmax_backward(x, x.transpose("place", "time", "class"), "class"),
        lambda x: lsm.softmax_backward(x, x, 1),
        *ALL,
    ),
    "where by name": (
        lambda x: lsm.softmax(x, "class", where=x.isel(place=0) > 0),
        lambda x: lsm.softmax(x, 1, where=x[:, :, :1] > 0),
        *ALL,
    ),
    "temperature by name": (
        lambda x: lsm.softmax(x, "class", temperature=xr.DataArray(np.arange(1, 7.0), dims="time")),
        lambda x: lsm.softmax(x, 1, temperature=np.arange(1, 7.0).reshape(6, 1, 1)),
        *ALL,
    ),
    "logsumexp": (lambda x: lsm.logsumexp(x, "class"), lambda x: lsm.logsumexp(x, 1), *FRAMES),
    "keepdims": (
        lambda x: lsm.logsumexp(x, "class", keepdims=True),
        lambda x: lsm.logsumexp(x, 1, keepdims=True),
        *LONG,
    ),
    "sign": (
        lambda x: lsm.logsumexp(x, "class", return_sign=True)[1],
        lambda x: lsm.logsumexp(x, 1, return_sign=True)[1],
        *FRAMES,
    ),
    "entropy": (lambda x: lsm.entropy(x, "class"), lambda x: lsm.entropy(x, 1), *FRAMES),
    "take": (
        lambda x: lsm.take_log_softmax(x, labels().T, "class"),
        lambda x: lsm.take_log_softmax(x, LABELS, 1),
        *FRAMES,
    ),
    "top k": (
        lambda x: lsm.top_k_log_softmax(x, 2, "class").indices,
        lambda x: lsm.top_k_log_softmax(x, 2, 1).indices,
        *LONG,
    ),
    "loss": (
        lambda x: lsm.cross_entropy(x, labels(), "class"),
        lambda x: lsm.cross_entropy(x, LABELS, 1),
        (),
        {"scalar"},
    ),
    "losses": (
        lambda x: lsm.cross_entropy(x, LABELS, "class", reduction="none"),
        lambda x: lsm.cross_entropy(x, LABELS, 1, reduction="none"),
        *FRAMES,
    ),
}


@pytest.mark.parametrize("chunks", [None, CHUNKS])
@pytest.mark.parametrize("case", list(CALLS))
def test_labels_are_kept(case, chunks):
    call, expected, dims, coords = CALLS[case]
    x = make(chunks=chunks)
    with dask.config.set(scheduler=computed):
        y = call(x)
    assert type(y) is xr.DataArray and y.dims == dims and set(y.coords) == coords
    assert y.attrs == {"units": "m"} and y.name == "logits"
    assert isinstance(y.data, da.Array) == (chunks is not None)
    for name in coords:
        assert y[name].variable.identical(x[name].variable)
    np.testing.assert_array_equal(y.compute(scheduler="synchronous").data, expected(VALUES))


def test_loss_with_gradient():
    loss, gradient = lsm.cross_entropy_value_and_grad(make(), labels(), "class")
    expected = lsm.cross_entropy_value_and_grad(VALUES, LABELS, 1)
    assert loss.dims == () and loss == expected[0]
    assert gradient.identical(make().copy(data=expected[1]))
    with pytest.raises(TypeError, match=r"^logits: .*pass logits.compute\(\)"):
        lsm.cross_entropy_value_and_grad(make(chunks=CHUNKS), labels(), "class")


def test_several_names_and_none():
    x = make()
    np.testing.assert_array_equal(lsm.logsumexp(x, ("class", "place")), lsm.logsumexp(VALUES, (1, 2)))
    assert lsm.logsumexp(x).dims == () and lsm.logsumexp(x) == lsm.logsumexp(VALUES)
    assert lsm.log_softmax(x).dims == x.dims


def test_an_index_of_several_levels_stays():
    index = pandas.MultiIndex.from_product([[0, 1, 2], [0, 1]], names=["a", "b"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "time")
    x = xr.DataArray(VALUES, dims=("time", "class", "place"), coords=coords)
    assert lsm.log_softmax(x, "class").indexes["time"].equals(index)
    assert lsm.entropy(x, "class").indexes["time"].equals(index)
    assert set(lsm.logsumexp(x, "time").coords) == set()


def test_classes_in_chunks():
    y = lsm.log_softmax(make(chunks=2), "class")
    assert y.dims == make().dims and isinstance(y.data, da.Array)
    np.testing.assert_allclose(y, lsm.log_softmax(VALUES, 1), 1e-6)
    p = lsm.partials(make(chunks=2), "class")
    assert type(p) is da.Array and p.shape == (6, 3, 4, 4)
    of_parts = lsm.softmax(make(), "class", partials=lsm.partials(make(), "class"))
    np.testing.assert_array_equal(of_parts, lsm.softmax(VALUES, 1))
    assert of_parts.dims == make().dims
    dx = lsm.log_softmax_backward(make(chunks=2), y, "class")
    assert dx.dims == make().dims and isinstance(dx.data, da.Array)
    np.testing.assert_allclose(dx, lsm.log_softmax_backward(VALUES, lsm.log_softmax(VALUES, 1), 1), 1e-5, 1e-6)


def test_explain_is_that_of_the_array_within():
    assert lsm.explain(make()).chunks == ""
    decision = lsm.explain(make(chunks=2))
    assert decision.winner == "cython" and "3 x 3 x 2 chunks" in str(decision)


OTHER = make().assign_coords(time=np.arange(1, 7))
REFUSED = {
    "unknown name": (lambda: lsm.log_softmax(make(), "kind"), ValueError, "axis: 'kind' is not a dimension; .*'class'"),
    "out": (lambda: lsm.log_softmax(make(), "class", out=make()), TypeError, "out: .*x.data and out.data"),
    "other labels": (
        lambda: lsm.log_softmax_backward(make(), OTHER, "class"),
        ValueError,
        r"grad_output, output: the labels along 'time' differ; .*xarray.align\(grad_output, output\)",
    ),
    "other dimensions": (
        lambda: lsm.softmax(make(), "class", where=make().rename(place="there") > 0),
        ValueError,
        r"where: dimensions .*'there'\); accepted: those of x",
    ),
    "fewer dimensions": (
        lambda: lsm.log_softmax_backward(make(), make()[0], 1),
        ValueError,
        "grad_output, output: shapes",
    ),
    "labels of the second only": (
        lambda: lsm.log_softmax_backward(VALUES, make(), 1),
        TypeError,
        r"output: an xarray.*pass output.to_numpy\(\)",
    ),
    "classes in chunks": (
        lambda: lsm.entropy(make(chunks=2), "class"),
        ValueError,
        r"x: the classes are in 3 chunks; .*pass x.chunk\({'class': -1}\)$",
    ),
    "unit": (
        lambda: lsm.log_softmax(xr.DataArray(pint.UnitRegistry().Quantity(VALUES, "m")), 1),
        TypeError,
        r"x: an xarray.*pass x.data.m_as\(''\) .* or x.data.magnitude",
    ),
    "a variable": (lambda: lsm.log_softmax(make().variable, 1), TypeError, r"x: an xarray.*pass x.to_numpy\(\)"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_right_is_refused(case):
    refused, error, message = REFUSED[case]
    with dask.config.set(scheduler=computed), pytest.raises(error, match=f"^{message}"):
        refused()


def test_what_is_in_a_file_is_not_read(tmp_path, monkeypatch):
    xr.Dataset({"x": (("a", "b"), VALUES[0])}).to_netcdf(tmp_path / "x.nc", engine="netcdf4")
    with xr.open_dataset(tmp_path / "x.nc", engine="netcdf4") as held:
        for call in (lsm.log_softmax, lsm.explain, lambda x: lsm.log_softmax_backward(make()[0], x)):
            with pytest.raises(TypeError, match=r"pass (x|output).to_numpy\(\)$"):
                call(held["x"].rename(a="class", b="place"))
        assert not held["x"].variable._in_memory
