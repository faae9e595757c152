"""What PyInstaller cannot see in the imports of lsm: the sources of the CUDA kernels, which are compiled when used."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("lsm", includes=["**/*.cu"])
