"""MADE: outputs for variable i that see the variables before i only, unrolled variable by variable at the cost of one pass.

Every hidden unit has a degree m in 1 ... D-1 and sees what has a degree of at most m; the outputs of variable i (i = 1 ... D) see units of
a degree below i. The weights that a unit may not have are 0 from the start and get no gradient, so they stay 0, and the forward
pass multiplies plain matrices. Units stand in the order of their degrees: those that variable i completes are one slice.

All weights and biases of a net are one vector theta: a gradient is one tensor, an optimiser goes through one, C gets one address.

Source: Germain, Gregor, Murray and Larochelle, "MADE: masked autoencoder for distribution estimation", ICML 2015, arXiv:1502.03509.
Residual blocks: Nash and Durkan, "Autoregressive energy machines", ICML 2019, arXiv:1904.05626.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import relu

from pofx.native.kernels import Net

FAR = 1e3  # values that steer are clipped to it: one that is out there (or infinite) must not make NaN of others
_WIDE = 256  # columns from which on two products of three quarters of the numbers beat one of all
Solve = Callable[[int, Tensor], Tensor]  # from a variable and its outputs, (size, N), to its values, (N,)


class MADE(nn.Module):
    """Outputs (size, D, N) for x (D, N) and conditions c (C, N); those of variable i depend on x_1 ... x_i-1 and c.

    Args:
        dim: D.
        size: outputs of each variable.
        widths: of the hidden layers, whose activation is the ReLU.
        backwards: whether the last variable comes first; the weights know the order, and nothing is turned round.
        context: C; every unit sees all of c, and some see nothing else, so that the first variable sees it, too.
        residual: whether every two hidden layers after the first are a residual block: all widths are equal then, and odd in number.
        start: what the outputs of every variable are before learning.
    """

    theta: nn.Parameter
    mask: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        widths: Sequence[int] = (128, 128),
        *,
        backwards: bool = False,
        context: int = 0,
        residual: bool = False,
        start: Sequence[float] = (),
    ) -> None:
        super().__init__()
        least = 0 if context or dim == 1 else 1
        ranks = list(range(dim, 0, -1) if backwards else range(1, dim + 1))
        units = [sorted(i % (dim - least) + least for i in range(n)) for n in widths]
        skips = tuple(j - 2 if residual and j and j % 2 == 0 else None for j in range(len(widths)))
        ends = tuple(tuple(bisect_right(m, i) for i in range(dim)) for m in units)
        form = Net(dim, size, backwards, FAR, tuple(widths), skips, ends)
        degrees = [torch.tensor(m) for m in (ranks, *units)]
        masks = [*(unit[:, None] >= seen for seen, unit in pairwise(degrees)), (degrees[0][:, None] > degrees[-1]).repeat(size, 1)]
        drawn = [nn.Linear(inputs, outputs) for outputs, inputs in form.shapes]
        self.context = nn.Linear(context, widths[0], bias=False) if context else None
        self._hold(form, _flat((layer.weight, layer.bias) for layer in drawn), _flat((mask, torch.ones(len(mask))) for mask in masks))
        with torch.no_grad():
            last = self.layers[-1]
            last.weight.zero_()
            last.bias.copy_(torch.tensor(tuple(start) or (0.0,) * size).repeat_interleave(dim)[:, None])

    def _hold(self, form: Net, theta: Tensor, mask: Tensor) -> None:
        self.form, self.cuts = form, tuple(map(partial(_cut, form), range(len(form.shapes))))
        self.register_buffer("mask", mask.to(theta), persistent=False)
        self.theta = nn.Parameter(theta.detach() * self.mask)
        self._views: tuple[object, list[Layer]] = None, []

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """(size, D, N) of (D, N) and (C, N); has first derivatives."""
        if not torch.is_grad_enabled():
            return self.seen(x, c).outputs
        outputs: Tensor = _Pass.apply(x, c, self, *self.weights)
        return outputs

    @property
    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Theta, and what the condition is multiplied by."""
        return self.theta, None if self.context is None else self.context.weight

    @property
    def layers(self) -> list["Layer"]:
        """The hidden layers, then the last: views of theta, made once for where it lies, since they cost as much as a small product."""
        if torch.compiler.is_compiling():
            return self._layers(self.theta)
        place = self.theta.data_ptr(), self.theta.dtype
        if self._views[0] != place:
            self._views = place, self._layers(self.theta.detach())
        return self._views[1]

    def _layers(self, numbers: Tensor) -> list["Layer"]:
        """Of what stands as theta does."""
        pieces = numbers.split(self.form.sizes)
        parts = zip(pieces[::2], pieces[1::2], self.form.shapes, self.cuts, strict=True)
        return [Layer(w.view(shape), b.view(-1, 1), *cut) for w, b, shape, cut in parts]

    def seen(self, x: Tensor, c: Tensor | None) -> "Unrolled":
        """What the net is at x (D, N)."""
        h = steering = x.clamp(-FAR, FAR)
        *hidden, last = self.layers
        z: list[Tensor] = []
        lit: list[Tensor] = []
        for layer, skip in zip(hidden, self.form.skips, strict=True):
            own = layer(h)
            own = own if z or self.context is None or c is None else torch.addmm(own, self.context.weight, c)
            z.append(own if skip is None else own.add_(z[skip]))
            lit.append(h := relu(own) if self.form.residual else own.relu_())
        return Unrolled(x, steering, last(h).view(self.form.size, self.form.dim, -1), z, lit)

    def pull(self, state: "Unrolled", to_outputs: Tensor, c: Tensor | None = None) -> "Gradients":
        """Of that in the outputs (size, D, N) at x."""
        dtype = self.theta.dtype  # under autocast the state has another
        state, to_outputs = state._replace(lit=[h.to(dtype) for h in state.lit]), to_outputs.to(dtype).flatten(0, 1)
        *hidden, last = self.layers
        down, to_z = last.pull(to_outputs), list(state.z)
        for j, layer in reversed(list(enumerate(hidden))):
            to_z[j] = _dim(down, state.lit[j])
            for above, skip in enumerate(self.form.skips):
                to_z[j] = to_z[j] + to_z[above] if skip == j else to_z[j]
            down = layer.pull(to_z[j])
        return self._gradients(torch.ops.aten.hardtanh_backward(down, state.x, -FAR, FAR), state, to_outputs, to_z, c)

    def at(self, i: int) -> int:
        """The variable that comes i-th."""
        return self.form.dim - 1 - i if self.form.backwards else i

    def before(self, i: int) -> slice:
        """Those that come before it."""
        return slice(self.form.dim - i, self.form.dim) if self.form.backwards else slice(i)

    @torch.no_grad()
    def unroll(self, solve: Solve, like: Tensor, c: Tensor | None = None) -> "Unrolled":
        """x (D, N) with x_d = solve(d, outputs of variable d), one after the other; each unit is computed once: half a pass in all."""
        state = Unrolled.blank(self.form, like)
        by_context = self.by_context(c)
        *hidden, last = self.layers
        weight, bias = last.weight.unflatten(0, (self.form.size, -1)), last.bias.view(self.form.size, -1, 1)
        for i in range(self.form.dim):
            d, known = self.at(i), self._complete(i, hidden, state, by_context)
            state.outputs[:, d] = torch.addmm(bias[:, d], weight[:, d, : len(known)], known)
            state.x[d] = solve(d, state.outputs[:, d])
            torch.clamp(state.x[d], -FAR, FAR, out=state.steering[d])
        return state

    def first(self, k: int) -> "MADE":
        """The net of the k variables that come first: the units that see no other, and their weights."""
        part, form = MADE.__new__(MADE), self.form
        nn.Module.__init__(part)
        ends = tuple(of[:k] for of in form.ends)
        seen = [self.before(k), *(slice(of[-1]) for of in ends)]
        outputs = torch.arange(form.size * form.dim).view(form.size, form.dim)[:, seen[0]].flatten()
        units: list[slice | Tensor] = [*seen[1:], outputs]
        form = form._replace(dim=k, widths=tuple(of[-1] for of in ends), ends=ends)

        def kept(numbers: Tensor) -> Tensor:
            layers = zip(self._layers(numbers), seen, units, strict=True)
            return _flat((layer.weight[own, below], layer.bias[own]) for layer, below, own in layers)

        part._hold(form, kept(self.theta), kept(self.mask))
        part.context = None
        if self.context is not None:
            part.context = nn.Linear(self.context.in_features, 1, bias=False)
            part.context.weight = nn.Parameter(self.context.weight.detach()[seen[1]])
        return part

    def by_context(self, c: Tensor | None) -> Tensor | None:
        """What the condition adds to the first layer."""
        return None if self.context is None or c is None else (self.context.weight @ c).to(self.theta.dtype)

    def _units(self, i: int, j: int) -> slice:
        """Of layer j, those that see i variables and no more."""
        return slice(self.form.ends[j][i - 1] if i else 0, self.form.ends[j][i])

    def _complete(self, i: int, hidden: Sequence["Layer"], state: "Unrolled", by_context: Tensor | None) -> Tensor:
        """Compute those units of every layer; all of the last layer that the i-th variable may see."""
        seen, below = self.before(i), state.steering
        for j, (layer, skip) in enumerate(zip(hidden, self.form.skips, strict=True)):
            new = self._units(i, j)
            z = torch.addmm(layer.bias[new], layer.weight[new, seen], below[seen], out=state.z[j][new])
            if j == 0 and by_context is not None:
                z += by_context[new]
            if skip is not None:
                z += state.z[skip][new]
            torch.clamp_min(z, 0, out=state.lit[j][new])
            seen, below = slice(self.form.ends[j][i]), state.lit[j]
        return below[seen]

    @torch.no_grad()
    def pull_back(self, state: "Unrolled", grad: Tensor, by_x: Tensor, own: Tensor, c: Tensor | None = None) -> "Gradients":
        """Of all that came of every x_d: the last variable first, as cheap as the way there.

        Args:
            state: what was unrolled.
            grad: in x from outside, (D, N).
            by_x: d x_d / d outputs of d, (size, D, N).
            own: the gradient that the outputs have from outside, (size, D, N).
            c: conditions (C, N).
        """
        *hidden, last = self.layers
        grad, weight = grad.clone(), last.weight.unflatten(0, (self.form.size, -1))
        inside = state.x.abs() <= FAR
        to_outputs, to_z = torch.empty_like(own), [torch.zeros_like(z) for z in state.z]
        to_lit = [torch.zeros_like(z) for z in state.z]
        for i in reversed(range(self.form.dim)):
            d, known = self.at(i), slice(self.form.ends[-1][i])
            to_outputs[:, d] = by_x[:, d] * grad[d] + own[:, d]
            to_lit[-1][known].addmm_(weight[:, d, known].T, to_outputs[:, d])
            self._pull_units(i, hidden, state, to_z, to_lit, grad, inside)
        return self._gradients(grad, state, to_outputs.flatten(0, 1), to_z, c)

    def _pull_units(
        self, i: int, hidden: Sequence["Layer"], state: "Unrolled", to_z: list[Tensor], to_lit: list[Tensor], grad: Tensor, inside: Tensor
    ) -> None:
        """From the units that see i variables to what they see."""
        for j, layer in reversed(list(enumerate(hidden))):
            new, skip = self._units(i, j), self.form.skips[j]
            to_z[j][new] += _dim(to_lit[j][new], state.lit[j][new])
            if skip is not None:
                to_z[skip][new] += to_z[j][new]
            seen = self.before(i) if j == 0 else slice(self.form.ends[j - 1][i])
            down = layer.weight[new, seen].T @ to_z[j][new]
            if j:
                to_lit[j - 1][seen] += down
            else:
                grad[seen] += down * inside[seen]

    def _gradients(self, to_x: Tensor, state: "Unrolled", to_outputs: Tensor, to_z: list[Tensor], c: Tensor | None) -> "Gradients":
        """With those in the weights."""
        to_theta = torch.zeros_like(self.theta)
        for layer, into, of in zip(self._layers(to_theta), (state.steering, *state.lit), (*to_z, to_outputs), strict=True):
            layer.put(of, into)
        to_theta.mul_(self.mask)
        if self.context is None or c is None:
            return Gradients(to_x, None, to_theta, None)
        return Gradients(to_x, self.context.weight.T @ to_z[0], to_theta, to_z[0] @ c.T)


