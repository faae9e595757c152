"""Selection of a backend: precedence, no fallback, and that `explain` agrees with what calls do."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import io
import os
import subprocess
import sys
import tempfile
import threading
import types

import numpy as np
import pytest

import lsm
from lsm import _config, _dispatch, _threads
from lsm._operations import OPERATIONS
from lsm.backends.contract import has_operation

F2, F4, LONG = np.zeros(3, "f2"), np.zeros(3, "f4"), np.zeros(3, np.longdouble)


def winner(**kwargs):
    decision = lsm.explain(F4, **kwargs)
    return decision.winner, decision.rule


def test_order_of_precedence():
    assert winner() == ("cython", "automatic")
    lsm.set_default_backend("numpy")
    assert winner() == ("numpy", "set_default_backend")
    with lsm.use_backend("cython"):
        assert winner() == ("cython", "use_backend")
        assert winner(backend="numpy") == ("numpy", "backend=")
        with lsm.use_backend("numpy"):
            assert winner() == ("numpy", "use_backend")
        assert winner() == ("cython", "use_backend")
    assert winner() == ("numpy", "set_default_backend")
    lsm.set_default_backend(None)
    assert winner() == ("cython", "automatic")


def test_the_environment_comes_last():
    code = """
import numpy as np, lsm
x = np.zeros(3, "f4")
print(lsm.explain(x).winner, lsm.explain(x).rule)
lsm.set_default_backend("cython")
print(lsm.explain(x).winner, lsm.explain(x).rule)
lsm.set_default_backend(None)
print(lsm.explain(x).winner)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"LSM_BACKEND": "numpy"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["numpy", "LSM_BACKEND", "cython", "set_default_backend", "numpy"], done.stderr


def test_what_explain_says_is_what_happens(monkeypatch):
    """For every request, the backend named by `explain` is the one whose method runs."""
    from lsm.backends import cython_, numpy_

    ran = []
    for name, backend in (("cython", cython_.backend), ("numpy", numpy_.backend)):
        for method in [op for op in OPERATIONS if has_operation(backend, op)]:
            original = getattr(type(backend), method)

            def spy(self, *args, original=original, name=name):
                ran.append(name)
                return original(self, *args)

            monkeypatch.setattr(type(backend), method, spy)
    monkeypatch.setattr(cython_.CythonBackend, "fast_functions", {})  # which test_fastpath.py watches
    lsm.refresh_backends()
    for x in (F2, F4, np.zeros(3), np.zeros(3, "g"), [1, 2]):
        for requested in (None, "cython", "numpy"):
            for how in ("backend=", "use_backend", "LSM_BACKEND", "set_default_backend"):
                kwargs = {"backend": requested} if how == "backend=" else {}
                in_environment = requested if how == "LSM_BACKEND" else None
                monkeypatch.setattr(_dispatch, "settings", lambda name=in_environment: _config.Settings(backend=name))
                lsm.set_default_backend(requested if how == "set_default_backend" else None)
                context = lsm.use_backend(requested) if how == "use_backend" and requested else lsm.num_threads(1)
                with context:
                    decision = lsm.explain(x, **kwargs)
                    assert decision.rule == (how if requested else "automatic")
                    ran.clear()
                    if decision.winner is None:
                        with pytest.raises(type(decision.error)) as caught:
                            lsm.log_softmax(x, **kwargs)
                        assert str(caught.value) == str(decision.error)
                        assert ran == []
                    else:
                        y = lsm.log_softmax(x, **kwargs)
                        lsm.log_softmax_backward(y, y, **kwargs)
                        assert ran == [decision.winner] * 2
        lsm.set_default_backend(None)
    lsm.refresh_backends()


