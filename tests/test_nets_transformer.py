"""Transformers: who looks at whom, and whose numbers are whose. What holds for every net that is told the time: test_nets_timed."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from pofx.errors import OptionError
from pofx.nets.transformer import PatchTransformer, TransformerBlock, VariableTransformer, attention


def shaken(net, by=0.3):
    """The net in eval mode, away from its start."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn_like(p))
    return net.eval()


# -- attention and blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_mean_by_weights(masked):
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    seen = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0]]).bool() if masked else None
    plain, fused = (attention(q, k, v, seen, fused=f) for f in (False, True))
    assert_close(plain, fused)
    for n, h, t in ((0, 0, 0), (1, 1, 4), (0, 1, 2)):
        weight = torch.tensor([math.exp(q[n, h, t] @ k[n, h, s] / 2) for s in range(5)])
        weight = weight if seen is None else weight * seen[n]
        assert_close(plain[n, h, t], weight @ v[n, h] / weight.sum())


def test_a_block_starts_as_the_identity():
    h, e = torch.randn(2, 5, 8), torch.randn(2, 8)
    assert_close(TransformerBlock(8, 2)(h, e), h)


def test_in_a_block_tokens_have_no_order_and_the_unseen_no_say():
    block, h, e = shaken(TransformerBlock(8, 4)), torch.randn(2, 5, 8), torch.randn(2, 8)
    order = torch.randperm(5)
    seen = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]]).bool()
    out = block(h, e, seen)
    assert_close(block(h[:, order], e, seen[:, order]), out[:, order])
    assert_close(block(torch.where(seen[..., None], h, 7.0), e, seen)[seen], out[seen])
    assert_close(block(h[:1, seen[0]], e[:1]), out[:1, seen[0]])


@pytest.mark.parametrize("heads", [0, 3, -2])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(OptionError, match=f"got {heads} heads and a width of 8"):
        TransformerBlock(8, heads)


# -- patches -----------------------------------------------------------------------------------------------


def test_squares_moved_with_their_places_move_the_result():
    """Rolled round: but for the first convolution, here made to look at one square, only its place tells a square apart."""
    net = shaken(PatchTransformer(2, 3, (6, 4), patch=2, width=16, blocks=2, heads=2))
    with torch.no_grad():
        net.first.weight[..., torch.arange(9).view(3, 3) != 4] = 0
    v, u = torch.randn(2, 2, 6, 4), torch.randn(2, 1)
    out = net(v, u)
    assert (net(v.roll(2, 2), u) - out.roll(2, 2)).abs().max() > 0.01
    with torch.no_grad():
        net.place.copy_(net.place.unflatten(0, (3, 2)).roll(1, 0).flatten(0, 1))
    assert_close(net(v.roll(2, 2), u), out.roll(2, 2))


@pytest.mark.parametrize(("sides", "patch", "whole"), [((5, 7), 2, (6, 8)), ((1, 3), 4, (4, 4)), ((4, 4), 2, (4, 4))])
def test_sides_that_the_patch_does_not_divide_are_filled_with_zeros(sides, patch, whole):
    options = {"patch": patch, "width": 16, "blocks": 2, "heads": 2}
    net, wider = shaken(PatchTransformer(2, 3, sides, **options)), PatchTransformer(2, 3, whole, **options)
    wider.load_state_dict(net.state_dict())
    v, u = torch.randn(2, 2, *sides), torch.randn(2, 1)
    filled = torch.zeros(2, 2, *whole)
    filled[..., : sides[0], : sides[1]] = v
    assert_close(net(v, u), wider(filled, u)[..., : sides[0], : sides[1]])


def test_of_no_blocks_a_square_sees_itself_and_those_beside_it():
    net = shaken(PatchTransformer(1, 1, (8, 6), patch=2, width=16, blocks=0))
    J = torch.autograd.functional.jacobian(lambda v: net(v, torch.zeros(1, 1)), torch.randn(1, 1, 8, 6))[0, 0, :, :, 0, 0]
    row, column = torch.arange(8)[:, None] // 2, torch.arange(6) // 2
    beside = [(at[..., None, None] - at).abs() <= 1 for at in (row.expand(8, 6), column.expand(8, 6))]
    assert torch.equal(J != 0, beside[0] & beside[1])


def test_a_patch_of_nothing_is_refused():
    with pytest.raises(OptionError, match="side of 1 or more, got 0"):
        PatchTransformer(1, 1, (4, 4), patch=0)


# -- variables ---------------------------------------------------------------------------------------------

WIDTHS, OUTPUTS = (1, 3, 2, 1), (2, 3, 1, 1)
OPTIONS = {"width": 16, "blocks": 2, "heads": 2}


def rows(n):
    return torch.randn(n, sum(WIDTHS)), torch.randn(n, 1)


def states(names):
    """given and absent, of rows of letters: n noised, g given, a absent."""
    return tuple(torch.tensor([[float(state == which) for state in row] for row in names]) for which in "ga")


