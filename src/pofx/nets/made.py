"""MADE: outputs for variable i that see the variables before i only, unrolled variable by variable at the cost of one pass.

Every hidden unit has a degree m in 1 ... D-1 and sees what has a degree of at most m; the outputs of variable i (i = 1 ... D) see units of
a degree below i. The weights that a unit may not have are 0 from the start and get no gradient, so they stay 0, and the forward
pass multiplies plain matrices. Units stand in the order of their degrees: those that variable i completes are one slice.

Source: Germain, Gregor, Murray and Larochelle, "MADE: masked autoencoder for distribution estimation", ICML 2015, arXiv:1502.03509.
Residual blocks: Nash and Durkan, "Autoregressive energy machines", ICML 2019, arXiv:1904.05626.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import relu

from pofx.native import kernels

FAR = 1e3  # values that steer are clipped to it: one that is out there (or infinite) must not make NaN of others
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
        self.dim, self.size, self.backwards = dim, size, backwards
        least = 0 if context or dim == 1 else 1
        ranks = list(range(dim, 0, -1) if backwards else range(1, dim + 1))
        units = [sorted(i % (dim - least) + least for i in range(n)) for n in widths]
        degrees = [torch.tensor(m) for m in (ranks, *units)]
        masks = [unit[:, None] >= seen for seen, unit in pairwise(degrees)]
        self.layers: Sequence[Masked] = nn.ModuleList(map(Masked, masks))  # type: ignore[assignment]
        self.last = Masked((degrees[0][:, None] > degrees[-1]).repeat(size, 1))
        self.context = nn.Linear(context, widths[0], bias=False) if context else None
        self.skips = tuple(j - 2 if residual and j and j % 2 == 0 else None for j in range(len(widths)))
        self.ends = tuple(tuple(bisect_right(m, i) for i in range(dim)) for m in units)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.copy_(torch.tensor(tuple(start) or (0.0,) * size).repeat_interleave(dim))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """(size, D, N) of (D, N) and (C, N); has first derivatives."""
        if not torch.is_grad_enabled():
            return self.seen(x, c).outputs
        outputs: Tensor = _Pass.apply(x, c, self, *self.weights)
        return outputs

    def seen(self, x: Tensor, c: Tensor | None) -> "Unrolled":
        """What the net is at x (D, N)."""
        h = steering = x.clamp(-FAR, FAR)
        z: list[Tensor] = []
        lit: list[Tensor] = []
        plain = all(skip is None for skip in self.skips)
        for j, (layer, skip) in enumerate(zip(self.layers, self.skips, strict=True)):
            own = layer(h)
            own = own if j or self.context is None or c is None else torch.addmm(own, self.context.weight, c)
            z.append(own if skip is None else own.add_(z[skip]))
            lit.append(h := own.relu_() if plain else relu(own))
        return Unrolled(x, steering, self.last(h).view(self.size, self.dim, -1), z, lit)

    def pull(self, state: "Unrolled", to_outputs: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """The gradient in x, c and the weights, of that in the outputs (size, D, N) at x."""
        dtype = self.last.weight.dtype  # under autocast the state has another
        state, to_outputs = state._replace(lit=[h.to(dtype) for h in state.lit]), to_outputs.to(dtype).flatten(0, 1)
        down, to_z = self.last.weight.T @ to_outputs, list(state.z)
        for j in reversed(range(len(self.layers))):
            to_z[j] = _dimmed(down, state.lit[j])
            for above, skip in enumerate(self.skips):
                to_z[j] = to_z[j] + to_z[above] if skip == j else to_z[j]
            down = self.layers[j].weight.T @ to_z[j]
        grads = self._weight_gradients(state, to_outputs, to_z, c)
        return torch.ops.aten.hardtanh_backward(down, state.x, -FAR, FAR), self._to_context(to_z[0], c), grads

    def _to_context(self, to_z: Tensor, c: Tensor | None) -> Tensor | None:
        return None if self.context is None or c is None else self.context.weight.T @ to_z

    def at(self, i: int) -> int:
        """The variable that comes i-th."""
        return self.dim - 1 - i if self.backwards else i

    def before(self, i: int) -> slice:
        """Those that come before it."""
        return slice(self.dim - i, self.dim) if self.backwards else slice(i)

    @property
    def weights(self) -> list[Tensor]:
        """Every parameter, in the order in which `pull_back` gives their gradients."""
        return self.layered if self.context is None else [*self.layered, self.context.weight]

    @property
    def layered(self) -> list[Tensor]:
        """Weight and bias of each layer, the last one's last."""
        return [t for layer in (*self.layers, self.last) for t in (layer.weight, layer.bias)]

    @torch.no_grad()
    def unroll(self, solve: Solve, like: Tensor, c: Tensor | None = None) -> "Unrolled":
        """x (D, N) with x_d = solve(d, outputs of variable d), one after the other; each unit is computed once: half a pass in all."""
        state = Unrolled.blank(self, like)
        by_context = self.by_context(c)
        weight, bias = self.last.weight.view(self.size, self.dim, -1), self.last.bias.view(self.size, self.dim, 1)
        for i in range(self.dim):
            d, known = self.at(i), self._complete(i, state, by_context)
            state.outputs[:, d] = torch.addmm(bias[:, d], weight[:, d, : len(known)], known)
            state.x[d] = solve(d, state.outputs[:, d])
            torch.clamp(state.x[d], -FAR, FAR, out=state.steering[d])
        return state

    def first(self, k: int) -> "MADE":
        """The net of the k variables that come first: the units that see no other, and their weights."""
        part = MADE.__new__(MADE)
        nn.Module.__init__(part)
        part.dim, part.size, part.backwards, part.skips = k, self.size, self.backwards, self.skips
        part.ends = tuple(ends[:k] for ends in self.ends)
        seen = [self.before(k), *(slice(ends[-1]) for ends in part.ends)]
        part.layers = nn.ModuleList(layer.part(*pair) for layer, pair in zip(self.layers, pairwise(seen), strict=True))  # type: ignore[assignment]
        outputs = torch.arange(self.size * self.dim).view(self.size, self.dim)[:, seen[0]].flatten()
        part.last, part.context = self.last.part(seen[-1], outputs), None
        if self.context is not None:
            part.context = nn.Linear(self.context.in_features, 1, bias=False)
            part.context.weight = nn.Parameter(self.context.weight.detach()[seen[1]])
        return part

    @property
    def native(self) -> kernels.Net:
        """The same in C, which goes along rows in one piece."""
        layered = [t.contiguous() for t in self.layered]
        return kernels.Net(self.dim, self.size, self.backwards, FAR, self.skips, self.ends, layered[::2], layered[1::2])

    def by_context(self, c: Tensor | None) -> Tensor | None:
        """What the condition adds to the first layer."""
        return None if self.context is None or c is None else (self.context.weight @ c).to(self.last.bias.dtype)

    def _units(self, i: int, j: int) -> slice:
        """Of layer j, those that see i variables and no more."""
        return slice(self.ends[j][i - 1] if i else 0, self.ends[j][i])

    def _complete(self, i: int, state: "Unrolled", by_context: Tensor | None) -> Tensor:
        """Compute those units of every layer; all of the last layer that the i-th variable may see."""
        seen, below = self.before(i), state.steering
        for j, (layer, skip) in enumerate(zip(self.layers, self.skips, strict=True)):
            new = self._units(i, j)
            z = torch.addmm(layer.bias[new, None], layer.weight[new, seen], below[seen], out=state.z[j][new])
            if j == 0 and by_context is not None:
                z += by_context[new]
            if skip is not None:
                z += state.z[skip][new]
            torch.clamp_min(z, 0, out=state.lit[j][new])
            seen, below = slice(self.ends[j][i]), state.lit[j]
        return below[seen]

    @torch.no_grad()
    def pull_back(
        self, state: "Unrolled", grad: Tensor, by_x: Tensor, own: Tensor, c: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """The gradient in every x_d, of all that came of it, in c, and in the weights: the last variable first, as cheap as the way there.

        Args:
            state: what was unrolled.
            grad: in x from outside, (D, N).
            by_x: d x_d / d outputs of d, (size, D, N).
            own: the gradient that the outputs have from outside, (size, D, N).
            c: conditions (C, N).
        """
        grad, weight = grad.clone(), self.last.weight.view(self.size, self.dim, -1)
        inside = state.x.abs() <= FAR
        to_outputs, to_z = torch.empty_like(own), [torch.zeros_like(z) for z in state.z]
        to_lit = [torch.zeros_like(z) for z in state.z]
        for i in reversed(range(self.dim)):
            d, known = self.at(i), slice(self.ends[-1][i])
            to_outputs[:, d] = by_x[:, d] * grad[d] + own[:, d]
            to_lit[-1][known].addmm_(weight[:, d, known].T, to_outputs[:, d])
            self._pull_units(i, state, to_z, to_lit, grad, inside)
        return grad, self._to_context(to_z[0], c), self._weight_gradients(state, to_outputs.flatten(0, 1), to_z, c)

    def _pull_units(self, i: int, state: "Unrolled", to_z: list[Tensor], to_lit: list[Tensor], grad: Tensor, inside: Tensor) -> None:
        """From the units that see i variables to what they see."""
        for j in reversed(range(len(self.layers))):
            new, layer, skip = self._units(i, j), self.layers[j], self.skips[j]
            to_z[j][new] += _dimmed(to_lit[j][new], state.lit[j][new])
            if skip is not None:
                to_z[skip][new] += to_z[j][new]
            seen = self.before(i) if j == 0 else slice(self.ends[j - 1][i])
            down = layer.weight[new, seen].T @ to_z[j][new]
            if j:
                to_lit[j - 1][seen] += down
            else:
                grad[seen] += down * inside[seen]

    def _weight_gradients(self, state: "Unrolled", to_outputs: Tensor, to_z: list[Tensor], c: Tensor | None) -> list[Tensor]:
        inputs, found = [state.steering, *state.lit], []
        for layer, into, of in zip((*self.layers, self.last), inputs, (*to_z, to_outputs), strict=True):
            found += [(of @ into.T).mul_(layer.mask), of.sum(1)]
        return found if self.context is None or c is None else [*found, to_z[0] @ c.T]


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
    def blank(cls, net: MADE, like: Tensor) -> "Unrolled":
        """Room for it."""
        z = [like.new_empty(layer.out_features, like.shape[1]) for layer in net.layers]
        lit = z if set(net.skips) == {None} else [torch.empty_like(one) for one in z]
        return cls(torch.empty_like(like), torch.empty_like(like), like.new_empty(net.size, *like.shape), z, lit)


class Masked(nn.Module):
    """W h + b of columns h, (inputs, N) -> (outputs, N), with W = 0 wherever the mask is.

    Args:
        mask: (outputs, inputs).
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.out_features = len(mask)
        linear = nn.Linear(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(linear.weight), persistent=False)
        self.weight = nn.Parameter(linear.weight.detach() * self.mask)
        self.bias = nn.Parameter(linear.bias.detach())

    def part(self, inputs: slice, outputs: slice | Tensor) -> "Masked":
        """The rows and columns of W and b of some outputs and inputs."""
        part = Masked.__new__(Masked)
        nn.Module.__init__(part)
        part.register_buffer("mask", self.mask[outputs, inputs], persistent=False)
        part.weight, part.bias = (nn.Parameter(t) for t in (self.weight.detach()[outputs, inputs], self.bias.detach()[outputs]))
        part.out_features = len(part.bias)
        return part

    def forward(self, h: Tensor) -> Tensor:
        """(inputs, N) -> (outputs, N)."""
        return torch.addmm(self.bias[:, None], self.weight, h)


class _Pass(torch.autograd.Function):
    """A net's pass as one function: the gradient in a weight that a net may not have is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor | None, net: MADE, *weights: Tensor) -> Tensor:  # noqa: ANN401
        state = net.seen(x, c)
        ctx.net, ctx.c, ctx.state = net, c, state._replace(outputs=x)  # what is returned must not hold itself alive
        ctx.save_for_backward(*weights)  # so that a change in place before the way back is noticed
        return state.outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        _ = ctx.saved_tensors
        to_x, to_c, weights = ctx.net.pull(ctx.state, grad, ctx.c)
        return to_x, to_c, None, *weights


def _dimmed(grad: Tensor, lit: Tensor) -> Tensor:
    """The gradient before a ReLU."""
    return torch.ops.aten.threshold_backward(grad, lit, 0)
