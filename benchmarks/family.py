"""The promises of softmax, logsumexp, losses, entropy and selections, and the libraries, for promises.py.

A library is a namespace of its functions, on NumPy arrays; a promise is a function of such a namespace.
"""

import math
import os
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace as Library
from typing import Any

import numpy as np

from lsm._version import DISTRIBUTION

INF, NAN, F16, F32 = np.inf, np.nan, np.float16, np.float32


def load_lsm() -> Library:
    import ml_dtypes

    import lsm

    return Library(
        log_softmax=lsm.log_softmax,
        log_softmax_gradient=lambda dy, x, axis: lsm.log_softmax_backward(dy, lsm.log_softmax(x, axis), axis),
        logsumexp=lambda x, b=None: lsm.logsumexp(x, -1, b),
        logsumexp_gradient=lsm.softmax,
        softmax=lambda x, axis=-1, T=1.0: lsm.softmax(x, axis, temperature=T),  # noqa: N803
        softmax_gradient=lambda dy, x: lsm.softmax_backward(dy, lsm.softmax(x)),
        loss=lsm.cross_entropy_value_and_grad,
        bfloat16_loss=lambda x, t: lsm.cross_entropy(x.astype(ml_dtypes.bfloat16), t, reduction="none"),
        entropy=lsm.entropy,
        kl=lsm.kl_divergence,
        top_k=lambda x, k: lsm.top_k_log_softmax(x, k).indices,
    )


