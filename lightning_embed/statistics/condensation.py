"""Condensation: neurons whose input weights point in one direction."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError

WHOLE = 8192  # neurons that are linked at once: their pairs take a gigabyte and some seconds, growing quadratically
BLOCK = 256  # neurons that are compared with all others at a time
MARGIN = 1e-5  # more than the rounding of a cosine in single precision


def augmented_weights(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Input weights of every neuron with its bias as the last entry, [w, b].

    Args:
        weight: weight of the Linear that feeds the layer, shape (neurons, fan_in).
        bias: its bias, shape (neurons,), or None.

    Returns:
        A detached tensor of shape (neurons, fan_in + 1), or (neurons, fan_in) without a bias.

    Raises:
        InputError: the shapes do not fit.

    >>> augmented_weights(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
    tensor([[1., 2., 3.]])
    """
    if weight.ndim != 2:
        raise InputError(f"`weight` has shape {tuple(weight.shape)}, expected (neurons, fan_in).")
    if bias is None:
        return weight.detach().clone()
    if bias.shape != weight.shape[:1]:
        raise InputError(f"`bias` has shape {tuple(bias.shape)}, expected ({weight.shape[0]},).")
    return torch.cat([weight.detach(), bias.detach()[:, None]], dim=1)


def cosine_similarity(vectors: Tensor) -> Tensor:
    r"""Cosine of the angle between every two rows.

    $c_{ij} = \langle v_i, v_j\rangle / (\|v_i\| \|v_j\|)$, with the augmented input weights as rows the
    orientation similarity of 004, Fig. 5 (b). It does not change when a row is scaled by a positive number.

    Args:
        vectors: shape (neurons, entries), any floating dtype.

    Returns:
        Matrix (neurons, neurons) in [-1, 1], symmetric up to rounding; float64 for float64 rows, else
        float32. Rows and columns of zero or non-finite vectors are NaN: they have no direction.

    Raises:
        InputError: not a floating matrix.

    >>> cosine_similarity(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]]))
    tensor([[ 1., -1., nan],
            [-1.,  1., nan],
            [nan, nan, nan]])
    """
    directions = _directions(vectors)
    return (directions @ directions.T).clamp(-1.0, 1.0)


def _directions(vectors: Tensor) -> Tensor:
    """Rows of length one; NaN where a row has no direction."""
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise InputError(
            f"`vectors` is {vectors.dtype} of shape {tuple(vectors.shape)}, expected a floating (neurons, entries)."
        )
    rows: Tensor = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
    # First to unit maximum: squares of very small weights would vanish.
    rows = rows / rows.abs().amax(dim=1, keepdim=True)
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows


def cosine_groups(vectors: Tensor | Sequence[Tensor], threshold: float, *, absolute: bool = False) -> list[list[int]]:
    r"""Group neurons whose vectors all point in one direction.

    Complete linkage on $1 - c_{ij}$ cut at $1 -$ threshold: every two members of a group have
    $c_{ij} \ge$ threshold, so no chain of small angles joins distant directions. Groups of neurons with
    similar orientation are what a neuron-splitting embedding leaves (004, Sec. 5 and Fig. 5). The grouping
    does not change when a row is scaled by a positive number (with `absolute`, by any but 0).

    It works in blocks: memory grows linearly with the number of neurons, time with its square. First come the
    sets between which nothing is similar (the connected components of $c_{ij} \ge$ threshold); no group reaches
    beyond one, so that linking each by itself gives the groups of all at once. In a set of more than 8192 neurons,
    as under strong condensation, neuron after neuron joins the group in which its smallest similarity is
    largest, if that reaches the threshold, and begins a group of its own otherwise: every two members are
    similar then too, but there may be more groups than linkage would find.

    Where several layers make one neuron (a gate and what it gates), the similarity of two neurons is the smallest of
    those in each layer and in all of them together.

    Args:
        vectors: augmented input weights, shape (neurons, entries); of several layers one each.
        threshold: smallest similarity within a group, in [0, 1]. At 1, rounding decides.
        absolute: compare $|c_{ij}|$ instead, for odd activations, whose neurons -v and v are one feature.

    Returns:
        Lists of neuron numbers, each ascending, ordered by their smallest member; together they hold every
        neuron once. A zero or non-finite vector has no direction and is alone.

    Raises:
        InputError: the threshold is outside [0, 1], or not a floating matrix.

    >>> cosine_groups(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [-1.0, 0.0]]), 0.9)
    [[0, 2], [1], [3]]
    >>> cosine_groups(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [-1.0, 0.0]]), 0.9, absolute=True)
    [[0, 2, 3], [1]]
    """
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"`threshold` is {threshold}; a similarity between 0 and 1 is needed.")
    rows = _directions(vectors) if isinstance(vectors, Tensor) else _several_directions(vectors)
    directed = torch.isfinite(rows.flatten(1)).all(dim=1)
    numbers = torch.nonzero(directed).flatten()
    groups = [[neuron] for neuron in torch.nonzero(~directed).flatten().tolist()]
    for part in _parts(rows[numbers], threshold, absolute):
        members = numbers[part].tolist()
        if len(members) == 1:
            groups.append(members)
            continue
        group = _linked if len(part) <= WHOLE else _in_turn
        groups += [[members[at] for at in one] for one in group(rows[members], threshold, absolute)]
    return sorted(groups)


