"""Optimizers follow a merge in place: the same objects and groups, the moments carried over where a map exists.

The gradient of the narrow network is Aᵀ times that of the wide one when θ_wide = A θ_narrow (paper 001, sec. 6), and
*first* moments are linear in the gradient:

- output weights of a kept neuron see the same feature and the same error: its columns are taken over;
- input weights add up as the features do, m_k = Σ_i M_ik m_i where φ = M φ_kept. Exact for condensed neurons
  (w_i = r_i w_k, M_ik = r_i); for a span an estimate, far nearer than the kept neurons' own moments alone
  (`python -m benchmarks.optimizer_state`).

*Second* moments have no exact map. One heuristic, the **coherent sum**, treats the gradients that add up as fully
correlated: v_k = (Σ_i |M_ik| √v_i)². For input weights it
errs on the large side, so that their steps come out smaller rather than larger.

The product of two layers has no map at all. Its first moment starts at zero and its second at
v_ij = v_bias,i · E[x_j²] (error and input independent), with the step count kept, so that bias correction does not
blow up the first steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_embed.graph import Layout

_FIRST = frozenset({"exp_avg", "momentum_buffer", "grad_avg"})
_ROOT = frozenset({"exp_inf"})  # in the units of the gradient: the root of a second moment
_SECOND = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}) | _ROOT

_STEPS = frozenset({"acc_delta"})  # of past steps, not gradients
_SIZES = frozenset({"prev", "step_size"})  # Rprop's, of every weight alone


@dataclass(frozen=True, eq=False)
class Sliced:
    """`new` holds the places `index` of `old` along a dimension.

    Attributes:
        old: the parameter before.
        new: the parameter now.
        index: the places of `old` that stay.
        dim: the dimension.
        mix: shape (units, kept), where the gradients of units add up; None where they do not.
        layout: where the units are in `old`.
        after: where the kept ones are in `new`.
        scaled: which entries of a unit scale with it. The others (gates) are equal in all copies of a unit, so that
            their gradients add up in shares, whatever the sizes of the copies.
    """

    old: Tensor
    new: Tensor
    index: Tensor
    dim: int
    mix: Tensor | None = None
    layout: Layout = Layout(0)  # noqa: RUF009  # it is frozen
    after: Layout = Layout(0)  # noqa: RUF009
    scaled: tuple[bool, ...] = (True,)

    def carry(self, key: str, value: Tensor) -> Tensor:
        """The state tensor `key` of `new`, from that of `old`."""
        selected = value.index_select(self.dim, self.index.to(value.device))
        if self.mix is None or key not in _FIRST | _SECOND:
            return selected
        mix = self.mix.to(device=value.device, dtype=torch.float64)
        wide, narrow = value.movedim(self.dim, 0), selected.movedim(self.dim, 0)
        assert self.layout.index is not None
        assert self.after.index is not None
        for entry, scaled in enumerate(self.scaled):
            taken = mix if scaled else _in_shares(mix)
            places, kept_places = (layout.index[:, entry].to(value.device) for layout in (self.layout, self.after))  # type: ignore[index]  # not None
            narrow[kept_places] = _mixed(key, taken, wide[places].double()).to(value.dtype)
        return narrow.movedim(0, self.dim)


def _mixed(key: str, mix: Tensor, value: Tensor) -> Tensor:
    if key in _FIRST:
        mixed: Tensor = torch.tensordot(mix.T, value, dims=1)
    elif key in _ROOT:
        mixed = torch.tensordot(mix.T.abs(), value, dims=1)
    else:
        mixed = torch.tensordot(mix.T.abs(), value.sqrt(), dims=1).square()
    return mixed


def _in_shares(mix: Tensor) -> Tensor:
    """By which shares each unit is given to the kept ones: 1 to its own, where it is a copy of any size."""
    sizes = mix.abs()
    shares: Tensor = sizes / sizes.sum(dim=1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
    return shares


@dataclass(frozen=True, eq=False)
class Whole:
    """`old` becomes `new` with its state as it is; it goes (`new` None) or comes (`old` None, after `beside`)."""

    old: Tensor | None
    new: Tensor | None
    beside: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Fresh:
    """`new` is a product of layers: `old` is the consumer's weight, `bias` its bias as it was before."""

    old: Tensor
    new: Tensor
    bias: Tensor | None
    input_power: Tensor
    feature_power: float

    def seed(self, key: str, value: Tensor, bias_value: Tensor | None) -> Tensor:
        """A state tensor of the product: zero, or the independence estimate of a second moment."""
        fresh = torch.zeros_like(self.new, dtype=value.dtype, device=value.device)
        if key not in _SECOND:
            return fresh
        power = self.input_power.to(device=value.device, dtype=torch.float64)
        if key in _ROOT:
            square = self.seed("exp_avg_sq", value.square(), None if bias_value is None else bias_value.square())
            return square.sqrt()
        if bias_value is not None:
            error = bias_value.double()
        else:
            error = value.double().mean(dim=1) / max(self.feature_power, torch.finfo(torch.float32).tiny)
        return torch.outer(error, power).to(value.dtype)


