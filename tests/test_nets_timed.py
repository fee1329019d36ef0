"""Nets that are told the time: what holds for every one of them."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import pofx.nets
from pofx.nets.timed import TimedMLP, TimeEmbedding
from pofx.nets.transformer import PatchTransformer, VariableTransformer
from pofx.nets.unet import UNet
from pofx.nets.waves import Waves

CONTEXT = 2


class Told(NamedTuple):
    """A net of a context and of a share to drop, and n rows of what it sees beside the time."""

    make: Callable[..., nn.Module]
    rows: Callable[[int], tuple[torch.Tensor, ...]]


def numbers(*shape):
    return lambda n: (torch.randn(n, *shape),)


def variables(n):
    """Six coordinates of three variables, some of them given."""
    return torch.randn(n, 6), (torch.rand(n, 3) < 0.4).to(torch.get_default_dtype()), torch.zeros(n, 3)


SMALL = {"width": 16, "blocks": 2}
NETS = {
    "rows": Told(lambda c, **o: TimedMLP(5, 4, c, **SMALL, **o), numbers(5)),
    "rows in waves": Told(lambda c, **o: TimedMLP(5, 4, c, **SMALL, waves=Waves(2), **o), numbers(5)),
    "images": Told(lambda c, **o: UNet(2, 3, (5, 6), c, widths=(8, 16), **o), numbers(2, 5, 6)),
    "images in squares": Told(lambda c, **o: UNet(1, 2, (7, 5), c, widths=(16, 16), blocks=2, patch=2, **o), numbers(1, 7, 5)),
    "pixels": Told(lambda c, **o: PatchTransformer(2, 3, (3, 2), c, patch=1, heads=2, **SMALL, **o), numbers(2, 3, 2)),
    "patches": Told(lambda c, **o: PatchTransformer(1, 2, (4, 6), c, patch=2, heads=4, **SMALL, **o), numbers(1, 4, 6)),
    "patches of odd sides": Told(lambda c, **o: PatchTransformer(2, 1, (5, 7), c, patch=3, heads=2, **SMALL, **o), numbers(2, 5, 7)),
    "variables": Told(lambda c, **o: VariableTransformer((1, 3, 2), (2, 1, 3), c, heads=2, **SMALL, **o), variables),
}


@pytest.fixture(params=NETS)
def told(request):
    return NETS[request.param]


def shaken(net, by=0.2):
    """The net in eval mode, away from its start."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn_like(p))
    return net.eval()


def inputs(told, n):
    return (*told.rows(n), torch.randn(n, 1), torch.randn(n, CONTEXT))


def test_every_net_that_is_told_the_time_has_a_line_above():
    modules = [importlib.import_module(f"pofx.nets.{m.name}") for m in pkgutil.iter_modules(pofx.nets.__path__)]
    classes = {v for m in modules for v in vars(m).values() if inspect.isclass(v) and issubclass(v, nn.Module)}
    told = {v for v in classes if {"v", "u"} <= inspect.signature(v.forward).parameters.keys()}
    assert told == {type(line.make(0)) for line in NETS.values()}


def test_it_starts_at_zero(told):
    out = told.make(CONTEXT)(*inputs(told, 3))
    assert_close(out, torch.zeros_like(out))


def test_gradients_reach_every_parameter(told):
    """After two steps: the first moves the last layer, the second the gates, which let the rest through."""
    net, given = told.make(CONTEXT), inputs(told, 8)
    if told is NETS["variables"]:
        given[2][:, 1] = 1 - given[1][:, 1]  # some absent: their state is a parameter, too
    target = torch.randn_like(net(*given))
    for _ in range(3):
        net.zero_grad()
        (net(*given) - target).square().mean().backward()
        reached = {name: bool(p.grad.any()) for name, p in net.named_parameters()}
        with torch.no_grad():
            for p in net.parameters():
                p.sub_(0.1 * p.grad)
    assert all(reached.values()), reached


def test_a_row_alone_is_the_row_in_a_batch(told):
    net, given = shaken(told.make(CONTEXT)), inputs(told, 4)
    assert_close(torch.cat([net(*(part[[i]] for part in given)) for i in range(4)]), net(*given))


def test_every_output_depends_on_every_input(told):
    net, (v, *rest) = shaken(told.make(CONTEXT)), inputs(told, 1)
    J = torch.autograd.functional.jacobian(lambda v: net(v, *rest).flatten(), v)
    assert J.flatten(1).shape[1] == v.numel()
    assert (J != 0).all()


