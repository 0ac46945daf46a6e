"""Named embeddings, and the family of all compatible embeddings of one index mapping: draw from it, measure it."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators.compatible import (
    NULL,
    Embedding,
    IndexMap,
    check_index,
    compatible_embedding,
    membership,
)
from lightning_embed.operators.theta import Activation, Theta, to_vector


def splitting_embedding(widths: Sequence[int], layer: int, neuron: int, alpha: float) -> Embedding:
    """Give the one-step splitting T^α_{l,s} = T_{l,s} + α V_{l,s} (001, Def. 4.4; 004, Def. 5).

    Neuron s of layer l keeps the share 1 - α of its output weights; a copy with the share α is appended.
    `split_neuron` does the same to the tensors of a single layer.

    Args:
        widths: (m_0, …, m_L) of the networks to embed.
        layer: l, in 1..L-1.
        neuron: s, in 0..m_l-1.
        alpha: α, any finite number, dimensionless.

    Returns:
        The embedding into networks of one more neuron in layer l; what it preserves says `Embedding`.

    Raises:
        InputError: If there is no such hidden layer or neuron, or α is not finite.

    Example:
        >>> split = splitting_embedding((1, 2, 1), layer=1, neuron=0, alpha=0.25)
        >>> split.index[1], split.alpha[1].tolist(), split.beta[1].tolist()
        ((0, 1, 0), [[0.75, 1.0, 0.25]], [0.75, 1.0, 0.25])
    """
    index = _identity(widths, layer)
    if neuron not in index[layer]:
        raise InputError(f"neuron must be in 0..{widths[layer] - 1}, not {neuron}")
    if not math.isfinite(alpha):
        raise InputError(f"alpha must be finite, not {alpha}")
    beta = torch.ones(widths[layer] + 1, dtype=torch.float64)
    beta[neuron], beta[-1] = 1 - alpha, alpha
    return _with_output_shares((*index[:layer], (*index[layer], neuron), *index[layer + 1 :]), {layer: beta})


def null_embedding(widths: Sequence[int], layer: int, bias: float, activation: Activation) -> Embedding:
    """Give the one-step null embedding T^α_{l,0} = T_{l,0} + α V_{l,0} (001, Def. 4.3).

    A neuron of zero input and output weights and the bias α is appended to layer l. `add_null_neurons` does the
    same, and more, to the tensors of a single layer.

    Args:
        widths: (m_0, …, m_L) of the networks to embed.
        layer: l, in 1..L-1.
        bias: α, any finite number.
        activation: σ; only the gradient of the new output weights depends on it.

    Returns:
        The embedding into networks of one more neuron in layer l; what it preserves says `Embedding`.

    Raises:
        InputError: If there is no such hidden layer, or the bias is not finite.

    Example:
        >>> null = null_embedding((1, 1, 1), layer=1, bias=0.5, activation=torch.relu)
        >>> null.index[1], null.alpha[1].tolist(), null.values[1].tolist()
        ((0, -1), [[1.0, 0.0]], [0.0, 0.5])
    """
    index = _identity(widths, layer)
    biases = [torch.zeros(width, dtype=torch.float64) for width in widths]
    biases[layer] = torch.tensor([0.0] * widths[layer] + [bias], dtype=torch.float64)
    return _with_output_shares((*index[:layer], (*index[layer], NULL), *index[layer + 1 :]), {}, biases, activation)


def global_splitting(widths: Sequence[int]) -> Embedding:
    """Give the three-fold global splitting (001, Example 5.1): three networks side by side, the last subtracted.

    Args:
        widths: (m_0, …, m_L) of the networks to embed.

    Returns:
        The embedding into networks with three times as many neurons in every hidden layer; β is (1, 1, -1).

    Raises:
        InputError: If there is no hidden layer.

    Example:
        >>> global_splitting((1, 1, 1)).alpha[1].tolist()
        [[1.0, 1.0, -1.0]]
    """
    _identity(widths, 1)
    sign = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    index = [tuple(range(width)) * (3 if 0 < number < len(widths) - 1 else 1) for number, width in enumerate(widths)]
    beta = [
        sign.repeat_interleave(width) if 0 < number < len(widths) - 1 else torch.ones(width, dtype=torch.float64)
        for number, width in enumerate(widths)
    ]
    alpha = [torch.ones(3 * widths[1], widths[0], dtype=torch.float64)]
    alpha += [
        torch.block_diag(*[torch.ones(width, fan_in, dtype=torch.float64)] * 3)
        for fan_in, width in pairwise(widths[1:-1])
    ]
    alpha.append(beta[-2].expand(widths[-1], -1))
    return compatible_embedding(index, alpha, beta)


def global_null(widths: Sequence[int], biases: Sequence[Tensor], activation: Activation) -> Embedding:
    """Give the two-fold global null embedding (001, Example 5.2): as many null neurons as neurons, with no weights.

    Args:
        widths: (m_0, …, m_L) of the networks to embed.
        biases: The null neurons' biases b_**, one tensor of shape (m_l,) for every hidden layer.
        activation: σ.

    Returns:
        The embedding into networks with twice as many neurons in every hidden layer.

    Raises:
        InputError: If there is no hidden layer, or the biases do not fit.

    Example:
        >>> null = global_null((1, 1, 1), [torch.ones(1)], torch.tanh)
        >>> null.index, [part.tolist() for part in null.alpha]
        (((0,), (0, -1), (0,)), [[[1.0], [0.0]], [[1.0, 0.0]]])
    """
    _identity(widths, 1)
    if [tuple(one.shape) for one in biases] != [(width,) for width in widths[1:-1]]:
        raise InputError(f"biases must be one tensor for every hidden layer, of the sizes {tuple(widths[1:-1])}")
    index = [
        (*range(width), *[NULL] * (width if 0 < number < len(widths) - 1 else 0)) for number, width in enumerate(widths)
    ]
    outer = [torch.zeros(width, dtype=torch.float64) for width in (widths[0], widths[-1])]
    effective = [outer[0], *[torch.cat([torch.zeros_like(one), one]).double() for one in biases], outer[1]]
    return _with_output_shares(tuple(index), {}, effective, activation)


def _identity(widths: Sequence[int], layer: int) -> IndexMap:
    if not 0 < layer < len(widths) - 1:
        raise InputError(f"layer must be a hidden layer, in 1..{len(widths) - 2}, not {layer}")
    return tuple(tuple(range(width)) for width in widths)


def _with_output_shares(
    index: IndexMap,
    beta: dict[int, Tensor],
    effective_biases: Sequence[Tensor] | None = None,
    activation: Activation | None = None,
) -> Embedding:
    """Let every copy pass its share β of the original's output weights to each neuron that reads it."""
    marks = [membership(layer).sum(1) for layer in index]
    shares = [beta.get(number, mark) for number, mark in enumerate(marks)]
    alpha = [torch.outer(mark, share) for share, mark in zip(shares[:-1], marks[1:], strict=True)]
    return compatible_embedding(index, alpha, shares, effective_biases, activation)


