"""Lazy, stored, sparse and masked arrays of the libraries themselves: refused, and each remedy works.

Needs them all, `python -m pip install '.[zoo]'`; conftest.py leaves this file out where one is not installed.
"""

import asyncio
import io
import os
import subprocess
import sys
from pathlib import Path

import array_api_strict
import astropy.units
import awkward
import cubed.array_api
import dask
import dask.array
import dask.dataframe
import h5py
import netCDF4
import nibabel
import numpy
import numpy as np
import pandas
import pint
import polars
import pyarrow
import pytest
import scipy.io
import scipy.sparse
import sparse
import tables
import tensorstore
import unyt
import xarray
import zarr
from astropy.nddata import CCDData, NDData, NDDataArray
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.time import Time, TimeDelta
from astropy.utils.masked import Masked

import lsm

VALUES = np.array([[0.5, 1.0, -2.0], [3.0, 0.0, 1.0]])
MASK = np.array([[False, True, False], [False, False, True]])
FILLED = np.where(MASK, -np.inf, VALUES)
UNITS = pint.UnitRegistry()


def h5_dataset(tmp_path):
    return h5py.File(tmp_path / "x.h5", "w").create_dataset("x", data=VALUES)


def netcdf(tmp_path):
    held = netCDF4.Dataset(tmp_path / "x.nc", "w")
    held.createDimension("frame", 2), held.createDimension("class", 3)
    held.createVariable("x", "f8", ("frame", "class"))[:] = np.ma.masked_array(VALUES, MASK)
    return held


def old_netcdf(tmp_path):
    held = scipy.io.netcdf_file(io.BytesIO(), "w", maskandscale=True)
    held.createDimension("frame", 2), held.createDimension("class", 3)
    made = held.createVariable("x", "f8", ("frame", "class"))
    made.units, made.missing_value = "m", -999.0
    made[:] = np.ma.masked_array(VALUES, MASK)
    return held


def records(tmp_path):
    made = np.zeros(VALUES.shape, [("x", "f8"), ("other", "i4")])
    made["x"] = VALUES
    return h5py.File(tmp_path / "x.h5", "w").create_dataset("x", data=made)


def masked_time(tmp_path):
    made = Time(VALUES + 2451545, format="jd")
    made[MASK] = np.ma.masked
    return made


def store(tmp_path):
    spec = {"driver": "zarr", "kvstore": {"driver": "memory"}}
    held = tensorstore.open(spec, create=True, dtype=tensorstore.float64, shape=VALUES.shape).result()
    held.write(VALUES).result()
    return held


def pytables(tmp_path):
    held = tables.open_file(tmp_path / "x.h5", "w", driver="H5FD_CORE", driver_core_backing_store=0)
    held.create_array("/", "x", VALUES)
    held.create_carray("/", "chunked", obj=VALUES)
    made = np.zeros(2, [("x", "f8", 3)])
    made["x"] = VALUES
    held.create_table("/", "table", made)
    return held


def image(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES[np.newaxis], np.eye(4)), tmp_path / "x.nii")
    return nibabel.load(tmp_path / "x.nii").dataobj


def zarr_group(tmp_path):
    held = zarr.group()
    held.create_array("x", data=VALUES)
    return held


def in_a_file(tmp_path):
    xarray.Dataset({"x": (("a", "b"), VALUES)}).to_netcdf(tmp_path / "x.nc", engine="netcdf4")
    return xarray.open_dataset(tmp_path / "x.nc", engine="netcdf4")["x"]


def masked_dask(tmp_path):
    return dask.array.ma.masked_array(dask.array.from_array(VALUES), dask.array.from_array(MASK))


def sparse_dask(tmp_path):
    return dask.array.from_array(VALUES).map_blocks(sparse.COO.from_numpy)


def nulls(of=pyarrow.array):
    return of([None if np.isneginf(v) else v for v in FILLED[0]])


def columns(of=pyarrow.table):
    return of({f"c{i}": [None if np.isneginf(v) else v for v in FILLED[:, i]] for i in range(3)})


