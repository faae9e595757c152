"""What PyInstaller cannot see in the imports of lsm: the engines, and the sources of the CUDA kernels."""

from PyInstaller.utils.hooks import collect_data_files

hiddenimports = ["lsm.engines.dask_", "lsm.engines.xarray_"]
datas = collect_data_files("lsm", includes=["**/*.cu"])