def family_member(
    index: Sequence[Sequence[int]],
    shares: Sequence[Tensor],
    free: Sequence[Tensor],
    effective_biases: Sequence[Tensor],
    activation: Activation | None = None,
) -> Embedding:
    """Give the member of an index mapping's family of compatible embeddings at given free coordinates.

    All solutions of condition I (see `compatible_embedding`) are, with P_l = I - E_l (diag(βˡ) E_l)ᵀ,

        βˡ = sˡ corrected by a constant in every class of copies so that it sums to 1 there,
        αˡ = e_l (βˡ⁻¹)ᵀ + P_l Gˡ P_{l-1}    for any s and G,

    because (diag(βˡ) E_l)ᵀ P_l = 0 and P_{l-1} E_{l-1} = 0; condition II then determines α_b.

    Args:
        index: I_0, …, I_L, total.
        shares: s⁰, …, sᴸ, shapes (m'_l,).
        free: G¹, …, Gᴸ, shapes (m'_l, m'_{l-1}).
        effective_biases: b_*⁰, …, b_*ᴸ, shapes (m'_l,); entries at effective neurons are not read.
        activation: σ; needed if there are null neurons.

    Returns:
        The embedding; differentiable with respect to the coordinates.

    Raises:
        InputError: If the index mapping is not total, or shapes do not agree.

    Example:
        >>> zero = [torch.zeros(size, dtype=torch.float64) for size in (1, 2, 1)]
        >>> free = [torch.zeros(2, 1), torch.zeros(1, 2)]
        >>> family_member([(0,), (0, 0), (0,)], zero, free, zero).alpha[1].tolist()
        [[0.5, 0.5]]
    """
    maps = check_index(index)
    copies = [membership(layer) for layer in maps]
    marks = [one.sum(1) for one in copies]
    beta = [
        mark * share + one @ ((1 - one.T @ share) / one.sum(0))
        for mark, share, one in zip(marks, shares, copies, strict=True)
    ]
    projections = [
        torch.eye(len(one), dtype=torch.float64) - one @ (share[:, None] * one).T
        for share, one in zip(beta, copies, strict=True)
    ]
    alpha = [
        torch.outer(marks[number], beta[number - 1]) + projections[number] @ one.double() @ projections[number - 1]
        for number, one in enumerate(free, start=1)
    ]
    effective = [one * (1 - mark) for one, mark in zip(effective_biases, marks, strict=True)]
    return compatible_embedding(maps, alpha, beta, effective, activation)


