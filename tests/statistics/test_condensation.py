"""Cosine groups: scipy and brute force as references."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fclusterdata

from lightning_embed.errors import InputError
from lightning_embed.statistics import (
    amplitudes,
    augmented_weights,
    condensation,
    cosine_groups,
    cosine_similarity,
    representatives,
    width_cosine,
)


def condensed(neurons=40, directions=5, noise=0.05, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(directions, 6, generator=generator, dtype=torch.float64)
    rows = base[torch.randint(directions, (neurons,), generator=generator)]
    rows = rows + noise * torch.randn(neurons, 6, generator=generator, dtype=torch.float64)
    signs = torch.randint(2, (neurons, 1), generator=generator) * 2 - 1
    return (rows * signs).to(dtype)


def greedy_complete_linkage(similarity, threshold):
    """Merge the two groups whose worst pair is best, while it reaches the threshold."""
    groups = [[i] for i in range(len(similarity))]
    while len(groups) > 1:
        worst = {
            (a, b): similarity[np.ix_(groups[a], groups[b])].min()
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        }
        (a, b), value = max(worst.items(), key=lambda item: item[1])
        if value < threshold:
            break
        groups[a] += groups.pop(b)
    return sorted(sorted(group) for group in groups)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_similarity_equals_numpy(dtype):
    vectors = condensed(dtype=dtype)
    x = vectors.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    result = cosine_similarity(vectors)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result.double().numpy() == pytest.approx(x @ x.T, abs=1e-6 if dtype != torch.float64 else 1e-14)
    torch.testing.assert_close(result, result.T, rtol=0, atol=1e-15 if dtype == torch.float64 else 1e-6)


def test_very_small_weights_have_a_direction():
    assert cosine_similarity(torch.eye(2) * 1e-30).tolist() == [[1, 0], [0, 1]]


@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.0, 0.5, 0.9, 0.99]), absolute=st.booleans())
def test_every_pair_in_a_group_is_similar_and_the_linkage_is_complete(seed, threshold, absolute):
    vectors = condensed(14, 3, 0.2, seed)
    similarity = cosine_similarity(vectors).numpy()
    similarity = np.abs(similarity) if absolute else similarity
    groups = cosine_groups(vectors, threshold, absolute=absolute)
    assert sorted(itertools.chain(*groups)) == list(range(14))
    assert [group[0] for group in groups] == sorted(min(group) for group in groups)
    for group in groups:
        assert similarity[np.ix_(group, group)].min() >= threshold - 1e-12
    assert groups == greedy_complete_linkage(similarity, threshold)
    assert groups == cosine_groups(vectors, threshold, absolute=absolute)


def test_equals_scipy():
    vectors = condensed()
    labels = fclusterdata(vectors.numpy(), 0.1, "distance", metric="cosine", method="complete")
    expected = sorted([np.flatnonzero(labels == label).tolist() for label in set(labels)])
    assert cosine_groups(vectors, 0.9) == expected
    assert width_cosine(vectors, 0.9) == len(expected)
    assert width_cosine(vectors, 0.9, absolute=True) == 5


def test_no_chain_joins_distant_directions():
    angles = torch.arange(10) * 0.2  # neighbours at cosine 0.98, ends at -0.2
    groups = cosine_groups(torch.stack([angles.cos(), angles.sin()], dim=1), 0.9)
    assert max(len(group) for group in groups) <= 3


@pytest.fixture
def narrow(monkeypatch):
    """Sizes at which few neurons are many."""
    monkeypatch.setattr(condensation, "WHOLE", 30)
    monkeypatch.setattr(condensation, "BLOCK", 5)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_in_parts_the_groups_are_those_of_all_at_once(narrow, seed, absolute, dtype):
    vectors = condensed(neurons=60, directions=12, noise=0.4, seed=seed, dtype=dtype)
    rows = condensation._directions(vectors)
    assert 1 < max(len(part) for part in condensation._parts(rows, 0.9, absolute)) <= 30
    assert cosine_groups(vectors, 0.9, absolute=absolute) == condensation._linked(rows, 0.9, absolute)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("noise", "threshold"), [(0.01, 0.9), (0.5, 0.3), (2.0, 0.0)])
def test_in_a_part_that_is_too_large_every_two_members_of_a_group_are_similar(narrow, noise, threshold, absolute):
    vectors = condensed(neurons=100, directions=3, noise=noise)
    groups = cosine_groups(vectors, threshold, absolute=absolute)
    assert groups == cosine_groups(vectors, threshold, absolute=absolute)
    assert sorted(itertools.chain(*groups)) == list(range(100))
    assert groups == sorted(groups)
    similarity = cosine_similarity(vectors)
    similarity = similarity.abs() if absolute else similarity
    assert min(similarity[i, j] for group in groups for i in group for j in group) >= threshold
    if noise == 0.01:  # three directions far apart, with either sign
        assert len(groups) == (3 if absolute else 6)


def slowly_in_turn(similarity, threshold):
    groups = []
    for neuron in range(len(similarity)):
        worst = [min(similarity[neuron, one] for one in group) for group in groups]
        if worst and max(worst) >= threshold:
            groups[worst.index(max(worst))].append(neuron)
        else:
            groups.append([neuron])
    return groups


def test_neurons_in_turn_join_the_group_in_which_their_smallest_similarity_is_largest(narrow):
    vectors = condensed(neurons=100, directions=3, noise=0.5)
    rows = condensation._directions(vectors)
    assert condensation._in_turn(rows, 0.4, False) == slowly_in_turn(cosine_similarity(vectors), 0.4)


@pytest.mark.parametrize("directions", [1, 40])
def test_beyond_8192_neurons(directions):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(directions, 8, generator=generator)
    index = torch.randint(directions, (9000,), generator=generator)
    vectors = base[index] + 0.01 * torch.randn(9000, 8, generator=generator)
    groups = cosine_groups(vectors, 0.97)
    assert groups == sorted(torch.nonzero(index == one).flatten().tolist() for one in range(directions))


def test_scaling_changes_nothing():
    vectors = condensed()
    scale = torch.linspace(0.1, 9, 40, dtype=torch.float64)[:, None]
    assert cosine_groups(vectors * scale, 0.9) == cosine_groups(vectors, 0.9)
    assert cosine_groups(vectors * -scale, 0.9, absolute=True) == cosine_groups(vectors, 0.9, absolute=True)


def test_vectors_without_direction_are_alone():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [torch.nan, 1.0], [2.0, 0.0], [0.0, 0.0]])
    assert cosine_groups(vectors, 0.0) == [[0], [1, 3], [2], [4]]
    assert cosine_groups(torch.zeros(2, 3), 0.5) == [[0], [1]]
    assert cosine_groups(torch.ones(1, 3), 0.5) == [[0]]


def test_amplitudes_and_representatives():
    weight, bias, w_out = torch.randn(4, 3), torch.randn(4), torch.randn(2, 4)
    augmented = augmented_weights(weight, bias)
    assert torch.equal(augmented, torch.cat([weight, bias[:, None]], 1))
    assert augmented_weights(weight).data_ptr() != weight.data_ptr()
    size = amplitudes(augmented, w_out)
    torch.testing.assert_close(size, (weight.square().sum(1) + bias.square()).sqrt() * w_out.square().sum(0).sqrt())
    torch.testing.assert_close(amplitudes(augmented * 3, w_out / 3), size)
    assert representatives([[0, 1, 3], [2]], torch.tensor([1.0, 2.0, 0.0, 2.0])) == [1, 2]


def test_refusals():
    vectors = condensed()
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="`threshold`"):
            cosine_groups(vectors, threshold)
    for wrong in (torch.ones(3), torch.ones(3, 2).long()):
        with pytest.raises(InputError, match="`vectors`"):
            cosine_groups(wrong, 0.9)
    with pytest.raises(InputError, match="`weight`"):
        augmented_weights(torch.ones(3))
    with pytest.raises(InputError, match="`bias`"):
        augmented_weights(torch.ones(3, 2), torch.ones(2))
    with pytest.raises(InputError, match="`w_out`"):
        amplitudes(torch.ones(3, 2), torch.ones(2, 4))
    with pytest.raises(InputError, match="`groups`"):
        representatives([[5]], torch.ones(3))


def test_of_several_layers_the_smallest_similarity_counts_and_that_of_all_together():
    gate = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [4.0, 0.0]])
    value = torch.tensor([[0.0, 2.0], [0.0, 4.0], [0.0, 2.0], [0.0, 2.0]])
    assert cosine_groups([gate, gate], 0.9) == cosine_groups(gate, 0.9) == [[0, 1, 3], [2]]
    assert cosine_groups([gate, value], 0.94) == [[0, 1], [2], [3]]  # together 2 of [1, 2] and 3 of [4, 2] lie apart
    with pytest.raises(InputError, match="they must be the same"):
        cosine_groups([gate, value[:2]], 0.9)
