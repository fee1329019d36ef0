"""The kernels in C: what they compute is what plain PyTorch computes, to rounding, and nothing is missed where they are not."""

import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pofx.domain import Domain
from pofx.models.flows.families import FlowConfig
from pofx.models.registry import families
from pofx.native import kernels, library
from pofx.transforms.autoregressive import Autoregressive
from pofx.transforms.base import Inverse
from pofx.transforms.monotone import Affine, RationalQuadratic, Shift
from pofx.transforms.spline import Form, inverse_spline, spline

FORMS = [Form(2, 1.5), Form(8, 5.0), Form(5, math.pi, circular=True), Form(2, 1.0, circular=True), Form(37, 3.0)]
LAWS = [Shift(), Affine(), RationalQuadratic(4, 2.0), RationalQuadratic(5, 3.0, circular=True)]
NETS = {
    "plain": (5, {"widths": (16, 12)}),
    "one layer, backwards": (7, {"widths": (9,), "backwards": True}),
    "residual": (4, {"widths": (17,) * 5, "residual": True}),
    "residual, backwards, condition": (13, {"widths": (20,) * 3, "residual": True, "backwards": True, "context": 2}),
    "fewer units than variables": (9, {"widths": (3, 5)}),
    "one variable, condition": (1, {"widths": (8, 8), "context": 3}),
}
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-3}  # derivatives of a steep bin lose digits in any order of operations

here = pytest.mark.skipif(library.library() is None, reason="there is no C compiler, or POFX_NATIVE=0")


@pytest.fixture
def plainly(monkeypatch):
    """A function that calls another without the library."""

    def call(f):
        with monkeypatch.context() as m:
            m.setattr(kernels, "library", lambda: None)
            return f()

    return call


