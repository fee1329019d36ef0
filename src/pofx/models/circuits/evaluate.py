"""Log p of a circuit as a function that autograd knows: forward is the up pass, backward the down pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pofx.models.circuits.graph import Graph
from pofx.models.circuits.inputs import Evaluated, Inputs
from pofx.models.circuits.passes import Ascent, Mixing, down, up


def log_prob(graph: Graph, inputs: Inputs, mixing: Mixing, at: Evaluated) -> Tensor:
    """log p of each row, (B,).

    Gradients are expected flows: W ⊙ d/dW is how often each edge is taken, and the derivative in an input's
    log-density is how often that unit takes part. Cost: plain autograd through the same pass takes more than twice as long.
    """
    value: Tensor = _LogProb.apply(graph, inputs, *mixing, *at)
    return value


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        graph: Graph,
        inputs: Inputs,
        weight: Tensor,
        root: Tensor,
        table: Tensor,
        rows: Tensor,
        log_f: Tensor,
    ) -> Tensor:
        ascent = up(graph, Mixing(weight, root), inputs.leaves(Evaluated(table, rows, log_f)))
        ctx.graph, ctx.inputs, ctx.scaled = graph, inputs, ascent.shares is not None
        shares = () if ascent.shares is None else (ascent.shares,)
        ctx.save_for_backward(weight, root, table, rows, log_f, *ascent[:4], ascent.total, *shares)
        return ascent.log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight, root, table, rows, log_f, log_p, nodes, scales, sums, total, *shares = ctx.saved_tensors
        ascent = Ascent(log_p, nodes, scales, sums, shares[0] if shares else None, total)
        flows = down(ctx.graph, Mixing(weight, root), ascent, grad)
        gamma = flows.units[ctx.graph.holder.to(grad.device)]
        table_grad, log_f_grad = ctx.inputs.counts(Evaluated(table, rows, log_f), gamma)
        return None, None, flows.edges, flows.root, table_grad, None, log_f_grad