def _several_directions(vectors: Sequence[Tensor]) -> Tensor:
    """Directions in each layer and in all together, shape (neurons, layers + 1, entries), padded with zeros."""
    if len({len(one) for one in vectors}) != 1:
        raise InputError(f"`vectors` are of {[len(one) for one in vectors]} neurons; they must be the same.")
    whole = torch.cat([one.detach() for one in vectors], dim=1)
    if len(vectors) == 1:
        return _directions(whole)
    padded = [nn.functional.pad(_directions(one), (0, whole.shape[1] - one.shape[1])) for one in (*vectors, whole)]
    return torch.stack(padded, dim=1)


def _similarity(rows: Tensor, others: Tensor, absolute: bool) -> Tensor:
    if rows.dim() == 3:  # of several layers: the smallest counts
        pairs = zip(rows.unbind(1), others.unbind(1), strict=True)
        return torch.stack([_similarity(row, other, absolute) for row, other in pairs]).amin(dim=0)
    cosine = (rows @ others.T).clamp(-1.0, 1.0)
    return cosine.abs() if absolute else cosine


def _parts(rows: Tensor, threshold: float, absolute: bool) -> list[Tensor]:
    """Sets of rows such that any two of different sets are less similar than the threshold.

    They are the connected components of what is similar; a group of complete linkage never reaches beyond one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, rows = len(rows), rows.float()
    label = np.arange(count, dtype=np.int64)
    for begin in range(0, count, BLOCK):
        similar = _similarity(rows[begin : begin + BLOCK], rows[begin:], absolute) >= threshold - MARGIN
        known = torch.from_numpy(label[begin:]).to(rows.device)
        similar &= known[: len(similar), None] != known
        one, other = (at.cpu().numpy() + begin for at in torch.nonzero(similar, as_tuple=True))
        edges = coo_array((np.ones(len(one), dtype=bool), (label[one], label[other])), shape=(count, count))
        label = connected_components(edges, directed=False)[1].astype(np.int64)[label]
    order = torch.from_numpy(np.argsort(label, kind="stable")).to(rows.device)
    return list(order.split(np.unique(label, return_counts=True)[1].tolist()))


def _linked(rows: Tensor, threshold: float, absolute: bool) -> list[list[int]]:
    """Complete linkage of all rows at once."""
    from scipy.cluster.hierarchy import fcluster, linkage  # takes half a second to import
    from scipy.spatial.distance import squareform

    distances = squareform(1.0 - _similarity(rows, rows, absolute).double().cpu().numpy(), checks=False)
    return _by_label(fcluster(linkage(distances, "complete"), 1.0 - threshold, "distance").tolist())


def _in_turn(rows: Tensor, threshold: float, absolute: bool) -> list[list[int]]:
    """Row after row joins the group in which its worst similarity is best, if that reaches the threshold."""
    label: list[int] = []
    groups = 0
    for begin in range(0, len(rows), BLOCK):
        block = rows[begin : begin + BLOCK]
        similarity = _similarity(block, rows[: begin + BLOCK], absolute)
        worst = similarity.new_full((len(block), groups + len(block)), 2.0)
        index = torch.tensor(label, dtype=torch.long, device=rows.device).expand(len(block), -1)
        worst.scatter_reduce_(1, index, similarity[:, :begin], "amin")
        for at in range(len(block)):
            best = int(worst[at, :groups].argmax()) if groups else 0
            if not groups or worst[at, best] < threshold:
                best, groups = groups, groups + 1
            label.append(best)
            torch.minimum(worst[:, best], similarity[:, begin + at], out=worst[:, best])
    return _by_label(label)


def _by_label(labels: Sequence[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for at, label in enumerate(labels):
        groups.setdefault(label, []).append(at)
    return list(groups.values())


def width_cosine(vectors: Tensor, threshold: float, *, absolute: bool = False) -> int:
    """Number of neurons that the cosine criterion would keep: one of each group of `cosine_groups`.

    Args:
        vectors: augmented input weights, shape (neurons, entries).
        threshold: smallest similarity within a group, in [0, 1].
        absolute: compare absolute values, for odd activations.

    Returns:
        The number of groups; neurons without a direction count one each.

    Raises:
        InputError: as `cosine_groups`.

    >>> width_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), 0.9)
    2
    """
    return len(cosine_groups(vectors, threshold, absolute=absolute))


def amplitudes(w_in_augmented: Tensor, w_out: Tensor) -> Tensor:
    r"""Amplitude of every neuron: norm of its input weights times norm of its output weights.

    $\|[w_j, b_j]\|_2 \, \|a_j\|_2$ (the amplitude of 004, Fig. 5). For a positively homogeneous activation
    it does not change when $[w_j, b_j]$ is scaled by β > 0 and $a_j$ by 1/β.

    Args:
        w_in_augmented: shape (neurons, fan_in + 1), see `augmented_weights`.
        w_out: weights of the consumers, stacked, shape (outputs, neurons).

    Returns:
        Shape (neurons,), at least float32.

    Raises:
        InputError: the numbers of neurons differ.

    >>> amplitudes(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]))
    tensor([10.])
    """
    if w_in_augmented.ndim != 2 or w_out.ndim != 2 or w_in_augmented.shape[0] != w_out.shape[1]:
        raise InputError(
            f"`w_in_augmented` {tuple(w_in_augmented.shape)} and `w_out` {tuple(w_out.shape)} do not fit; "
            "expected (neurons, fan_in + 1) and (outputs, neurons)."
        )
    dtype = torch.promote_types(w_in_augmented.dtype, torch.float32)
    norm_in: Tensor = torch.linalg.vector_norm(w_in_augmented.detach(), dim=1, dtype=dtype)
    norm_out: Tensor = torch.linalg.vector_norm(w_out.detach(), dim=0, dtype=dtype)
    return norm_in * norm_out


def representatives(groups: Sequence[Sequence[int]], amplitude: Tensor) -> list[int]:
    """Choose the member of largest amplitude from every group.

    Args:
        groups: lists of neuron numbers (`cosine_groups`).
        amplitude: shape (neurons,) (`amplitudes`).

    Returns:
        One neuron number a group, in the groups' order; of equals the smallest.

    Raises:
        InputError: a group is empty or names a neuron that has no amplitude.

    >>> representatives([[0, 2], [1]], torch.tensor([1.0, 0.5, 3.0]))
    [2, 1]
    """
    sizes = amplitude.tolist()
    for group in groups:
        if not group or min(group) < 0 or max(group) >= len(sizes):
            raise InputError(f"`groups` holds {list(group)}; give neuron numbers from 0 to {len(sizes) - 1}.")
    return [min(group, key=lambda neuron: (-sizes[neuron], neuron)) for group in groups]