# What is made, the values that the remedies must stand for, and the remedies that the message must name.
CASES = {
    "dask, masked": (masked_dask, FILLED, ["dask.array.ma.filled(x, -numpy.inf)"]),
    "dask, masked integers": (
        lambda tmp: masked_dask(tmp).astype(int),
        np.where(MASK, -np.inf, VALUES.astype(int)),
        ["dask.array.ma.filled(x.astype(float), -numpy.inf)"],
    ),
    "dask, sparse": (sparse_dask, VALUES, ["x.compute().todense()"]),
    "dask.dataframe": (
        lambda tmp: dask.dataframe.from_pandas(pandas.DataFrame(VALUES, columns=["unit", "mask", "compute"])),
        VALUES,
        ["x.compute()"],
    ),
    "dask.delayed": (lambda tmp: dask.delayed(lambda: VALUES)(), VALUES, ["x.compute()"]),
    "xarray, sparse": (lambda tmp: xarray.DataArray(sparse.COO.from_numpy(VALUES)), VALUES, ["x.data.todense()"]),
    "xarray, percent": (
        lambda tmp: xarray.DataArray(UNITS.Quantity(VALUES * 100, "percent")),
        VALUES,
        ["x.data.m_as('')"],
    ),
    "xarray, metres": (lambda tmp: xarray.DataArray(UNITS.Quantity(VALUES, "m")), VALUES, ["x.data.magnitude"]),
    "xarray.Variable, metres": (
        lambda tmp: xarray.Variable(("a", "b"), UNITS.Quantity(VALUES, "m")),
        VALUES,
        ["x.data.magnitude"],
    ),
    "xarray, in a file": (in_a_file, VALUES, ["x.to_numpy()"]),
    "xarray.Variable": (lambda tmp: xarray.Variable(("a", "b"), VALUES), VALUES, ["x.to_numpy()"]),
    "xarray.Dataset": (lambda tmp: xarray.Dataset({"x": (("a", "b"), VALUES)}), VALUES, ["x[name].to_numpy()"]),
    "zarr": (lambda tmp: zarr.array(VALUES), VALUES, ["x[...]"]),
    "zarr.OIndex": (lambda tmp: zarr.array(VALUES).oindex, VALUES, ["x.array[...]"]),
    "zarr.VIndex": (lambda tmp: zarr.array(VALUES).vindex, VALUES, ["x.array[...]"]),
    "zarr.BlockIndex": (lambda tmp: zarr.array(VALUES).blocks, VALUES, ["x.array[...]"]),
    "zarr, a store": (lambda tmp: zarr.array(VALUES).store, VALUES, ["zarr.open_array(x)[...]"]),
    "zarr.Group": (zarr_group, VALUES, ["x[name][...]"]),
    "h5py": (h5_dataset, VALUES, ["x[...]"]),
    "h5py, astype": (lambda tmp: h5_dataset(tmp).astype("f8"), VALUES, ["x[...]"]),
    "h5py, fields": (lambda tmp: records(tmp).fields("x"), VALUES, ["x[...]"]),
    "h5py.File": (lambda tmp: h5_dataset(tmp).file, VALUES, ["x[name][...]"]),
    "netCDF4": (lambda tmp: netcdf(tmp)["x"], FILLED, ["numpy.ma.filled(x[...], -numpy.inf)"]),
    "netCDF4.Dataset": (netcdf, FILLED, ["numpy.ma.filled(x[name][...], -numpy.inf)"]),
    "scipy.io.netcdf_file": (
        old_netcdf,
        FILLED,
        ["numpy.ma.filled(x.variables[name][...], -numpy.inf)"],
    ),
    "scipy.io.netcdf_file, a variable": (
        lambda tmp: old_netcdf(tmp).variables["x"],
        FILLED,
        ["numpy.ma.filled(x[...], -numpy.inf)"],
    ),
    "nibabel": (image, VALUES[np.newaxis], ["x[...]"]),
    "tables.Array": (lambda tmp: pytables(tmp).root.x, VALUES, ["x[:]"]),
    "tables.CArray": (lambda tmp: pytables(tmp).root.chunked, VALUES, ["x[:]"]),
    "tables.Column": (lambda tmp: pytables(tmp).root.table.cols.x, VALUES, ["x[:]"]),
    "tables.Group": (lambda tmp: pytables(tmp).root, VALUES, ["x[name][:]"]),
    "tables.File": (pytables, VALUES, ["x.root[name][:]"]),
    "tensorstore": (store, VALUES, ["x.read().result()"]),
    "tensorstore.Future": (lambda tmp: store(tmp).read(), VALUES, ["x.result()"]),
    "cubed": (lambda tmp: cubed.array_api.asarray(VALUES), VALUES, ["x.compute()"]),
    "scipy.sparse, matrix": (lambda tmp: scipy.sparse.csr_matrix(VALUES), VALUES, ["x.toarray()"]),
    "scipy.sparse, array": (lambda tmp: scipy.sparse.coo_array(VALUES), VALUES, ["x.toarray()"]),
    "sparse": (lambda tmp: sparse.COO.from_numpy(VALUES), VALUES, ["x.todense()"]),
    "polars, lazy": (lambda tmp: polars.DataFrame(VALUES).lazy(), VALUES, ["x.collect()"]),
    "pyarrow.Array of integers": (
        lambda tmp: pyarrow.array([1, None, 3]),
        np.array([1, -np.inf, 3]),
        ["x.cast('float64').fill_null(-numpy.inf)"],
    ),
    "pyarrow.Array": (lambda tmp: nulls(), FILLED[0], ["x.cast('float64').fill_null(-numpy.inf)"]),
    "pyarrow.ChunkedArray": (
        lambda tmp: pyarrow.chunked_array([nulls()]),
        FILLED[0],
        ["x.cast('float64').fill_null(-numpy.inf)"],
    ),
    "pyarrow.Table": (
        lambda tmp: columns(),
        FILLED,
        ["numpy.column_stack([column.cast('float64').fill_null(-numpy.inf) for column in x.columns])"],
    ),
    "pyarrow.RecordBatch": (
        lambda tmp: columns(pyarrow.record_batch),
        FILLED,
        ["numpy.column_stack([column.cast('float64').fill_null(-numpy.inf) for column in x.columns])"],
    ),
    "numpy.ma": (lambda tmp: np.ma.masked_array(VALUES, MASK), FILLED, ["x.filled(-numpy.inf)"]),
    "astropy, masked": (lambda tmp: Masked(VALUES, MASK), FILLED, ["x.filled(-numpy.inf)"]),
    "astropy, masked integers": (
        lambda tmp: Masked(VALUES.astype(int), MASK),
        np.where(MASK, -np.inf, VALUES.astype(int)),
        ["x.astype(float).filled(-numpy.inf)"],
    ),
    "astropy, percent": (
        lambda tmp: astropy.units.Quantity(VALUES * 100, "percent"),
        VALUES,
        ["x.to_value('')"],
    ),
    "astropy, decibels": (lambda tmp: VALUES * astropy.units.dB, VALUES, ["x.value"]),
    "astropy, metres": (lambda tmp: VALUES * astropy.units.m, VALUES, ["x.value"]),
    "astropy, masked percent": (
        lambda tmp: Masked(astropy.units.Quantity(VALUES * 100, "percent"), MASK),
        FILLED,
        ["x.to_value('').filled(-numpy.inf)"],
    ),
    "astropy, masked metres": (
        lambda tmp: Masked(VALUES * astropy.units.m, MASK),
        FILLED,
        ["x.value.filled(-numpy.inf)"],
    ),
    "astropy.Column": (lambda tmp: Column(VALUES, unit="m"), VALUES, ["x.value"]),
    "astropy.MaskedColumn": (lambda tmp: MaskedColumn(VALUES, mask=MASK), FILLED, ["x.filled(-numpy.inf)"]),
    "astropy.MaskedColumn, metres": (
        lambda tmp: MaskedColumn(VALUES, mask=MASK, unit="m"),
        FILLED,
        ["x.value.filled(-numpy.inf)"],
    ),
    "astropy.Table": (lambda tmp: Table({"x": VALUES}), VALUES, ["x.filled(-numpy.inf)[name]"]),
    "astropy.Table, masked": (
        lambda tmp: Table({"x": np.ma.masked_array(VALUES, MASK)}, masked=True),
        FILLED,
        ["x.filled(-numpy.inf)[name]"],
    ),
    "astropy.QTable": (lambda tmp: QTable({"x": VALUES}), VALUES, ["x.filled(-numpy.inf)[name]"]),
    "astropy.NDData": (lambda tmp: NDData(VALUES), VALUES, ["x.data"]),
    "astropy.NDData, masked": (
        lambda tmp: NDData(np.ma.masked_array(VALUES, MASK)),
        FILLED,
        ["numpy.where(x.mask, -numpy.inf, x.data)"],
    ),
    "astropy.NDData, metres": (lambda tmp: NDData(VALUES * astropy.units.m), VALUES, ["x.data"]),
    "astropy.NDDataArray": (
        lambda tmp: NDDataArray(VALUES, unit="m", mask=MASK),
        FILLED,
        ["numpy.where(x.mask, -numpy.inf, x.data)"],
    ),
    "astropy.Time": (lambda tmp: Time(VALUES + 2451545, format="jd"), VALUES, ["numpy.ma.filled(x.jd, -numpy.inf)"]),
    "astropy.Time, masked": (masked_time, FILLED, ["numpy.ma.filled(x.jd, -numpy.inf)"]),
    "astropy.TimeDelta": (lambda tmp: TimeDelta(VALUES, format="jd"), VALUES, ["numpy.ma.filled(x.jd, -numpy.inf)"]),
    "astropy.CCDData": (lambda tmp: CCDData(VALUES, unit="adu"), VALUES, ["x.data"]),
    "astropy.CCDData, masked": (
        lambda tmp: CCDData(VALUES, unit="adu", mask=MASK),
        FILLED,
        ["numpy.where(x.mask, -numpy.inf, x.data)"],
    ),
    "astropy.CCDData, masked, no unit": (
        lambda tmp: CCDData(VALUES, unit="", mask=MASK),
        FILLED,
        ["numpy.where(x.mask, -numpy.inf, x.data)"],
    ),
    "pint, percent": (lambda tmp: UNITS.Quantity(VALUES * 100, "percent"), VALUES, ["x.m_as('')"]),
    "pint, metres": (lambda tmp: UNITS.Quantity(VALUES, "m"), VALUES, ["x.magnitude"]),
    "pint, lazy": (
        lambda tmp: UNITS.Quantity(dask.array.from_array(VALUES * 100), "percent"),
        VALUES,
        ["x.m_as('').compute()"],
    ),
    "pint, lazy, no unit": (
        lambda tmp: UNITS.Quantity(dask.array.from_array(VALUES), ""),
        VALUES,
        ["x.magnitude.compute()"],
    ),
    "unyt, percent": (lambda tmp: unyt.unyt_array(VALUES * 100, "percent"), VALUES, ["x.to_value('')"]),
    "unyt, metres": (lambda tmp: unyt.unyt_array(VALUES, "m"), VALUES, ["x.value"]),
}


