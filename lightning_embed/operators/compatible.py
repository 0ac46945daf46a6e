"""The general compatible embedding of a network into a wider one, and its composition.

Every embedding in width, one-step or not, is a value of `Embedding`: apply it to θ, compose it, or read off its
affine form. A splitting undone is `merge_neurons`, a null neuron dropped is `drop_null_neurons`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators import _checks as checks
from lightning_embed.operators.theta import Activation, Theta, to_vector, widths_of

NULL = -1
"""What an index mapping gives for a null neuron (0 in 001, where neurons count from 1)."""

IndexMap = tuple[tuple[int, ...], ...]


class AffineForm(NamedTuple):
    """An embedding as matrices: vec T(θ) = A vec θ + c, and ∇R(T(θ)) = B ∇R(θ).

    For M parameters and M' of the wider network A and B have shape (M', M), c has (M',). Always AᵀB = I, and
    with the gradients' equation at every θ comes H(T(θ)) A = B H(θ) for the Hessians.
    """

    A: Tensor
    c: Tensor
    B: Tensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """A general compatible embedding T of networks of one shape into those of a wider shape (001, Def. 5.2).

    T(θ) has the weights αˡ ∘ [Wˡ at (I_l(i), I_{l-1}(j))], an entry beside a null neuron being αˡ alone, and the
    biases α_bˡ + bˡ at I_l(i), that of a null neuron being α_bˡ alone. Make it by `compatible_embedding`, which
    checks it, or by one of the functions for special cases.

    Preserved, for every θ, data, loss and activation (with null neurons: that activation): the output for every
    input, the spans of the features and the constant in every layer, criticality (001, Thm. 5.1); the numbers of
    positive, zero and negative Hessian eigenvalues never decrease (001, Thm. 6.2).

    Attributes:
        index: The total index mapping I_0, …, I_L: for every neuron of the wide network the neuron of the narrow one
            that it copies, or `NULL`. I_0 and I_L are identities.
        alpha: α¹, …, αᴸ, float64, shapes (m'_l, m'_{l-1}).
        alpha_bias: α_b¹, …, α_bᴸ, float64, shapes (m'_l,).
        beta: β⁰, …, βᴸ, float64, shapes (m'_l,): the error of a copy is β times that of its original; 0 at null
            neurons, whose error vanishes.
        effective_biases: b_*⁰, …, b_*ᴸ, float64, shapes (m'_l,): what arrives at a null neuron; 0 at the others.
        values: σ(b_*), the constants that the null neurons compute; 0 at the others.
    """

    index: IndexMap
    alpha: tuple[Tensor, ...]
    alpha_bias: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]
    effective_biases: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def narrow(self) -> tuple[int, ...]:
        """The widths (m_0, …, m_L) that it takes."""
        return tuple(max(layer) + 1 for layer in self.index)

    @property
    def wide(self) -> tuple[int, ...]:
        """The widths (m'_0, …, m'_L) that it gives."""
        return tuple(len(layer) for layer in self.index)

    def __call__(self, theta: Theta) -> Theta:
        """Embed parameters.

        Args:
            theta: The narrow network's parameters.

        Returns:
            T(θ): new tensors of the types and on the devices of those of θ. Differentiable.

        Raises:
            InputError: If θ has other widths than this embedding takes.
        """
        if widths_of(theta) != self.narrow:
            raise InputError(f"the embedding takes theta of widths {self.narrow}, not {widths_of(theta)}")
        copies = [membership(layer) for layer in self.index]
        embedded = []
        for (weight, bias), alpha, alpha_bias, (before, after) in zip(
            theta, self.alpha, self.alpha_bias, pairwise(copies), strict=True
        ):
            original = after @ weight.cpu().double() @ before.T
            beside_null = 1 - torch.outer(after.sum(1), before.sum(1))
            embedded.append(
                (
                    checks.back("an embedded weight", alpha * (original + beside_null), weight),
                    checks.back("an embedded bias", alpha_bias + after @ bias.cpu().double(), bias),
                )
            )
        return tuple(embedded)

    def affine(self) -> AffineForm:
        """Give the matrices of vec T(θ) = A vec θ + c and ∇R(T(θ)) = B ∇R(θ) (001, Remark 4.1 and Thm. 5.1).

        B follows from 001, Lemma 5.1: the gradient of a weight between copies is β times that of the original
        weight; that of a weight from a null neuron of value v is β v times that of the original bias.

        Returns:
            (A, c, B), dense float64.
        """
        copies = [membership(layer) for layer in self.index]
        A, B = [], []
        for number, (before, after) in enumerate(pairwise(copies)):
            errors = self.beta[number + 1][:, None] * after
            A.append(torch.block_diag(self.alpha[number].flatten()[:, None] * torch.kron(after, before), after))
            weights = torch.kron(errors, torch.cat([before, self.values[number][:, None]], dim=1))
            B.append(_join(weights, errors, before.shape[1]))
        nothing = tuple(
            (torch.zeros(width, fan_in, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
            for fan_in, width in pairwise(self.narrow)
        )
        return AffineForm(torch.block_diag(*A), to_vector(self(nothing)), torch.block_diag(*B))


def _join(weights: Tensor, errors: Tensor, fan_in: int) -> Tensor:
    """Sort the columns of B of one layer: (neuron, input or bias) becomes all weights, then all biases."""
    width = errors.shape[1]
    split = weights.reshape(len(weights), width, fan_in + 1)
    upper = torch.cat([split[..., :fan_in].flatten(1), split[..., fan_in]], dim=1)
    lower = torch.cat([errors.new_zeros(len(errors), width * fan_in), errors], dim=1)
    return torch.cat([upper, lower])


def membership(layer: Sequence[int]) -> Tensor:
    """Write one layer's index mapping as the 0-1 matrix E, E[j, s] = 1 if neuron j copies s, with zero rows at nulls.

    Args:
        layer: I_l, with `NULL` for null neurons.

    Returns:
        A float64 matrix of shape (m'_l, m_l).

    Example:
        >>> membership((0, 1, 0, NULL)).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """
    index = torch.tensor(layer)
    return (index[:, None] == torch.arange(max(layer) + 1)).double()


def compatible_embedding(
    index: Sequence[Sequence[int]],
    alpha: Sequence[Tensor],
    beta: Sequence[Tensor],
    effective_biases: Sequence[Tensor] | None = None,
    activation: Activation | None = None,
    *,
    alpha_bias: Sequence[Tensor] | None = None,
) -> Embedding:
    """Make the general compatible embedding of an index mapping, α, β and effective biases (001, Def. 5.2).

    Condition I (001): with E_l the 0-1 matrix of I_l (see `membership`) and e_l = E_l 1 marking the effective neurons,

        forward   αˡ E_{l-1} = e_l 1ᵀ,        backward   (diag(βˡ) E_l)ᵀ αˡ = 1 (βˡ⁻¹)ᵀ,        βᴸ = 1.

    Condition II: αˡ σ(b_*ˡ⁻¹) + α_bˡ = b_*ˡ, where the values of effective neurons count as zero. It determines
    α_b. The paper also prints α_b = 0 at effective neurons; that holds only where the null neurons before add up to
    zero, and it is not needed: α_b corrects what they bring (001, Fig. 5.5).

    Args:
        index: I_0, …, I_L, total: every neuron of the narrow network has a copy; `NULL` marks null neurons. I_0 and
            I_L are identities.
        alpha: α¹, …, αᴸ, shapes (m'_l, m'_{l-1}), dimensionless; beside null neurons they are the weights themselves.
        beta: β⁰, …, βᴸ, shapes (m'_l,), 0 at null neurons.
        effective_biases: b_*⁰, …, b_*ᴸ, shapes (m'_l,), 0 at effective neurons; all zeros if None.
        activation: σ; needed if there are null neurons.
        alpha_bias: α_b¹, …, α_bᴸ, shapes (m'_l,), to be checked; if None, what condition II demands.

    Returns:
        The embedding.

    Raises:
        InputError: If the index mapping is not total, shapes do not agree, values are not finite, or a condition
            fails; the message names the condition, the layer and the neuron.

    Example:
        The only hidden neuron is split in the ratio 3 : 1.

        >>> index = [(0,), (0, 0), (0,)]
        >>> alpha = [torch.ones(2, 1), torch.tensor([[0.75, 0.25]])]
        >>> beta = [torch.ones(1), torch.tensor([0.75, 0.25]), torch.ones(1)]
        >>> wide = compatible_embedding(index, alpha, beta)(
        ...     ((torch.tensor([[2.0]]), torch.zeros(1)), (torch.tensor([[4.0]]), torch.ones(1)))
        ... )
        >>> [part.tolist() for layer in wide for part in layer]
        [[[2.0], [2.0]], [0.0, 0.0], [[3.0, 1.0]], [1.0]]
    """
    maps = check_index(index)
    sizes = [len(layer) for layer in maps]
    has_null = any(NULL in layer for layer in maps)
    if has_null and activation is None:
        raise InputError("activation is needed: the index mapping has null neurons, which compute σ(effective bias)")
    if effective_biases is None:
        effective_biases = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    for name, given, wanted in (
        ("alpha", alpha, len(maps) - 1),
        ("beta", beta, len(maps)),
        ("effective_biases", effective_biases, len(maps)),
        ("alpha_bias", alpha_bias, len(maps) - 1),
    ):
        if given is not None and len(given) != wanted:
            raise InputError(f"{name} must have {wanted} tensors for an index mapping of {len(maps)} layers")
    alpha = tuple(
        checks.matrix(f"alpha of layer {number}", one, rows=sizes[number], columns=sizes[number - 1]).cpu()
        for number, one in enumerate(alpha, start=1)
    )
    beta = _vectors("beta", beta, sizes)
    effective = _vectors("effective_biases", effective_biases, sizes)
    nulls = [torch.tensor([s == NULL for s in layer]) for layer in maps]
    values = tuple(
        torch.zeros_like(one) if activation is None or not null.any() else activation(one) * null
        for one, null in zip(effective, nulls, strict=True)
    )
    if alpha_bias is None:
        biases = tuple(b - a @ v for a, v, b in zip(alpha, values[:-1], effective[1:], strict=True))
    else:
        biases = _vectors("alpha_bias", alpha_bias, sizes[1:], first=1)
    embedding = Embedding(maps, alpha, biases, beta, effective, values)
    check_compatible(embedding)
    return embedding


def _vectors(name: str, given: Sequence[Tensor], sizes: Sequence[int], first: int = 0) -> tuple[Tensor, ...]:
    return tuple(
        checks.vector(f"{name} of layer {first + number}", one, size).cpu()
        for number, (one, size) in enumerate(zip(given, sizes, strict=True))
    )


def check_index(index: Sequence[Sequence[int]]) -> IndexMap:
    """Check that an index mapping is total (001, Def. 5.1).

    Args:
        index: I_0, …, I_L.

    Returns:
        The same as tuples.

    Raises:
        InputError: If there are fewer than two layers, I_0 or I_L is no identity, an entry is neither a neuron nor
            `NULL`, or a neuron of the narrow network has no copy.
    """
    maps = tuple(tuple(int(s) for s in layer) for layer in index)
    if len(maps) < 2:
        raise InputError("index must have a mapping for the input, every hidden layer and the output")
    for number, layer in enumerate(maps):
        outer = number in {0, len(maps) - 1}
        if outer and (not layer or layer != tuple(range(len(layer)))):
            raise InputError(f"index of layer {number} must be the identity (0, 1, …), not {layer}")
        missing = sorted(set(range(max(layer, default=NULL) + 1)) - set(layer))
        if not layer or max(layer) < 0 or min(layer) < NULL or missing:
            raise InputError(
                f"index of layer {number} must name neurons 0, 1, … without a gap, and {NULL} for null neurons, "
                f"not {layer}" + (f"; nothing copies {missing}" if missing else "")
            )
    return maps


def check_compatible(embedding: Embedding) -> None:
    """Check compatibility conditions I and II (001, Section 5; see `compatible_embedding`).

    Args:
        embedding: What to check.

    Raises:
        InputError: If a condition fails; the message names the condition, the layer and the neuron.
    """
    one = embedding
    copies = [membership(layer) for layer in one.index]
    marks = [each.sum(1) for each in copies]
    for number, (mark, beta, effective) in enumerate(zip(marks, one.beta, one.effective_biases, strict=True)):
        _demand(f"beta must be 0 at null neurons: layer {number}", beta * (1 - mark), torch.zeros_like(beta))
        _demand(f"effective_biases must be 0 at others: layer {number}", effective * mark, torch.zeros_like(beta))
    _demand(f"condition I (output): β of layer {len(copies) - 1}", one.beta[-1], torch.ones_like(one.beta[-1]))
    for number, (before, after) in enumerate(pairwise(copies), start=1):
        alpha, beta = one.alpha[number - 1], one.beta[number]
        forward = alpha @ before
        _demand(
            f"condition I (forward): into layer {number}",
            forward,
            marks[number][:, None].expand_as(forward),
            alpha.abs() @ before,
        )
        backward = alpha.T @ (beta[:, None] * after)
        _demand(
            f"condition I (backward): into layer {number - 1}",
            backward,
            one.beta[number - 1][:, None].expand_as(backward),
            alpha.T.abs() @ (beta.abs()[:, None] * after),
        )
        arriving = alpha @ one.values[number - 1] + one.alpha_bias[number - 1]
        _demand(
            f"condition II: into layer {number}",
            arriving,
            one.effective_biases[number],
            alpha.abs() @ one.values[number - 1].abs(),
        )


def _demand(what: str, found: Tensor, wanted: Tensor, terms: Tensor | None = None) -> None:
    """Refuse what differs beyond rounding; `terms` is how large the sum of absolute terms behind `found` is."""
    slack = 1e-6 if terms is None else 1e-6 * terms.clamp(min=1)
    wrong = ((found - wanted).abs() > slack).nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        summed = f", copies of neuron {place[1]}" if len(place) > 1 else ""
        at = tuple(place)
        raise InputError(f"{what}, neuron {place[0]}{summed}: {float(found[at])!r} must be {float(wanted[at])!r}")


def compose(*embeddings: Embedding) -> Embedding:
    """Compose embeddings, the first first: T_K ⋯ T_1 (001, Defs. 4.5 and 4.6).

    Args:
        *embeddings: At least one; each must take the widths that the one before gives.

    Returns:
        Their composition, itself a compatible embedding.

    Raises:
        InputError: If there is none, or widths do not agree.

    Example:
        >>> from lightning_embed.operators import splitting_embedding
        >>> twice = compose(splitting_embedding((1, 1, 1), 1, 0, 0.5), splitting_embedding((1, 2, 1), 1, 1, 0.5))
        >>> twice.index, twice.alpha[1].tolist()
        (((0,), (0, 0, 0), (0,)), [[0.5, 0.25, 0.25]])
    """
    if not embeddings:
        raise InputError("compose needs at least one embedding")
    return reduce(_after, embeddings)


def _after(first: Embedding, then: Embedding) -> Embedding:
    if first.wide != then.narrow:
        raise InputError(f"an embedding gives widths {first.wide}, but the next one takes {then.narrow}")
    copies = [membership(layer) for layer in then.index]
    marks = [one.sum(1) for one in copies]
    index = tuple(
        tuple(NULL if middle == NULL else inner[middle] for middle in outer)
        for inner, outer in zip(first.index, then.index, strict=True)
    )
    alpha = tuple(
        outer * (copies[n + 1] @ inner @ copies[n].T + 1 - torch.outer(marks[n + 1], marks[n]))
        for n, (inner, outer) in enumerate(zip(first.alpha, then.alpha, strict=True))
    )

    def carried(inner: tuple[Tensor, ...], outer: tuple[Tensor, ...], copies: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(o + c @ i for i, o, c in zip(inner, outer, copies, strict=True))

    return Embedding(
        index,
        alpha,
        carried(first.alpha_bias, then.alpha_bias, copies[1:]),
        tuple(o * (c @ i) for i, o, c in zip(first.beta, then.beta, copies, strict=True)),
        carried(first.effective_biases, then.effective_biases, copies),
        carried(first.values, then.values, copies),
    )