def test_a_requested_backend_is_never_replaced():
    message = (
        "backend 'cython' .requested by backend=. supports float16, bfloat16, float32, float64, not longdouble; "
        "use backend='numpy'"
    )
    with pytest.raises(lsm.BackendUnsupportedError, match=message):
        lsm.log_softmax(LONG, backend="cython")
    with lsm.use_backend("cython"), pytest.raises(lsm.BackendUnsupportedError, match="requested by use_backend"):
        lsm.log_softmax(LONG)
    with pytest.raises(lsm.BackendUnsupportedError, match="not longdouble"):
        lsm.log_softmax(F4, dtype="longdouble", backend="cython")
    with pytest.raises(lsm.UnknownBackendError, match="no backend is named 'nope'; known: 'cython', 'cupy', 'numpy'"):
        lsm.log_softmax(F4, backend="nope")
    for wrong in (3, b"numpy", ["numpy"]):
        with pytest.raises(TypeError, match="^backend: "):
            lsm.log_softmax(F4, backend=wrong)
        with pytest.raises(TypeError, match="^backend: "):
            lsm.set_default_backend(wrong)
    assert issubclass(lsm.UnknownBackendError, lsm.LsmError)
    assert issubclass(lsm.BackendUnsupportedError, (lsm.LsmError, TypeError))


def test_use_backend_checks_its_name_and_survives_exceptions():
    for wrong in ("nope", "nope/numpy"):
        with pytest.raises(lsm.UnknownBackendError), lsm.use_backend(wrong):
            pass
        with pytest.raises(lsm.UnknownBackendError):
            lsm.set_default_backend(wrong)
    with lsm.use_backend("numpy"):
        with pytest.raises(KeyError), lsm.use_backend("cython"):
            raise KeyError
        assert winner() == ("numpy", "use_backend")
    assert winner() == ("cython", "automatic")
    with lsm.use_backend("lsm-softmax/numpy"):
        assert winner()[0] == "numpy"


def test_a_block_may_be_entered_again_within_itself_and_in_many_threads():
    numpy, cython = lsm.use_backend("numpy"), lsm.use_backend("cython")
    barrier, seen = threading.Barrier(4, timeout=10), []

    def work(blocks):
        for _ in range(20):
            for block in blocks:
                block.__enter__()
                barrier.wait()
                seen.append(winner() == (("numpy" if block is numpy else "cython"), "use_backend"))
            for block in reversed(blocks):
                barrier.wait()
                block.__exit__(None, None, None)
        seen.append(winner() == ("cython", "automatic"))

    threads = [threading.Thread(target=work, args=(blocks,)) for blocks in 2 * [(numpy, cython, numpy), 3 * (numpy,)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4 * 61 and all(seen)
    with numpy, pytest.raises(RuntimeError, match="exited in another thread or asyncio task than it was entered in"):
        cython.__exit__(None, None, None)
    assert winner() == ("cython", "automatic")


def test_a_block_decorates_a_function():
    @lsm.use_backend("numpy")
    def depth(n):
        assert winner() == ("numpy", "use_backend")
        return n if n == 3 else depth(n + 1)

    assert depth(0) == depth(0) == 3
    assert winner() == ("cython", "automatic")
    later = lsm.use_backend("nope")  # which may be installed by then
    with pytest.raises(lsm.UnknownBackendError), later:
        pass
    with pytest.raises(TypeError, match="^backend: "):
        lsm.use_backend(3)


BLOCKS = [
    (lambda: lsm.use_backend("numpy"), lambda: winner() == ("numpy", "use_backend")),
    (lambda: lsm.num_threads(1), lambda: _threads._in_context.get() == 1),
]
EVERY_BLOCK = pytest.mark.parametrize(("block", "holds"), BLOCKS, ids=["use_backend", "num_threads"])


@EVERY_BLOCK
def test_a_block_holds_while_a_coroutine_function_runs(block, holds):
    async def wait(n):
        for _ in range(n):
            assert holds()
            await asyncio.sleep(0)
        return holds()

    class Service:
        async def __call__(self, n):
            return await wait(n)

        @block()
        async def method(self, n):
            return await wait(n)

        @staticmethod
        @block()
        async def static(n):
            return await wait(n)

    service = Service()
    bound = functools.partial(functools.partial(wait), 3)
    calls = [functools.partial(block()(f), 2) for f in (wait, service, service.method)]
    calls += [block()(bound), functools.partial(service.method, 1), functools.partial(service.static, 1)]
    assert all(map(inspect.iscoroutinefunction, calls))

    async def one_by_one_and_at_once():
        for call in calls:
            assert await call() is True
            assert not holds()
        assert await asyncio.gather(*(call() for call in calls)) == [True] * len(calls)

    asyncio.run(one_by_one_and_at_once())
    assert not holds()


class GeneratorObject:
    def __call__(self):
        yield 1


async def an_async_generator():
    yield 1


def a_generator():
    yield 1


@EVERY_BLOCK
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (a_generator, "is a generator function, whose body runs after the call; use a with block"),
        (an_async_generator, "is a generator function"),
        (functools.partial(a_generator), "is a generator function"),
        (GeneratorObject(), "is a generator function"),
        (GeneratorObject().__call__, "is a generator function"),
        (types.coroutine(a_generator), "is a generator function"),
        (contextlib.nullcontext, "accepted: a function or a coroutine function"),
        (staticmethod(len), "below @staticmethod"),
        (classmethod(len), "below @staticmethod"),
        (property(len), "or @property"),
        (functools.cached_property(len), "accepted: a function"),
        (3, "^lsm cannot decorate 3"),
        (None, "^lsm cannot decorate None"),
    ],
)
def test_a_block_refuses_to_decorate_what_runs_later(block, holds, function, said):
    with pytest.raises(TypeError, match=said):
        block()(function)


