"""A backend for lsm in plain NumPy, which computes in float64 and rounds once."""

import numpy as np

import lsm


class MinimalBackend(lsm.Backend):
    name = "minimal"
    api_version = 1
    dtypes = ("float16", "float32")

    def log_softmax(self, x, axis, out):
        with np.errstate(all="ignore"):
            x = x.astype(np.float64)
            m = x.max(axis=axis, keepdims=True)
            m[~np.isfinite(m)] = np.nan  # a frame with NaN or +inf, or with -inf only, becomes NaN
            p = np.exp(x - m)
            np.put_along_axis(p, np.expand_dims(x.argmax(axis=axis), axis), 0, axis)
            out[...] = x - m - np.log1p(p.sum(axis=axis, keepdims=True))

    def log_softmax_backward(self, grad_output, output, axis, out):
        with np.errstate(all="ignore"):
            dy, y = grad_output.astype(np.float64), output.astype(np.float64)
            s = dy.sum(axis=axis, keepdims=True)
            m = y.max(axis=axis, keepdims=True)
            s[~np.isfinite(s) | ~np.isfinite(m)] = np.nan
            out[...] = np.where(y > -0.7, (dy - s) - np.expm1(y) * s, dy - np.exp(y) * s)


backend = MinimalBackend()