ParameterMove = Sliced | Whole | Fresh


def remap_optimizers(
    optimizers: Iterable[torch.optim.Optimizer], moves: Iterable[ParameterMove], *, anew: bool = False
) -> None:
    """Let optimizers hold the new parameters in the places of the old ones, with their state.

    Objects, groups, their order and hyper-parameters stay; a group may become empty. A parameter that no optimizer
    holds is passed over. Flat states (LBFGS) are cleared, because they mix all parameters.

    Args:
        optimizers: edited in place.
        moves: where every parameter went.
        anew: whether the state of the new parameters begins anew, as in a new optimizer; else it is carried over.
    """
    moves = list(moves)
    for optimizer in optimizers:
        for move in moves:
            _remap(optimizer, move)
            if anew and move.new is not None:
                optimizer.state.pop(move.new, None)
        if moves:
            clear_flat_state(optimizer)


def clear_flat_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer whose state mixes all parameters in flat vectors (LBFGS) begin anew; others keep theirs."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        optimizer._params = optimizer.param_groups[0]["params"]  # its own list, another one after a load
        optimizer._numel_cache = None  # counts the old parameters


def _position(optimizer: torch.optim.Optimizer, parameter: Tensor | None) -> tuple[list[Tensor], int] | None:
    for group in optimizer.param_groups:
        for place, one in enumerate(group["params"]):
            if one is parameter:
                return group["params"], place
    return None


def _remap(optimizer: torch.optim.Optimizer, move: ParameterMove) -> None:
    if isinstance(move, Whole) and move.old is None:
        found = _position(optimizer, move.beside)
        if found is not None and move.new is not None:
            found[0].insert(found[1] + 1, move.new)
        return
    found = _position(optimizer, move.old)
    if found is None or move.old is None:
        return
    params, place = found
    state = optimizer.state.pop(move.old, None)
    if move.new is None:
        del params[place]
        return
    params[place] = move.new
    if state:
        optimizer.state[move.new] = _carry(optimizer, move, state)


def _carry(optimizer: torch.optim.Optimizer, move: ParameterMove, state: dict[str, object]) -> dict[str, object]:
    known = _FIRST | _SECOND | _STEPS if isinstance(move, Fresh) else _FIRST | _SECOND | _STEPS | _SIZES
    for key, value in state.items():
        if isinstance(value, Tensor) and value.numel() > 1:
            alike = value.shape == move.old.shape  # type: ignore[union-attr]  # old is set here
            if (alike and key not in known) or not (alike or isinstance(move, Whole)):
                return {}  # averages of weights, factored moments: without a map they start anew
    carried: dict[str, object] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.shape != move.old.shape or isinstance(move, Whole):  # type: ignore[union-attr]  # old is set here
            carried[key] = value
        elif isinstance(move, Sliced):
            # with a second moment beside it, momentum is a buffer of steps, not of gradients (RMSprop)
            carried[key] = move.carry("steps" if key == "momentum_buffer" and "square_avg" in state else key, value)
        else:
            bias_state = optimizer.state.get(move.bias, {}) if move.bias is not None else {}
            carried[key] = move.seed(key, value, bias_state.get(key))
    return carried