def test_every_output_depends_on_time_and_condition(told):
    net, (*rows, u, c) = shaken(told.make(CONTEXT)), inputs(told, 1)
    for J in torch.autograd.functional.jacobian(lambda u, c: net(*rows, u, c).flatten(), (u, c)):
        assert (J != 0).all()


def test_no_condition_is_a_condition_of_zeros(told):
    net, (*rows, u, c) = shaken(told.make(CONTEXT)), inputs(told, 3)
    assert_close(net(*rows, u), net(*rows, u, 0 * c))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, when derivatives are first taken forward
def test_derivatives_can_be_taken_again_forward_and_many_at_once(told):
    """What a density along an ODE, and learning by it, ask for: against differences of the gradient, and against each other."""
    net, (v, *rest) = shaken(told.make(CONTEXT)), inputs(told, 2)
    toward = torch.randn_like(v)

    def pulled(v):
        return torch.autograd.grad(net(v, *rest).sin().sum(), v, create_graph=True)[0]

    v = v.requires_grad_()
    (again,) = torch.autograd.grad((pulled(v) * toward).sum(), v)
    step = 1e-5
    difference = (pulled(v + step * toward) - pulled(v - step * toward)) / (2 * step)
    assert_close(again, difference.detach(), rtol=1e-4, atol=1e-5)
    pushed = torch.func.jvp(lambda v: net(v, *rest), (v.detach(),), (toward,))[1]
    out = net(v, *rest)
    cotangents = torch.randn(3, *out.shape)
    (back,) = torch.autograd.grad(out, v, cotangents, is_grads_batched=True)
    assert_close((back * toward).flatten(1).sum(1), (cotangents * pushed).flatten(1).sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_in_is_dtype_out(told, dtype):
    net, given = shaken(told.make(CONTEXT)), inputs(told, 3)
    out = net.to(dtype)(*(part.to(dtype) for part in given))
    assert out.dtype is dtype
    assert_close(out.double(), net.double()(*given), rtol=1e-3, atol=1e-4)


def test_it_runs_in_half_the_bits(told):
    """Sixteen bits carry 2 to 3 digits: out and gradients are near those of 32."""
    net, given = shaken(told.make(CONTEXT)).float(), [part.float() for part in inputs(told, 3)]
    found = []
    for half in (False, True):
        for mode in (net.train, net.eval):
            mode()
            net.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = net(*given)
            out.float().square().sum().backward()
            found.append((out.float(), torch.cat([p.grad.flatten() for p in net.parameters()])))
    for (out, grad), (half_out, half_grad) in zip(found[:2], found[2:], strict=True):
        assert (out - half_out).norm() < 0.1 * out.norm()
        assert (grad - half_grad).norm() < 0.2 * grad.norm()


def test_units_are_dropped_in_training_alone(told):
    net, given = shaken(told.make(CONTEXT, dropout=0.5)), inputs(told, 3)
    assert torch.equal(net(*given), net(*given))
    plain = told.make(CONTEXT)
    plain.load_state_dict(net.state_dict())
    assert_close(net(*given), plain.train()(*given))
    net.train()
    assert not torch.equal(net(*given), net(*given))


# -- the embedding of time -------------------------------------------------------------------------------


def test_time_is_itself_and_waves_of_it():
    net, u = TimeEmbedding(3), torch.tensor([[-4.6], [0.3]])
    fast = torch.linspace(-math.log(4), math.log(4), 16).exp()
    waves = torch.cat((u, (fast * u).sin(), (fast * u).cos()), 1)
    assert_close(net(u), waves @ net.linear.weight.T + net.linear.bias)
    assert_close(fast[[0, -1]], torch.tensor([0.25, 4.0]))


def test_a_curve_over_the_levels_is_within_its_reach():
    """Least squares on the waves: exp(-u^2) and a step of a unit's width, over ln s in [-5, 5]."""
    u = torch.linspace(-5, 5, 400)[:, None]
    net = TimeEmbedding(33)
    net.linear.weight.data.copy_(torch.eye(33))
    net.linear.bias.data.zero_()
    waves = torch.cat((net(u), torch.ones_like(u)), 1).detach()
    for curve in ((-u.square()).exp(), (2 * u).sigmoid()):
        fit = torch.linalg.lstsq(waves, curve, driver="gelsd").solution
        assert (waves @ fit - curve).abs().max() < 0.01


# -- rows --------------------------------------------------------------------------------------------------


def test_of_no_blocks_it_is_one_hidden_layer():
    net = shaken(TimedMLP(3, 2, width=8, blocks=0))
    v, u = torch.randn(5, 3), torch.randn(5, 1)
    h = net.first(v)
    assert_close(net(v, u), net.last(h * h.sigmoid()))