def random_embedding(
    index: Sequence[Sequence[int]], generator: torch.Generator, activation: Activation | None = None
) -> Embedding:
    """Draw a compatible embedding of any total index mapping; all free coordinates are standard normal.

    Args:
        index: I_0, …, I_L, total.
        generator: Source of the numbers, on the CPU.
        activation: σ; needed if there are null neurons.

    Returns:
        The embedding.

    Raises:
        InputError: If the index mapping is not total.

    Example:
        >>> index = [(0,), (0, 0, NULL), (0, NULL), (0,)]
        >>> drawn = random_embedding(index, torch.Generator().manual_seed(0), torch.tanh)
        >>> drawn.narrow, drawn.wide, round(float(drawn.beta[1].sum()), 9)
        ((1, 1, 1, 1), (1, 3, 2, 1), 1.0)
    """
    return family_member(index, *_normal_coordinates(check_index(index), generator), activation)


def _normal_coordinates(index: IndexMap, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    sizes = [len(layer) for layer in index]
    shares = [normal(size) for size in sizes]
    free = [normal(width, fan_in) for fan_in, width in pairwise(sizes)]
    return shares, free, [normal(size) for size in sizes]


def predicted_dimension(narrow: Sequence[int], wide: Sequence[int]) -> int:
    """Predict the dimension of the family of compatible embeddings: K + Σ_l K_l K_{l-1} (001, Section 6.1).

    K_l = m'_l - m_l neurons are added to layer l, K in all. It is the number of free coordinates of α, and for generic
    α and θ without vanishing weights the dimension of {T(θ)}; see `measured_dimension`.

    Args:
        narrow: (m_0, …, m_L).
        wide: (m'_0, …, m'_L).

    Returns:
        The dimension.

    Raises:
        InputError: If the second network is not wider than the first (001, Section 3).

    Example:
        >>> predicted_dimension((1, 2, 2, 1), (1, 3, 4, 1))
        5
    """
    added = [new - old for old, new in zip(narrow, wide, strict=False)]
    if len(narrow) != len(wide) or len(added) < 2 or added[0] or added[-1] or min(added) < 0:
        raise InputError(
            f"wide must have the depth, input and output of narrow and no fewer neurons, not {wide} for {narrow}"
        )
    return sum(added) + sum(left * right for left, right in pairwise(added))


def measured_dimension(
    index: Sequence[Sequence[int]],
    theta: Theta,
    generator: torch.Generator,
    activation: Activation | None = None,
) -> int:
    """Measure the dimension of {T(θ)} over all compatible embeddings T of an index mapping.

    It is the rank of the derivative of vec T(θ) with respect to the coordinates of `family_member`, at a random point.

    Args:
        index: I_0, …, I_L, total.
        theta: θ, of the narrow widths.
        generator: Draws the point.
        activation: σ; needed if there are null neurons.

    Returns:
        The rank; where θ has vanishing weights it falls below `predicted_dimension`.

    Raises:
        InputError: If the index mapping is not total or θ does not fit it.

    Example:
        Both copies of one hidden neuron share an output weight: one free number.

        >>> theta = ((torch.ones(1, 1), torch.ones(1)), (torch.ones(1, 1), torch.ones(1)))
        >>> measured_dimension([(0,), (0, 0), (0,)], theta, torch.Generator().manual_seed(0))
        1
    """
    maps = check_index(index)
    double = tuple((weight.detach().double(), bias.detach().double()) for weight, bias in theta)
    coordinates = _normal_coordinates(maps, generator)
    shapes = [one.shape for part in coordinates for one in part]
    sizes = [shape.numel() for shape in shapes]
    depth = len(maps)

    def embedded(vector: Tensor) -> Tensor:
        parts = [one.reshape(shape) for one, shape in zip(vector.split(sizes), shapes, strict=True)]
        shares, free, biases = parts[:depth], parts[depth : 2 * depth - 1], parts[2 * depth - 1 :]
        return to_vector(family_member(maps, shares, free, biases, activation)(double))

    point = torch.cat([one.flatten() for part in coordinates for one in part])
    jacobian = torch.autograd.functional.jacobian(embedded, point)
    assert isinstance(jacobian, Tensor)
    # β enters as a quotient of sums: the rounding of the derivative outweighs the default threshold.
    return int(torch.linalg.matrix_rank(jacobian, atol=1e-9 * float(to_vector(double).abs().max()), rtol=1e-9))