async def a_coroutine():
    return 1


@EVERY_BLOCK
@pytest.mark.parametrize(
    "returned",
    [
        lambda: a_coroutine(),
        lambda: a_generator(),
        lambda: an_async_generator(),
        lambda: (x for x in range(3)),
        lambda: map(abs, [1]),
        lambda: concurrent.futures.Future(),
        lambda: functools.partial(winner),
        lambda: winner,
        lambda: lambda: winner(),
        lambda: [].append,
        lambda: [concurrent.futures.Future()],
        lambda: (1, a_coroutine()),
        lambda: {"frames": a_generator()},
        contextlib.nullcontext,
    ],
)
def test_a_block_refuses_a_result_that_runs_later(block, holds, returned):
    def inside():
        assert holds()
        return returned()

    async def inside_coroutine():
        return inside()

    with pytest.raises(TypeError, match="which runs after the block has ended; use a with block"):
        block()(inside)()
    with pytest.raises(TypeError, match="which runs after the block has ended"):
        block()(functools.lru_cache(inside))()
    with pytest.raises(TypeError, match="which runs after the block has ended"):
        asyncio.run(block()(inside_coroutine)())
    assert not holds()


@EVERY_BLOCK
@pytest.mark.parametrize(
    "opened",
    [io.BytesIO, io.StringIO, tempfile.TemporaryFile, tempfile.NamedTemporaryFile, tempfile.SpooledTemporaryFile],
)
def test_a_decorated_function_may_return_a_file(block, holds, opened):
    with block()(lambda: opened())() as file:
        assert file.tell() == 0


@EVERY_BLOCK
def test_a_block_keeps_what_a_function_is_and_returns(block, holds):
    @block()
    def named(a, *, b=2):
        """About it."""
        return a, b, holds()

    assert (named.__name__, named.__doc__, str(inspect.signature(named))) == ("named", "About it.", "(a, *, b=2)")
    assert named(1, b=3) == (1, 3, True)
    for value in (None, F4, [F4], {}, range(3), "text", object(), [].__class__):
        assert block()(lambda value=value: value)() is value

    @block()
    def fails():
        assert holds()
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not holds()


def test_a_block_within_a_generator_or_a_task():
    """Left before each yield it holds for the generator only; across a yield it is the caller's too, as documented."""

    def steps():
        for _ in range(2):
            with lsm.use_backend("numpy"):
                found = winner()
            yield found

    assert [(found, winner()) for found in steps()] == [(("numpy", "use_backend"), ("cython", "automatic"))] * 2

    def across():
        with lsm.use_backend("numpy"):
            yield

    generator = across()
    contextvars.Context().run(next, generator)
    assert winner() == ("cython", "automatic")
    with pytest.raises(RuntimeError, match="exited in another thread or asyncio task than it was entered in"):
        next(generator)
    assert winner() == ("cython", "automatic")