class Layer(NamedTuple):
    """W h + b of columns h, (inputs, N) -> (outputs, N), or the gradients in W and b.

    Args:
        weight: W, (outputs, inputs).
        bias: b, (outputs, 1).
        units: so many of the first outputs ...
        seen: ... see so many of the first inputs and no more: with many columns, the rest of W, 0, is left out.
    """

    weight: Tensor
    bias: Tensor
    units: int
    seen: int

    def __call__(self, h: Tensor) -> Tensor:
        """W h + b."""
        if self._whole(h):
            return torch.addmm(self.bias, self.weight, h)
        out = torch.addmm(self.bias, self.weight[:, : self.seen], h[: self.seen])
        out[self.units :] += self.weight[self.units :, self.seen :] @ h[self.seen :]
        return out

    def pull(self, grad: Tensor) -> Tensor:
        """The gradient in h, of that in what comes out."""
        if self._whole(grad):
            return self.weight.T @ grad
        down = self.weight[self.units :].T @ grad[self.units :]
        down[: self.seen] += self.weight[: self.units, : self.seen].T @ grad[: self.units]
        return down

    def put(self, grad: Tensor, h: Tensor) -> None:
        """Set those in W and b; what is left out stays as it is."""
        torch.sum(grad, 1, keepdim=True, out=self.bias)
        if self._whole(grad):
            torch.mm(grad, h.T, out=self.weight)
        else:
            torch.mm(grad[self.units :], h.T, out=self.weight[self.units :])
            self.weight[: self.units, : self.seen] = grad[: self.units] @ h[: self.seen].T

    def _whole(self, h: Tensor) -> bool:
        return not self.units or h.shape[1] < _WIDE