def picked(net, order):
    """The net of these variables of another's, with their parameters."""
    other = VariableTransformer([WIDTHS[d] for d in order], [OUTPUTS[d] for d in order], **OPTIONS).eval()
    own = {name: p.clone() for name, p in net.state_dict().items()}
    own["into"] = own["into"][order][:, : other.into.shape[1]]
    own["out"] = own["out"][order][..., : other.out.shape[2]]
    own["identity"] = own["identity"][order]
    own["bias"] = torch.cat([own["bias"].split(OUTPUTS)[d] for d in order])
    other.load_state_dict(own)
    return other


def chosen(parts, sizes, order):
    pieces = parts.split(sizes, -1)
    return torch.cat([pieces[d] for d in order], -1)


def test_permuted_variables_with_their_parameters_permute_the_outputs():
    net, order = shaken(VariableTransformer(WIDTHS, OUTPUTS, **OPTIONS)), [2, 0, 3, 1]
    (v, u), (given, absent) = rows(3), states(["ngna", "nnnn", "aggn"])
    other = picked(net, order)(chosen(v, WIDTHS, order), given[:, order], absent[:, order], u)
    assert_close(other, chosen(net(v, given, absent, u), OUTPUTS, order))


@pytest.mark.parametrize("left", [[0, 1, 3], [1], [3, 0]])
def test_a_net_with_absent_variables_is_the_net_without_them(left):
    net = shaken(VariableTransformer(WIDTHS, OUTPUTS, **OPTIONS))
    (v, u), (given, _) = rows(3), states(["gnng", "nnnn", "ngng"])
    absent = torch.tensor([[float(d not in left) for d in range(4)]]).expand(3, -1)
    out = chosen(net(v, given * (1 - absent), absent, u), OUTPUTS, left)
    assert_close(picked(net, left)(chosen(v, WIDTHS, left), given[:, left], absent[:, left], u), out)


@pytest.mark.parametrize("held", [9.0, torch.inf, torch.nan])
def test_what_an_absent_variable_holds_changes_nothing(held):
    net = shaken(VariableTransformer(WIDTHS, OUTPUTS, **OPTIONS))
    (v, u), (given, absent) = rows(3), states(["gann", "aaaa", "anag"])
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(WIDTHS))
    assert torch.equal(net(torch.where(absent[:, owner] > 0, held, v), given, absent, u), net(v, given, absent, u))
    assert net(v, given, absent, u).isfinite().all()


def test_given_noised_and_absent_are_told_apart():
    net = shaken(VariableTransformer(WIDTHS, OUTPUTS, **OPTIONS))
    v, u = (part.expand(3, -1) for part in rows(1))
    noised, given, absent = net(v, *states(["nnnn", "ngnn", "nann"]), u)
    for one, other in ((noised, given), (noised, absent), (given, absent)):
        assert ((one - other).abs() > 1e-6).all()


def test_of_no_blocks_each_variable_has_maps_of_its_own():
    net = shaken(VariableTransformer(WIDTHS, OUTPUTS, width=16, blocks=0))
    (v, u), (given, absent) = rows(2), states(["ngan", "gnnn"])
    e = net.trunk.told(u)
    a, b = net.trunk.end(e).chunk(2, -1)
    expected = []
    for d, own in enumerate(v.split(WIDTHS, 1)):
        h = (1 - absent[:, [d]]) * own @ net.into[d, : WIDTHS[d]] + net.identity[d]
        h = h + given[:, [d]] * net.state[0] + absent[:, [d]] * net.state[1]
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected.append(((1 + a) * h + b) @ net.out[d, :, : OUTPUTS[d]] + net.bias.split(OUTPUTS)[d])
    assert_close(net(v, given, absent, u), torch.cat(expected, 1))


@pytest.mark.slow
def test_one_net_learns_every_conditional_mean():
    """Of three coins tossed together, all 8 worlds, each coin noised, given or absent: least squares leads to E[x_d | what is given]."""
    worlds = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    shares = torch.tensor([8.0, 1.0, 2.0, 5.0, 1.0, 6.0, 4.0, 1.0])
    names = ["".join(row) for row in itertools.product("nga", repeat=3)]
    given, absent = (part.repeat_interleave(8, 0) for part in states(names))
    x, weight, u = worlds.repeat(27, 1), shares.repeat(27)[:, None] * (1 - given - absent), torch.zeros(216, 1)
    alike = (given[:, None] == given).all(-1) & ((x[:, None] == x) | (given == 0)).all(-1) & (absent[:, None] == absent).all(-1)
    exact = (alike * shares.repeat(27)) @ x / (alike * shares.repeat(27)).sum(1, keepdim=True)
    net, steps = VariableTransformer((1, 1, 1), (1, 1, 1), width=16, blocks=2, heads=2), 250
    adam = torch.optim.Adam(net.parameters(), 1e-2, foreach=False)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        out = net(x * given, given, absent, u)
        adam.zero_grad()
        ((out - x).square() * weight).sum().backward()
        adam.step()
    assert ((out - exact).abs() * (weight > 0)).max() < 0.05  # of values from -1 to 1


@pytest.mark.parametrize(("widths", "outputs"), [((), ()), ((1, 2), (1,)), ((1, 0), (1, 1)), ((1, 1), (2, 0))])
def test_variables_without_coordinates_or_outputs_are_refused(widths, outputs):
    with pytest.raises(OptionError, match="one coordinate and one output or more"):
        VariableTransformer(widths, outputs)