def load_torch() -> Library:
    import torch
    from torch.nn import functional

    def tensor(x: Any) -> Any:
        return torch.from_numpy(x) if isinstance(x, np.ndarray) else x

    def on(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arrays, **options: function(*map(tensor, arrays), **options).numpy()

    def loss(x: Any, t: Any, **options: Any) -> Any:
        leaf = tensor(x).requires_grad_()
        value = functional.cross_entropy(leaf, tensor(t), **{name: tensor(given) for name, given in options.items()})
        return value.detach().numpy(), torch.autograd.grad(value.sum(), leaf)[0].numpy()

    def logs(logits: Any) -> Any:  # the second distribution first
        return (torch.log_softmax(x, -1) for x in reversed(logits))

    def gradient(function: Callable[..., Any], x: Any, dy: Any, axis: int = -1) -> Any:
        leaf = tensor(x).requires_grad_()
        return torch.autograd.grad(function(leaf, axis), leaf, tensor(dy))[0].numpy()

    return Library(
        log_softmax=on(torch.log_softmax),
        log_softmax_gradient=lambda dy, x, axis: gradient(torch.log_softmax, x, dy, axis),
        logsumexp=on(lambda x: torch.logsumexp(x, -1)),
        logsumexp_gradient=lambda x: gradient(torch.logsumexp, x, np.ones(x.shape[:-1], x.dtype)),
        softmax=on(lambda x, axis=-1, T=None: torch.softmax(x / T if T else x, axis)),  # noqa: N803
        softmax_gradient=lambda dy, x: gradient(torch.softmax, x, dy),
        loss=loss,
        bfloat16_loss=on(lambda x, t: functional.cross_entropy(x.bfloat16(), t, reduction="none").float()),
        entropy=on(lambda x: torch.distributions.Categorical(logits=x).entropy()),
        kl=on(lambda *logits: functional.kl_div(*logs(logits), reduction="none", log_target=True).sum(-1)),
        top_k=on(lambda x, k: x.topk(k).indices),
    )


def load_jax() -> Library:
    """JAX with jit, except for log-softmax, and the loss of optax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax import numpy as jnp

    def on(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arrays: Any) -> Any:
            with jax.enable_x64(arrays[0].dtype == np.float64):
                return np.asarray(jax.jit(function)(*arrays))

        return call

    def loss(x: Any, t: Any) -> Any:
        if t.dtype == F32:
            return -(t * jax.nn.log_softmax(x)).sum(-1)
        return jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, t[..., None], -1)[..., 0]

    def softmax(x: Any, axis: int = -1, T: float | None = None) -> Any:  # noqa: N803
        return on(lambda x: jax.nn.softmax(x / T if T else x, axis))(x)

    def value_and_gradient(x: Any, t: Any, reduction: str = "mean") -> Any:
        reduce = {"mean": jnp.mean, "none": lambda z: z}[reduction]
        return on(lambda x: reduce(loss(x, t)))(x), on(jax.grad(lambda x: jnp.sum(reduce(loss(x, t)))))(x)

    def log_softmax_gradient(dy: Any, x: Any, axis: int) -> Any:
        return np.asarray(jax.vjp(lambda x: jax.nn.log_softmax(x, axis), x)[1](dy)[0])

    return Library(
        log_softmax=lambda x, axis: np.asarray(jax.nn.log_softmax(x, axis)),
        log_softmax_gradient=log_softmax_gradient,
        logsumexp=lambda x, b=None: on(lambda x: jax.nn.logsumexp(x, -1, b))(x),
        logsumexp_gradient=on(jax.grad(lambda x: jax.nn.logsumexp(x, -1))),
        softmax=softmax,
        softmax_gradient=on(lambda dy, x: jax.vjp(jax.nn.softmax, x)[1](dy)[0]),
        loss=value_and_gradient,
        bfloat16_loss=on(lambda x, t: loss(x.astype(jnp.bfloat16), t).astype(F32)),
        entropy=on(lambda x: jax.scipy.special.entr(jax.nn.softmax(x)).sum(-1)),
        kl=on(lambda x, y: jax.scipy.special.rel_entr(jax.nn.softmax(x), jax.nn.softmax(y)).sum(-1)),
        top_k=lambda x, k: on(lambda x: jax.lax.top_k(x, k)[1])(x),
    )


def load_onnxruntime() -> Library:
    import onnx
    import onnxruntime

    @cache
    def session(operator: str, dtype: Any, **attributes: Any) -> Any:
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        infos = [onnx.helper.make_tensor_value_info(name, kind, None) for name in "xy"]
        node = onnx.helper.make_node(operator, ["x"], ["y"], **attributes)
        graph = onnx.helper.make_graph([node], operator, infos[:1], infos[1:])
        # Versions that runtimes from 2023 on can read.
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(operator: str, x: Any, **attributes: Any) -> Any:
        return session(operator, x.dtype, **attributes).run(None, {"x": x})[0]

    return Library(
        log_softmax=lambda x, axis: run("LogSoftmax", x, axis=axis),
        logsumexp=lambda x: run("ReduceLogSumExp", x, axes=(-1,), keepdims=0),
        softmax=lambda x, axis=-1, T=None: run("Softmax", x / x.dtype.type(T) if T else x, axis=axis),  # noqa: N803
    )


def load_scipy() -> Library:
    from scipy import special, stats

    return Library(
        log_softmax=special.log_softmax,
        logsumexp=lambda x, b=None: special.logsumexp(x, -1, b),
        softmax=lambda x, axis=-1, T=None: special.softmax(x / x.dtype.type(T) if T else x, axis),  # noqa: N803
        entropy=lambda x: stats.entropy(special.softmax(x, -1), axis=-1),
        kl=lambda x, y: stats.entropy(special.softmax(x, -1), special.softmax(y, -1), axis=-1),
    )


LIBRARIES = {  # distribution: (its name in the table, the function that loads it)
    DISTRIBUTION: ("lsm", load_lsm),
    "torch": ("PyTorch", load_torch),
    "jax": ("JAX", load_jax),
    "onnxruntime": ("ONNX Runtime", load_onnxruntime),
    "scipy": ("SciPy", load_scipy),
}


def confident() -> tuple[Any, Any]:
    """500 frames in which the label leads by about 20."""
    x = np.random.default_rng(0).normal(0, 1, (500, 10)).astype(F32)
    t = np.arange(500) % 10
    x[np.arange(500), t] += 20
    return x, t


def zeros(library: Library) -> str:
    x, t = confident()
    value, dx = library.loss(x, t, reduction="none")
    return f"{np.count_nonzero(value == 0)}, {np.count_nonzero(dx[np.arange(500), t] == 0)}"


def ulps(found: Any, x: Any) -> str:
    """The largest error of a softmax of x."""
    e = np.exp(x.astype(np.longdouble) - x.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    error = float((abs(found - p) / np.spacing(p.astype(F32))).max())
    return "at most 4 ulp" if error <= 4 else f"{error:.2g} ulp"


def difference(library: Library) -> str:
    found, exact = library.logsumexp(np.array([0, -1e-10]), np.array([1.0, -1.0])), math.log(-math.expm1(-1e-10))
    error = abs(float(found) - exact) / np.spacing(abs(exact))
    return "at most 4 ulp" if error <= 4 else f"{error:.2g} ulp"


def bfloat16_error(library: Library) -> str:
    x = np.random.default_rng(0).normal(0, 4, (100, 1000)).astype(np.int8).astype(F32)
    t = np.arange(100)
    wide = x.astype(np.float64)
    exact = np.log(np.exp(wide).sum(-1)) - wide[t, t]
    return f"{abs(library.bfloat16_loss(x, t) - exact).max():.0e}"


def same_on_every_axis(library: Library) -> str:
    x = np.random.default_rng(2).normal(0, 3, (257, 1000)).astype(F32)
    parts = {n: x[:, :n].copy() for n in (10, 33, 1000)}
    changed = [str(n) for n, x in parts.items() if (library.softmax(x) != library.softmax(x.T.copy(), 0).T).any()]
    return f"no: {', '.join(changed)}" if changed else "yes"


def near(library: Library) -> str:
    x, step = np.random.default_rng(0).normal(size=(2, 1, 1000)).astype(F32)
    return f"{library.kl(x, x + F32(1e-4) * step)[0]:.3g}"


def frames(*values: Any, dtype: Any = F32) -> Any:
    return np.array([values], dtype)


def text(values: Any, digits: int = 3) -> str:
    return ", ".join(f"{float(value):.{digits}g}" for value in np.ravel(values))


def loss_of(library: Library, x: Any, t: Any, dtype: Any = np.int64, **options: Any) -> str:
    value, dx = library.loss(x, np.asarray(t, dtype), **options)
    return f"{text(value, 6)}; {text(dx.ravel()[:2])}"


FAMILY: dict[str, Callable[[Library], str]] = {
    "logsumexp of float32 [-ln 2, -ln 2]; true is -1.9e-09": lambda f: text(f.logsumexp(frames(*[-math.log(2)] * 2))),
    "logsumexp of float32 [0, -20]; true is 2.06e-09": lambda f: text(f.logsumexp(frames(0, -20))),
    "logsumexp of float32 [0, 110] with b = [1e30, 1e-40]; true is 69.1": lambda f: text(
        f.logsumexp(frames(0, 110), frames(1e30, 1e-40))
    ),
    "logsumexp of [1000, 1000, 1] with b = [1, -1, 1]; true is 1": lambda f: text(
        f.logsumexp(frames(1000, 1000, 1), frames(1, -1, 1))
    ),
    "log(exp(a) - exp(c)), a - c = 1e-10: error": difference,
    "logsumexp of 65,537 equal float16 logits; true is 11.1": lambda f: text(f.logsumexp(np.zeros((1, 65_537), F16))),
    "gradient of logsumexp of float32 [1e8, 1e8]; true is 0.5, 0.5": lambda f: text(
        f.logsumexp_gradient(np.array([1e8, 1e8], F32))
    ),
    "softmax of int8 [100, -100]; true is 1, 1.38e-87": lambda f: text(f.softmax(frames(100, -100, dtype=np.int8))),
    "softmax of 100 x 1000 float32, N(0, 30): largest error": lambda f: ulps(
        f.softmax(x := np.random.default_rng(0).normal(0, 30, (100, 1000)).astype(F32)), x
    ),
    "softmax of float32 [1000, 999, 0] / 0.7: largest error": lambda f: ulps(
        f.softmax(x := frames(1000, 999, 0), T=0.7), x / np.longdouble(0.7)
    ),
    "softmax of float32 [3e10, 3e10] / 0.7; true is 0.5, 0.5": lambda f: text(f.softmax(frames(3e10, 3e10), T=0.7)),
    "softmax of float16 [11, 10, 0] / 1e-5; true is 1, 0, 0": lambda f: text(
        f.softmax(frames(11, 10, 0, dtype=F16), T=1e-5)
    ),
    "gradient of softmax of float32 [20, 0], dy = [-1, 0]; true is -2.06e-09, 2.06e-09": lambda f: text(
        f.softmax_gradient(frames(-1, 0), frames(20, 0))
    ),
    "cross-entropy of 500 confident frames: number of values, gradients that are 0; true is 0, 0": zeros,
    "cross-entropy of float32 1e6 + [3, 0]; true is 0.0485874; -0.0474, 0.0474": lambda f: loss_of(
        f, frames(1e6 + 3, 1e6), [0]
    ),
    "cross-entropy of 128,256 equal float16 logits; true is 11.7618; -1, 7.81e-06": lambda f: loss_of(
        f, np.zeros((1, 128_256), F16), [0]
    ),
    "cross-entropy of bfloat16 logits: largest error": bfloat16_error,
    "NaN in an ignored frame: mean and gradient there; true is 0.693147; 0, 0": lambda f: loss_of(
        f, np.array([[NAN, 0], [0, 0]], F32), [-100, 0], ignore_index=-100
    ),
    "probability 0 at a class of -inf; true is 0; 0, 0": lambda f: loss_of(f, frames(0, -INF), [[1, 0]], F32),
    "smoothing by 0.1 beside a class of -inf; true is 0.693147; -0.45, 0.45": lambda f: loss_of(
        f, frames(0, 0, -INF), [0], label_smoothing=0.1
    ),
    "weights all 0: mean and its gradient; lsm: nan; 0, 0": lambda f: loss_of(
        f, frames(0, 1), [0], weight=np.zeros(2, F32)
    ),
    "a target of -1 with 2 classes; lsm: an error": lambda f: loss_of(f, frames(0, 1), [-1]),
    "entropy of float32 [20, 0]; true is 4.33e-08": lambda f: text(f.entropy(frames(20, 0))),
    "entropy of one class; true is 0": lambda f: text(f.entropy(frames(3))),
    "KL of two frames 1e-4 apart; true is 5.49e-09": near,
    "KL of frames with a class of -inf in both; true is 0": lambda f: text(f.kl(frames(0, -INF), frames(0, -INF))),
    "indices of the top 5 of 100 equal logits": lambda f: text(f.top_k(np.zeros((1, 100), F32), 5)),
    "same bits of softmax on another axis; if not, at which of 10, 33, 1000 classes": same_on_every_axis,
}


def filled(row: Callable[[Library], str], library: Library) -> str:
    """A cell: a dash if the library has no such function or option."""
    try:
        with np.errstate(all="ignore"):
            return row(library)
    except (AttributeError, TypeError) as error:
        if any(sign in str(error) for sign in ("SimpleNamespace", "positional argument", "keyword argument")):
            return "-"
        raise