def nothing_is_computed(*args, **kwargs):
    raise AssertionError("computed")


@pytest.fixture(params=list(CASES))
def case(request, tmp_path):
    made, values, remedies = CASES[request.param]
    yield made(tmp_path), values, remedies
    for held in list(tables.file._open_files.handlers):  # or it warns at exit
        held.close()


def test_it_is_refused_and_nothing_is_computed_or_read(case, monkeypatch):
    x, _, remedies = case
    plain = np.zeros((2, 3))
    monkeypatch.setattr(np, "asanyarray", nothing_is_computed)
    with dask.config.set(scheduler=nothing_is_computed):
        for call in (lsm.log_softmax, lsm.explain):
            with pytest.raises(TypeError, match="^x: an? .*; pass ") as caught:
                call(x)
            for remedy in remedies:
                assert remedy in str(caught.value)
        with pytest.raises(TypeError, match="^grad_output: "):
            lsm.log_softmax_backward(x, plain)
        with pytest.raises(TypeError, match="^output: "):
            lsm.log_softmax_backward(plain, x)
        with pytest.raises(TypeError, match="^out: a .*; accepted: a numpy.ndarray of shape .*; this is an? "):
            lsm.log_softmax(plain, out=x)
        for held in ([x], (1.0, [x])):
            with pytest.raises(TypeError, match=r"^x: x\[[01]\].*: an? "):
                lsm.log_softmax(held)


