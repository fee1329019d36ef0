"""The U-Net: scales, squares and attention. What holds for every net that is told the time: test_nets_timed."""

import math

import pytest
import torch
from torch.testing import assert_close

from pofx.nets.unet import Attention, TimedConvolutions, UNet


def shaken(net, by=0.2):
    """The net in eval mode, away from its start."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize("widths", [(8,), (12, 20), (5, 8, 12), (72, 100)])
@pytest.mark.parametrize("sides", [(1, 1), (2, 5), (7, 4)])
def test_any_widths_and_sides_will_do(widths, sides):
    """Also those that groups of 8 and heads of 32 channels do not divide, and sides of which there is no half."""
    net = shaken(UNet(2, 3, sides, widths=widths), 0.05)
    out = net(torch.randn(2, 2, *sides), torch.randn(2, 1))
    assert out.shape == (2, 3, *sides)
    assert out.isfinite().all()


@pytest.mark.parametrize(("sides", "patch", "whole"), [((5, 7), 2, (6, 8)), ((1, 3), 4, (4, 4)), ((4, 4), 2, (4, 4))])
def test_sides_that_the_patch_does_not_divide_are_filled_with_zeros(sides, patch, whole):
    net, wider = (UNet(2, 3, s, widths=(8, 16), patch=patch) for s in (sides, whole))
    wider.eval().load_state_dict(shaken(net).state_dict())
    v, u = torch.randn(2, 2, *sides), torch.randn(2, 1)
    filled = torch.zeros(2, 2, *whole)
    filled[..., : sides[0], : sides[1]] = v
    assert_close(net(v, u), wider(filled, u)[..., : sides[0], : sides[1]])


def test_each_scale_has_half_the_sides_rounded_up():
    net = shaken(UNet(1, 1, (7, 5), widths=(8, 8, 8)))
    sides = []
    hooks = [stage.register_forward_hook(lambda _, __, h: sides.append(tuple(h.shape[-2:]))) for stage in (*net.down, net.middle, *net.up)]
    net(torch.randn(1, 1, 7, 5), torch.zeros(1, 1))
    for hook in hooks:
        hook.remove()
    assert sides == [(7, 5), (4, 3), (2, 2), (2, 2), (2, 2), (4, 3), (7, 5)]


def test_a_block_is_its_formula():
    block = shaken(TimedConvolutions(8, 16, 4, 0.0))
    h, e = torch.randn(2, 8, 3, 5), torch.randn(2, 4)

    def norm(layer, h):
        groups = h.unflatten(1, (layer.num_groups, -1))
        over = (2, 3, 4)
        spread = (groups.var(over, correction=0, keepdim=True) + layer.eps).sqrt()
        plain = ((groups - groups.mean(over, keepdim=True)) / spread).flatten(1, 2)
        return plain * layer.weight[:, None, None] + layer.bias[:, None, None]

    def silu(h):
        return h * h.sigmoid()

    a, b = block.time(e)[..., None, None].chunk(2, 1)
    within = silu((1 + a) * norm(block.norms[1], block.inner(silu(norm(block.norms[0], h)))) + b)
    assert_close(block(h, e), block.skip(h) + block.outer(within))


def test_attention_looks_at_places_whatever_their_order():
    net, h = shaken(Attention(64)), torch.randn(2, 64, 3, 4)
    order = torch.randperm(12)

    def moved(h):
        return h.flatten(2)[..., order].unflatten(2, (3, 4))

    assert_close(net(moved(h)), moved(net(h)))


def test_attention_is_a_mean_by_weights_of_each_head():
    net, h = shaken(Attention(64)), torch.randn(1, 64, 2, 2)
    q, k, v = net.into(net.norm(h)).flatten(2)[0].view(3, 2, 32, 4)  # two heads of 32
    weight = torch.einsum("hdt,hds->hts", q, k).div(math.sqrt(32)).softmax(-1)
    seen = torch.einsum("hts,hds->hdt", weight, v).reshape(1, 64, 2, 2)
    assert_close(net(h), h + net.out(seen))
    assert_close(net.train()(h), h + net.out(seen))


def test_layout_in_memory_is_no_matter():
    net, v, u = shaken(UNet(2, 3, (5, 6), widths=(8, 16))), torch.randn(2, 2, 5, 6), torch.randn(2, 1)
    other = net(v.contiguous(memory_format=torch.channels_last), u)
    assert_close(other, net(v, u))