class Gradients(NamedTuple):
    """In what a net is given.

    Args:
        x: (D, N).
        c: (C, N), or None.
        theta: as theta stands.
        context: in what the condition is multiplied by, or None.
    """

    x: Tensor
    c: Tensor | None
    theta: Tensor
    context: Tensor | None


class Unrolled(NamedTuple):
    """What a net was at every variable and unit.

    Args:
        x: the variables, (D, N).
        steering: the same, clipped.
        outputs: (size, D, N).
        z: of each layer before the ReLU, (units, N).
        lit: after it; where no block adds to z, the same tensor.
    """

    x: Tensor
    steering: Tensor
    outputs: Tensor
    z: list[Tensor]
    lit: list[Tensor]

    @classmethod
    def blank(cls, form: Net, like: Tensor) -> "Unrolled":
        """Room for it."""
        z = [like.new_empty(width, like.shape[1]) for width in form.widths]
        lit = [torch.empty_like(one) for one in z] if form.residual else z
        return cls(torch.empty_like(like), torch.empty_like(like), like.new_empty(form.size, *like.shape), z, lit)


class _Pass(torch.autograd.Function):
    """A net's pass as one function: the gradient in a weight that a net may not have is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor | None, net: MADE, theta: Tensor, by_context: Tensor | None) -> Tensor:  # noqa: ANN401
        state = net.seen(x, c)
        ctx.net, ctx.c, ctx.state = net, c, state._replace(outputs=x)  # what is returned must not hold itself alive
        ctx.save_for_backward(theta, by_context)  # so that a change in place before the way back is noticed
        return state.outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        _ = ctx.saved_tensors
        to_x, to_c, *weights = ctx.net.pull(ctx.state, grad, ctx.c)
        return to_x, to_c, None, *weights


def _dim(grad: Tensor, lit: Tensor) -> Tensor:
    """The gradient before a ReLU, in the place of that after it."""
    return torch.ops.aten.threshold_backward.grad_input(grad, lit, 0, grad_input=grad)


def _flat(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Weights and biases, layer by layer."""
    return torch.cat([t.flatten() for part in parts for t in part])


def _cut(form: Net, j: int) -> tuple[int, int]:
    """Of a hidden layer after the first: up to half of its units, and what they see of the layer below."""
    if not 0 < j < len(form.widths):
        return 0, 0
    ends = zip(form.ends[j], form.ends[j - 1], strict=True)
    return max(((units, seen) for units, seen in ends if 2 * units <= form.widths[j]), default=(0, 0))