def close(ours, theirs, dtype):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is b.dtype is dtype
        assert_close(a, b, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def with_gradients(f, *tensors):
    """What f gives, and the gradients of a sum of it that weighs every number differently."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = f(*leaves)
    weighed = sum((o * torch.linspace(-1, 2, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in out)
    return *out, *torch.autograd.grad(weighed, leaves, allow_unused=True, materialize_grads=True)


# -- splines ---------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_spline_is_the_same_function(form, dtype, plainly):
    for f in (spline, inverse_spline):
        for shape in [(1, 1), (3, 67), (2, 130)]:
            v, raw = 2 * torch.randn(shape, dtype=dtype), torch.randn(form.parameters, *shape, dtype=dtype)
            ask = partial(with_gradients, lambda v, raw, f=f: f(v, raw, form), v, raw)
            close(ask(), plainly(ask), dtype)


@here
@pytest.mark.parametrize("f", [spline, inverse_spline])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_splines_edges_and_infinities_are_the_same(f, scale, plainly):
    form = Form(6, 3.0)
    v = torch.tensor([3.0, -3.0, math.nextafter(3.0, 4.0), 1e6, -1e6, math.inf, -math.inf, 0.0]).expand(2, -1)
    raw = scale * torch.randn(form.parameters, 2, 8)
    ask = partial(f, v, raw, form)
    ours = ask()
    close(ours, plainly(ask), torch.float64)
    assert not any(t.isnan().any() for t in ours)


@here
def test_nan_is_not_hidden():
    form = Form(4, 2.0)
    raw = torch.zeros(form.parameters, 1, 3)
    raw[:, 0, 1] = torch.nan
    y, log_slope = spline(torch.tensor([[torch.nan, 0.5, 0.5]]), raw, form)
    assert y.isnan().tolist() == log_slope.isnan().tolist() == [[True, True, False]]


@here
def test_numbers_of_any_size_and_exponent(plainly):
    """exp, log and log(1 + exp) over the whole range that softmax and slopes put them to."""
    form = Form(2, 1.0)
    raw = torch.zeros(form.parameters, 1, 4001)
    raw[0, 0], raw[4, 0] = torch.linspace(-800, 800, 4001), torch.linspace(800, -800, 4001)
    v = torch.linspace(-1, 1, 4001)[None]
    for dtype in ROUNDING:
        ask = partial(spline, v.to(dtype), raw.to(dtype), form)
        ours, theirs = ask(), plainly(ask)
        tolerance = {torch.float64: 1e-10, torch.float32: 2e-3}[dtype]  # bins a thousand times steeper than wide
        assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@here
@pytest.mark.parametrize("f", [spline, inverse_spline])
def test_empty_strided_and_half_precision_tensors(f, plainly):
    form = Form(4, 2.0)
    assert f(torch.zeros(3, 0), torch.zeros(form.parameters, 3, 0), form)[0].shape == (3, 0)
    v, raw = torch.randn(10, 6).T[::2], torch.randn(form.parameters)[:, None, None].expand(-1, 3, 10)
    close(f(v, raw, form), plainly(lambda: f(v, raw, form)), torch.float64)
    assert f(v.bfloat16(), raw.bfloat16(), form)[0].dtype is torch.bfloat16


@here
@pytest.mark.parametrize("f", [spline, inverse_spline])
def test_a_splines_gradient_is_right(f):
    form = Form(3, 2.0)
    v, raw = torch.randn(2, 3).requires_grad_(), torch.randn(form.parameters, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, raw: f(v, raw, form), (v, raw))


# -- autoregressive layers -------------------------------------------------------------------------


def layer(name, law, dtype=torch.float64):
    """A layer away from its start, and its columns and condition."""
    dim, options = NETS[name]
    T = Autoregressive(dim, law, **options)
    with torch.no_grad():
        for part in T.net.layers:
            part.weight.normal_(std=1 / math.sqrt(part.weight.shape[1]))
            part.bias.normal_()
        T.net.theta.mul_(T.net.mask)
    c = torch.randn(options["context"], 70, dtype=dtype) if "context" in options else None
    return T.to(dtype), torch.randn(dim, 70, dtype=dtype), c


@here
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_layer_is_the_same_both_ways(name, law, plainly):
    T, v, c = layer(name, law)
    given = [v, *([] if c is None else [c])]
    for way in (T.to_base, T.to_data):

        def ask(way=way):
            T.zero_grad()
            found = with_gradients(lambda v, c=None: way(v, c), *given)
            weighed = sum((o * o.cos()).sum() for o in way(v, c))
            return *found, *torch.autograd.grad(weighed, list(T.parameters()), allow_unused=True, materialize_grads=True)

        ours = ask()
        close(ours, plainly(ask), torch.float64)
        with torch.no_grad():
            assert_close(way(v, c), ours[:2])


@here
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_layer_in_single_precision_far_out_and_empty(law, plainly):
    T, v, c = layer("residual", law, torch.float32)
    v[0, 0], v[1, 1], v[2, 2] = 1e6, -math.inf, 1e30
    with torch.no_grad():
        for way in (T.to_base, T.to_data):
            ours, theirs = way(v, c), plainly(lambda way=way: way(v, c))
            assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
            assert not any(t.isnan().any() for t in ours)
            assert way(v[:, :0], c)[0].shape == (4, 0)
    T.to_base(v[:, :0], c)[0].sum().backward()
    assert not T.net.theta.grad.any()


@here
def test_what_a_unit_may_not_have_gets_no_gradient():
    T, v, _ = layer("residual", Affine())
    sum(o.sum() for o in T.to_base(v, None)).backward()
    assert not T.net.theta.grad[T.net.mask == 0].any()
    assert all(part.any() for part in T.net.theta.grad.split(T.net.form.sizes))


@here
def test_weights_changed_before_the_way_back_are_noticed():
    T, v, _ = layer("plain", Affine())
    u, _ = T.to_base(v, None)
    with torch.no_grad():
        T.net.layers[-1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        u.sum().backward()


@here
def test_threads_share_a_batch(monkeypatch):
    T, _, _ = layer("plain", RationalQuadratic(4, 2.0))
    v = torch.randn(5, 1000)

    def ask():
        return *with_gradients(lambda v: T.to_base(v, None), v), *torch.autograd.grad(T.to_base(v, None)[0].sum(), T.net.theta)

    alone = ask()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(kernels, "_ALONE", 1)
    assert len(kernels._pieces(1000, 1)) == 3
    close(ask(), alone, torch.float64)


# -- where they are not ----------------------------------------------------------------------------


def test_what_the_kernels_do_not_take(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: object())
    x = torch.zeros(2)
    assert kernels.takes(x, torch.nn.Parameter(x))
    assert not kernels.takes(x, x.float())
    assert not kernels.takes(x.bfloat16())
    assert not kernels.takes(x.to("meta"))
    assert not kernels.takes(torch.Tensor._make_subclass(Own, x))


class Own(torch.Tensor):
    """Might do anything."""


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of one's own, and a library that is looked for anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library.library.cache_clear()
    yield tmp_path
    library.library.cache_clear()


def test_switched_off_there_is_none_and_everything_works(fresh, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "0")
    T = Autoregressive(3, RationalQuadratic(), widths=(8, 8))
    u = torch.randn(5, 3)
    assert_close(T.inverse(T(u)[0])[0], u)
    assert library.library() is None
    assert not list(fresh.iterdir())


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler-anywhere"])
def test_a_compiler_that_fails_is_no_error(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    if compiler != "false":
        monkeypatch.setenv("PATH", str(fresh))
    assert library.library() is None
    assert not list(fresh.rglob("*.so"))


def test_nowhere_to_keep_it_is_no_error(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    assert library.library() is None


@here
def test_a_damaged_file_is_built_again(fresh, monkeypatch):
    monkeypatch.setattr(library, "FLAGS", ("-O0", "-fPIC", "-shared"))  # quick to build
    assert library.library() is not None
    (built,) = library.folder().glob("*.so")
    whole = built.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:500] + b"?" + whole[501:]):
        built.unlink()
        built.write_bytes(damaged)
        assert not library._whole(built)
    library.library.cache_clear()
    assert library.library() is not None
    assert library._whole(built)
    assert [path.name for path in library.folder().iterdir()] == [built.name]


def test_another_compiler_flag_or_processor_is_another_file(monkeypatch):
    names = {library._name(["/bin/sh"])}
    with monkeypatch.context() as m:
        m.setattr(library, "FLAGS", ("-O1",))
        names.add(library._name(["/bin/sh"]))
    with monkeypatch.context() as m:
        m.setattr(library, "_processor", lambda: "another")
        names.add(library._name(["/bin/sh"]))
    assert len(names | {library._name(["/bin/sh", "-m32"])}) == 4


@pytest.mark.slow
def test_importing_builds_nothing(tmp_path):
    script = "import pofx.transforms.autoregressive, pofx.native.library as l; print(l.library.cache_info().currsize)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    )
    assert run.stdout.strip() == "0"
    assert not list(tmp_path.iterdir())


# -- graphs ----------------------------------------------------------------------------------------


COMPILE = """
import torch
import pofx.nets.made as made
from pofx.domain import Domain
from pofx.models.registry import families
torch.set_default_dtype(torch.float64)
made._WIDE = 5  # as many columns are many
for name in ("maf", "nsf", "nsf-ar"):
    flow, x = families()[name].config(layers=1, width=8).build(Domain.real(3)).eval(), torch.randn(6, 3)
    weights = [torch.nn.init.normal_(p, std=0.2) for p in flow.transform.parameters()]
    for m in flow.modules():
        if hasattr(m, "mask"):
            m.theta.data.mul_(m.mask)
    def ask(f):
        log_p = f(x)
        return log_p, *torch.autograd.grad(log_p.sum(), weights, allow_unused=True, materialize_grads=True)
    def log_prob(x):
        return flow._log_prob(x, None, None)
    torch.testing.assert_close(ask(torch.compile(log_prob, fullgraph=True, backend="aot_eager")), ask(log_prob))
"""


@pytest.mark.slow
def test_log_p_and_its_gradient_compile_as_one_graph():
    """In a process of its own, where nothing checks shapes at run time: the compiler can not see through that."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True)


class Waiting(TorchDispatchMode):
    """Names of the operators that would make a GPU wait."""

    NAMES = frozenset({"aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select", "aten::index.Tensor"})

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.name() in self.NAMES:
            self.seen.append(op.name())
        return op(*args, **(kwargs or {}))


OF_LAYERS = [name for name, line in families().items() if issubclass(line.config, FlowConfig) and "layers" in line.config.model_fields]


@pytest.mark.parametrize("name", OF_LAYERS)  # an adaptive solver waits at every step
def test_no_flow_waits_for_numbers(name, plainly):
    """In log p and samples, once the public methods have checked what they were given."""
    domain = Domain(Domain.real(4).variables, (2, 2))
    flow, generator = families()[name].config(layers=2).build(domain), torch.Generator()

    def ask():
        with Waiting() as seen, torch.no_grad():
            flow._log_prob(torch.randn(3, 4), None, generator)
            flow.transform(torch.randn(3, 4))
            Inverse(flow.transform).inverse(torch.randn(3, 4))
        return seen.seen

    assert plainly(ask) == []