@pytest.mark.filterwarnings("ignore:.*__array_wrap__ must accept:DeprecationWarning")
def test_what_the_message_proposes_gives_the_right_result(case):
    x, values, remedies = case
    expected = lsm.log_softmax(values)
    names = {"x": x, "numpy": numpy, "dask": dask, "zarr": zarr, "name": "x"}
    for remedy in remedies:
        y = lsm.log_softmax(eval(remedy, names))
        y = y.compute() if isinstance(y, dask.array.Array) else y
        assert type(y) is np.ndarray
        np.testing.assert_allclose(y, expected, rtol=1e-12)


def message(x, *args):
    with pytest.raises(TypeError) as caught:
        lsm.log_softmax(x, *args)
    return str(caught.value)


def test_chunks_of_some_classes_are_normalised_alone():
    """As the README warns; lsm is passed ndarrays there."""
    y = dask.array.from_array(VALUES, chunks=(2, 1)).map_blocks(lsm.log_softmax, dtype=VALUES.dtype)
    np.testing.assert_array_equal(y.compute(), np.zeros((2, 3)))
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "each chunk is normalised by itself" in " ".join(readme.split())


def test_asynchronous_arrays_of_zarr():
    held = zarr_group(None)

    def remedy_of(x):
        return message(x).partition("pass ")[2].removeprefix("one of them: ")

    async def tried():
        for x in (held["x"]._async_array, held._async_group):
            names = {"x": x, "name": "x", "lsm": lsm}
            exec(f"async def read():\n    return lsm.log_softmax({remedy_of(x)})", names)
            yield await names["read"]()

    async def all_tried():
        return [y async for y in tried()]

    for y in asyncio.run(all_tried()):
        np.testing.assert_array_equal(y, lsm.log_softmax(VALUES))