def test_threads_see_the_default_and_not_the_context():
    seen = []

    def look():
        seen.append(winner())

    lsm.set_default_backend("numpy")
    with lsm.use_backend("cython"):
        context = contextvars.copy_context()
        for target in (look, lambda: context.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == [("numpy", "set_default_backend"), ("cython", "use_backend")]


def test_workers_of_a_pool_see_the_default_and_by_copy_context_the_block():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(winner).result()  # the worker is there before the request
        lsm.set_default_backend("numpy")
        assert pool.submit(winner).result() == ("numpy", "set_default_backend")
        with lsm.use_backend("cython"):
            assert pool.submit(winner).result() == ("numpy", "set_default_backend")
            assert pool.submit(contextvars.copy_context().run, winner).result() == ("cython", "use_backend")
        assert pool.submit(winner).result() == ("numpy", "set_default_backend")


def test_tasks_keep_their_own_block():
    async def task(name, turns):
        with lsm.use_backend(name):
            for _ in range(turns):
                assert winner() == (name, "use_backend")
                await asyncio.sleep(0)

    async def both():
        await asyncio.gather(task("numpy", 5), task("cython", 7))

    asyncio.run(both())
    assert winner() == ("cython", "automatic")


def test_a_refresh_reaches_the_blocks_of_other_threads():
    inside, refreshed, seen = threading.Event(), threading.Event(), []

    def work():
        with lsm.use_backend("cython"):
            lsm.log_softmax(F4)
            before = _dispatch.policy_for(None).entries
            inside.set()
            refreshed.wait(10)
            seen.append(_dispatch.policy_for(None).entries is not before and not _dispatch.policy_for(None).entries)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    lsm.refresh_backends()
    refreshed.set()
    thread.join()
    assert seen == [True]


def test_threads_that_choose_refresh_and_call_at_once():
    """Requests and the registry change concurrently; each call uses the backend that it requests."""
    x = np.arange(6, dtype="f4").reshape(2, 3)
    expected = {name: lsm.log_softmax(x, backend=name).tobytes() for name in ("cython", "numpy")}
    start, wrong = threading.Barrier(6), []

    def call(name):
        for _ in range(150):
            with lsm.use_backend(name):
                if lsm.explain(x).winner != name or lsm.log_softmax(x).tobytes() != expected[name]:
                    wrong.append(name)
            if lsm.log_softmax(x, backend=name).tobytes() != expected[name]:
                wrong.append(f"backend={name}")

    def change():
        for i in range(150):
            lsm.set_default_backend((None, "numpy", "cython")[i % 3])
            if lsm.log_softmax(x).tobytes() not in expected.values():
                wrong.append("default")
            if i % 5 == 0:
                lsm.refresh_backends()

    def run(target, *args):
        start.wait()
        try:
            target(*args)
        except BaseException as error:
            wrong.append(error)

    work = [(call, "cython"), (call, "numpy"), (call, "cython"), (call, "numpy"), (change,), (change,)]
    threads = [threading.Thread(target=run, args=args) for args in work]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_explain_prints_a_table_and_runs_nothing():
    decision = lsm.explain(LONG)
    assert str(decision).splitlines() == [
        "log_softmax of numpy.ndarray, longdouble, on cpu: served by numpy (automatic)",
        "  cython  supports float16, bfloat16, float32, float64, not longdouble",
        "  cupy    supports devices cuda, not cpu",
    ]
    assert lsm.explain(F4).reasons["numpy"] == "not needed: cython is used"
    assert set(lsm.explain(F4).reasons) == {"cupy", "numpy"}
    failing = lsm.explain(F4, backend="nope")
    assert failing.winner is None and isinstance(failing.error, lsm.UnknownBackendError)
    assert "fails: no backend is named 'nope'" in str(failing)
    with pytest.raises(ValueError, match="^op: 'argmax' is not an operation; accepted: 'log_softmax'"):
        lsm.explain(F4, op="argmax")
    with pytest.raises(TypeError, match="^x: "):
        lsm.explain("text")


def test_data_on_another_device_is_not_moved():
    class Elsewhere:
        shape, dtype = (3,), np.dtype("f4")

        def __dlpack_device__(self):
            return (10, 0)  # ROCm, for which lsm has no backend

        def __array__(self, *args, **kwargs):
            raise AssertionError("the data was moved")

    x = Elsewhere()
    with pytest.raises(lsm.BackendUnsupportedError, match=r"Elsewhere of float32 on rocm: cython supports devices cpu"):
        lsm.log_softmax(x)
    with pytest.raises(lsm.BackendUnsupportedError, match="rocm"):
        lsm.log_softmax_backward(x, x)
    with pytest.raises(lsm.BackendUnsupportedError, match="rocm"):
        lsm.log_softmax_backward(F4, x)
    assert lsm.explain(x).device == "rocm" and lsm.explain(x).winner is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LSM_PLUGINS", "yes", "LSM_PLUGINS is 'yes'; accepted: 'on', 'off'"),
        ("LSM_PLUGINS", "0", "LSM_PLUGINS is '0'; accepted"),
        ("LSM_PLUGINS_ALLOW", "a,,b", "LSM_PLUGINS_ALLOW is 'a,,b'; accepted: comma-separated names of distributions"),
        ("LSM_NUM_THREADS", "many", "LSM_NUM_THREADS is 'many'; accepted"),
        ("LSM_NUM_THREADS", "0", "LSM_NUM_THREADS is '0'; accepted: a positive integer, such as '4'"),
        ("LSM_BACKEND", " numpy", "LSM_BACKEND is ' numpy'; accepted: the name of a backend"),
        ("LSM_FORCE_ISA", "avx2", "LSM_FORCE_ISA is 'avx2'; accepted: 'v4', 'v3', 'v2', 'plain'"),
    ],
)
def test_values_that_are_not_understood(variable, value, message):
    with pytest.raises(lsm.ConfigurationError) as caught:
        _config.read({variable: value})
    assert str(caught.value).startswith(message)
    done = subprocess.run(
        [sys.executable, "-c", "import lsm; lsm.log_softmax([1.0])"],
        env=os.environ | {variable: value}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and message in done.stderr


def test_empty_values_count_as_absent():
    names = ("LSM_BACKEND", "LSM_PLUGINS", "LSM_PLUGINS_ALLOW", "LSM_NUM_THREADS", "LSM_FORCE_ISA")
    assert _config.read(dict.fromkeys(names, "")) == _config.read({})


def test_an_instruction_level_beyond_the_processor_is_refused():
    code = "import lsm.backends.cython_ as c; from lsm.backends._kernels import cpu; print(cpu.best_level())"
    best = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    beyond = {"v3": "v4", "v2": "v3", "plain": "v2", "v4": "plain"}[best]
    code = "import lsm; print(lsm.list_backends()[0].reason); print(lsm.log_softmax([1.0, 2.0]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"LSM_FORCE_ISA": beyond}, capture_output=True, text=True
    )
    assert beyond in done.stdout and "[-1.31" in done.stdout, done.stderr  # NumPy serves the call instead


def test_plans_do_not_grow_without_end():
    class Array:
        def __dlpack_device__(self):
            return (1, 0)

        def __dlpack__(self, **options):
            return F4.__dlpack__(**options)

    for i in range(2 * _dispatch._MAX_CACHED_ENTRIES):
        lsm.log_softmax(np.zeros(2, np.dtype("f4", metadata={"i": i})))
        lsm.log_softmax(type(f"Array{i}", (Array,), {})())
    policy = _dispatch.policy_for(None)
    assert len(policy.entries) == _dispatch._MAX_CACHED_ENTRIES
    assert len(policy.fast) < 10
