# The kernels for any processor.
include "kernels.pxi"
