"""As how many parameters a network acts where it is: the rank of its derivative by the parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.tape.tape import preserved, set_modes

ROWS = 2048  # of the derivative: samples times outputs; time grows with the cube
SMALL = 1e-5  # of the largest singular value: those below count as zero, in single precision too
ENTRIES = 2**26  # of the derivative by parameters that are in no Linear: half a gigabyte


@dataclass(frozen=True)
class TangentRank:
    """How many of a network's parameters count where it is.

    Attributes:
        rank: number of singular values of the derivative that are not zero.
        parameters: how many parameters require a gradient.
        rows: of the derivative, samples times outputs; a rank as large says only "at least".
    """

    rank: int
    parameters: int
    rows: int

    @property
    def saturated(self) -> bool:
        """Whether more rows would show a larger rank, as far as can be seen."""
        return self.rank == self.rows < self.parameters

    def __str__(self) -> str:
        least = "at least " if self.saturated else ""
        return f"{self.parameters:,} parameters act as {least}{self.rank:,}"


def tangent_rank(model: nn.Module, inputs: Tensor, *, rows: int = ROWS) -> TangentRank:
    r"""Rank of the derivative of a network's outputs by its parameters, at the point it has reached.

    $\operatorname{rank}\,(\partial f_\theta(x_i)_k / \partial\theta)_{(i,k)}$, the dimension of the tangent space of
    the functions that the network can reach from there (the model rank at θ of Zhang et al., JML 2025).
    A network at an embedded point has that of the smaller network, however large it is (001, Thm. 4.1: the features are
    the same). Needs as many rows as the rank; singular values below `SMALL` of the largest count as zero.

    For Linears that are called once on a matrix the Gram matrix of the derivative is made of those of their inputs and
    of the outputs' derivatives, without the derivative itself; other parameters are differentiated by, row after row.

    Args:
        model: maps the inputs to one tensor, every sample by itself; not changed, and run in eval mode.
        inputs: shape (samples, …), in the model's precision.
        rows: samples times outputs, at most; of more samples some are taken at equal distances.

    Returns:
        The rank, beside the number of parameters and of rows.

    Raises:
        InputError: rows is not positive, no parameter requires a gradient, the output is no finite tensor of as many
            samples, or too many parameters are in no Linear.

    Two equal tanh neurons act as one: slope, bias and weight, and the last bias.

    >>> net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    >>> for parameter in net.parameters():
    ...     _ = nn.init.constant_(parameter, 0.7)
    >>> print(tangent_rank(net, torch.linspace(-3, 3, 20)[:, None]))
    7 parameters act as 4
    """
    return rank_of_run(model, lambda: model(inputs), rows)


@torch.inference_mode(mode=False)
def rank_of_run(model: nn.Module, run: Callable[[], Tensor], rows: int = ROWS) -> TangentRank:
    """The tangent rank from a function that runs the model; see `tangent_rank`."""
    if rows < 1:
        raise InputError(f"rows must be positive, not {rows}.")
    trained = {id(one): one for one in model.parameters() if one.requires_grad}
    if not trained:
        raise InputError("No parameter of the model requires a gradient: it has no tangent space.")
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(preserved(model))
        set_modes(model, training=False)
        calls = _Calls(model, stack)
        outputs = run()
        if not isinstance(outputs, Tensor) or outputs.dim() == 0 or not torch.isfinite(outputs).all():
            raise InputError("The model must give one finite tensor whose first dimension counts samples.")
        flat = outputs.flatten(1) if outputs.dim() > 1 else outputs[:, None]
        count = min(len(flat), rows // flat.shape[1])
        if not count:
            raise InputError(
                f"One sample has {flat.shape[1]:,} outputs, more than rows={rows}; give fewer, or more rows."
            )
        taken = torch.linspace(0, len(flat) - 1, count).round().long().to(flat.device)
        gram, covered = calls.gram(flat, taken)
        others = [one for key, one in trained.items() if key not in covered]
        if others:
            gram = gram + _gram_by_rows(flat[taken].flatten(), others)
    values = torch.linalg.eigvalsh(gram)
    rank = int((values > SMALL**2 * values[-1]).sum()) if values[-1] > 0 else 0
    return TangentRank(rank, sum(one.numel() for one in trained.values()), len(gram))


class _Calls:
    """What every Linear of a model was given and gave."""

    def __init__(self, model: nn.Module, stack: ExitStack) -> None:
        self._seen: dict[nn.Linear, list[tuple[Tensor, Tensor]]] = {}
        self._users: dict[int, int] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                self._users[id(parameter)] = self._users.get(id(parameter), 0) + 1
            if type(module) is nn.Linear:
                stack.callback(module.register_forward_hook(self._saw).remove)

    def _saw(self, linear: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(linear, nn.Linear)
        self._seen.setdefault(linear, []).append((given[0].detach(), output))
        return output.clone()  # an activation in place may come next

    def gram(self, outputs: Tensor, taken: Tensor) -> tuple[Tensor, set[int]]:
        """J Jᵀ of the Linears called once on a matrix, and the ids of the parameters that it covers."""
        count, width = len(taken), outputs.shape[1]
        plain = {
            linear: calls[0]
            for linear, calls in self._seen.items()
            if len(calls) == 1
            and calls[0][1].dim() == 2
            and calls[0][1].requires_grad
            and len(calls[0][1]) == len(outputs)
            and all(self._users[id(one)] == 1 for one in linear.parameters())
        }
        gram = outputs.new_zeros(count * width, count * width, dtype=torch.float64)
        if not plain:
            return gram, set()
        given, pres = zip(*plain.values(), strict=True)
        slopes = [[] for _ in plain]  # type: list[list[Tensor]]
        for column in outputs.T:
            found = torch.autograd.grad(column.sum(), pres, retain_graph=True, allow_unused=True)
            for kept, slope, pre in zip(slopes, found, pres, strict=True):
                kept.append(torch.zeros_like(pre[taken]) if slope is None else slope[taken])
        for linear, x, by_output in zip(plain, given, slopes, strict=True):
            delta = torch.stack(by_output, dim=1).flatten(0, 1).double()
            products = delta @ delta.T
            if linear.weight.requires_grad:
                h = x[taken].double()
                gram += products * (h @ h.T).repeat_interleave(width, 0).repeat_interleave(width, 1)
            if linear.bias is not None and linear.bias.requires_grad:
                gram += products
        return gram, {id(one) for linear in plain for one in linear.parameters()}


def _gram_by_rows(outputs: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """J Jᵀ for any parameters, from one backward pass a row."""
    size = sum(one.numel() for one in parameters)
    if size * len(outputs) > ENTRIES:
        raise InputError(
            f"{size:,} parameters are in no Linear that is called once on a matrix; with {len(outputs)} rows their "
            f"derivative is too large. Set rows= to at most {max(1, ENTRIES // size)}."
        )
    jacobian = []
    for value in outputs:
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        jacobian.append(torch.cat([(torch.zeros_like(like) if one is None else one).flatten() for one, like in pairs]))
    rows = torch.stack(jacobian).double()
    return rows @ rows.T
