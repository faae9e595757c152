"""SciPy's tests of logsumexp, softmax and log_softmax, with the functions of lsm in their place.

    PYTHONPATH=tests/peers python -m pytest -c /dev/null -p scipy_with_lsm --pyargs scipy.special.tests.test_logsumexp

Tests of complex numbers are left out. With ``SCIPY_ARRAY_API='["torch"]'`` the arrays are tensors of PyTorch; the four
tests that fail then want float32 for integers beside float32, which lsm promotes to float64, as NumPy does.
"""

from functools import partial

import lsm


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if "complex" in item.name or "imaginary" in item.name or has_complex(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    for module in {item.module for item in items}:
        for name in ("logsumexp", "softmax", "log_softmax"):
            assert hasattr(module, name)
            setattr(module, name, partial(getattr(lsm, name), axis=None))


def has_complex(item):
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(isinstance(parameter, complex) for parameter in parameters)