def test_a_future_of_distributed():
    code = """
import numpy as np, lsm
from distributed import Client
if __name__ == "__main__":
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        x = client.submit(np.zeros, 3)
        try:
            lsm.log_softmax(x)
        except TypeError as error:
            print("pass x.result()" in str(error))
        print(lsm.log_softmax(x.result()).shape == (3,))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stdout + done.stderr


def test_ray():
    code = """
import logging, numpy as np, lsm, ray
ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, object_store_memory=10**8)
ray.data.DataContext.get_current().enable_progress_bars = False
x = ray.put(np.arange(3.0))
rows = ray.data.from_numpy(np.arange(6.0).reshape(2, 3))
name = "data"
for given, remedy in (
    (x, "ray.get(x)"), (rows, "x.map_batches(lambda batch: dict(y=lsm.log_softmax(batch[name])))")
):
    for call in (lsm.log_softmax, lsm.explain, lambda x: lsm.log_softmax([x])):
        try:
            call(given)
        except TypeError as error:
            print("RESULT", remedy.replace("x.map", "map").replace("(x)", "(") in str(error))
print("RESULT", (lsm.log_softmax(ray.get(x)) == lsm.log_softmax(np.arange(3.0))).all())
y = rows.map_batches(lambda batch: dict(y=lsm.log_softmax(batch[name]))).take_all()
print("RESULT", (np.array([row["y"] for row in y]) == lsm.log_softmax(np.arange(6.0).reshape(2, 3))).all())
"""
    environment = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert results == ["RESULT True"] * 8, done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:The unit of the quantity is stripped")  # pint says so, also where it is 1
@pytest.mark.parametrize(
    "x",
    [
        pandas.DataFrame(VALUES, columns=["mask", "unit", "units"]),
        pandas.DataFrame(VALUES, columns=["compute", "chunks", "magnitude"]),
        polars.DataFrame(VALUES, schema=["mask", "unit", "compute"]),
        awkward.Array(VALUES),
        astropy.units.Quantity(VALUES, ""),
        Column(VALUES),
        unyt.unyt_array(VALUES, ""),
        UNITS.Quantity(VALUES, ""),
        [pandas.Series(frame) for frame in VALUES],
        [polars.Series(frame) for frame in VALUES],
        [pyarrow.array(frame) for frame in VALUES],
    ],
    ids=lambda x: f"{type(x).__module__}.{type(x).__name__}",
)
def test_what_is_taken(x):
    y = lsm.log_softmax(x)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, lsm.log_softmax(VALUES))
    assert lsm.explain(x).winner == "cython"


def test_columns_and_series_are_taken():
    frame = VALUES[0]
    for x in (
        pandas.Series(frame),
        pandas.Series(frame, dtype="Float64"),
        polars.Series(frame),
        pyarrow.array(frame),
        pyarrow.chunked_array([frame]),
    ):
        np.testing.assert_array_equal(lsm.log_softmax(x), lsm.log_softmax(frame))


def test_masked_pandas_pint_and_others_that_hide_what_they_are():
    for x in (np.array([1.0 * astropy.units.m, 2.0 * astropy.units.m], dtype=object), {"x": 1.0}):
        with pytest.raises(TypeError, match="Python objects"):
            lsm.log_softmax(x)


# -- DLPack ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", array_api_strict.__array_namespace_info__().devices(), ids=str)
def test_results_come_back_on_the_device_of_the_input(place):
    xp = array_api_strict
    x = xp.asarray(VALUES.tolist(), device=place)
    for y in (lsm.log_softmax(x), lsm.log_softmax(x, dtype=xp.float32), lsm.log_softmax_backward(x, x)):
        assert type(y) is type(x) and y.device == place
    assert lsm.log_softmax(xp.asarray(1.0, device=place)).shape == ()
    out = xp.empty_like(x)
    assert lsm.log_softmax(x, out=out) is out
    np.testing.assert_allclose(np.from_dlpack(out), lsm.log_softmax(VALUES), rtol=1e-6)
    if "float64" not in xp.__array_namespace_info__().dtypes(device=place):
        with pytest.raises(TypeError, match="^dtype: .* does not support float64 .*; pass another, such as 'float32'"):
            lsm.log_softmax(xp.asarray([1, 2], device=place))


@pytest.mark.parametrize("place", array_api_strict.__array_namespace_info__().devices(), ids=str)
def test_so_do_those_of_every_function(place):
    xp = array_api_strict
    given = [xp.asarray(values.tolist(), device=place) for values in (VALUES, np.array([0, 2]), ~MASK)]
    plain = [np.from_dlpack(a.to_device(xp.Device("CPU_DEVICE"))) for a in given]
    for call in (
        lambda x, labels, where: lsm.softmax(x, where=where),
        lambda x, labels, where: lsm.softmax_backward(x, x, temperature=2.0),
        lambda x, labels, where: lsm.logsumexp(x),
        lambda x, labels, where: lsm.logsumexp(x, 1, b=x, return_sign=True),
        lambda x, labels, where: lsm.take_log_softmax(x, labels),
        lambda x, labels, where: lsm.top_k_log_softmax(x, 2),
        lambda x, labels, where: lsm.cross_entropy(x, labels),
        lambda x, labels, where: lsm.cross_entropy_value_and_grad(x, labels),
        lambda x, labels, where: lsm.entropy(x),
        lambda x, labels, where: lsm.kl_divergence(x, x),
    ):
        found, expected = call(*given), call(*plain)
        for y, z in zip(*(a if isinstance(a, tuple) else (a,) for a in (found, expected)), strict=True):
            assert type(y) is type(given[0]) and y.device == place
            np.testing.assert_array_equal(np.from_dlpack(y), z)


def test_a_dtype_that_the_library_has_not():
    xp = array_api_strict
    for x in (xp.asarray(VALUES), xp.asarray([1, 2])):
        with pytest.raises(TypeError, match="^dtype: a .*Array of bfloat16 cannot .*; pass another, such as 'float32'"):
            lsm.log_softmax(x, dtype="bfloat16")


def test_devices_are_not_mixed():
    xp = array_api_strict
    x, y = (xp.asarray([1.0, 2.0], device=xp.Device(name)) for name in ("CPU_DEVICE", "device1"))
    with pytest.raises(lsm.BackendUnsupportedError, match="lsm does not move arrays between devices"):
        lsm.log_softmax_backward(x, y)
    with pytest.raises(lsm.BackendUnsupportedError, match="^out: is on .*device1.*, the result on .*CPU_DEVICE"):
        lsm.log_softmax(x, out=y)


def test_dtypes_may_be_spelt_as_the_library_does():
    xp = array_api_strict
    x = xp.asarray([1.0, 2.0])
    assert lsm.log_softmax(x, dtype=xp.float32).dtype == xp.float32
    assert lsm.explain(x, dtype=xp.float32).dtype == "float64 to float32"
    with pytest.raises(TypeError, match="^dtype: .*accepted: float16"):
        lsm.log_softmax(x, dtype=xp.int32)
