"""Correlation and its minimum: scipy as reference, batches, ranks, undefined cases."""

import copy
import pickle

import pytest
import scipy.stats
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_embed.errors import InputError
from lightning_embed.statistics import (
    MinimalPearsonCorrelation,
    PrecisionWarning,
    minimal_pearson_correlation,
    pearson_correlation,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def layer(samples=200, neurons=5, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(samples, neurons, generator=generator) * torch.linspace(0.3, 2, neurons) + 0.2
    return pre.to(dtype), torch.tanh(pre).to(dtype)


def reference(pre, post):
    columns = zip(pre.double().T.numpy(), post.double().T.numpy(), strict=True)
    return torch.tensor([scipy.stats.pearsonr(x, y).statistic for x, y in columns], dtype=torch.float64)


# Three samples may correlate more closely than half precision resolves.
@pytest.mark.filterwarnings("ignore::lightning_embed.statistics.PrecisionWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [3, 200, 2000])
def test_equals_scipy(dtype, samples):
    pre, post = layer(samples, dtype=dtype)
    torch.testing.assert_close(pearson_correlation(pre, -post), reference(pre, -post), rtol=1e-11, atol=0)
    expected = reference(pre, post).abs().min()
    torch.testing.assert_close(minimal_pearson_correlation(pre, post), expected, rtol=1e-11, atol=0)


def test_shifts_scales_and_signs_do_not_matter():
    pre, post = layer(dtype=torch.float64)
    moved = minimal_pearson_correlation(3 * pre - 7, -0.1 * post + 5)
    torch.testing.assert_close(moved, minimal_pearson_correlation(pre, post), rtol=1e-12, atol=0)


def test_constant_neurons_are_left_out_of_the_minimum():
    pre, post = layer()
    dead = torch.zeros(200, 1)
    with_dead = minimal_pearson_correlation(torch.cat([pre, pre[:, :1]], 1), torch.cat([post, dead], 1))
    assert with_dead == minimal_pearson_correlation(pre, post)
    assert pearson_correlation(pre[:, :1], dead).isnan().all()


def test_undefined_is_nan():
    pre, post = layer()
    assert minimal_pearson_correlation(pre[:1], post[:1]).isnan()
    assert minimal_pearson_correlation(torch.ones(9, 2), torch.ones(9, 2)).isnan()
    assert minimal_pearson_correlation(pre[:, :0], post[:, :0]).isnan()
    post[3, 1] = torch.nan
    assert pearson_correlation(pre, post).isnan().tolist() == [False, True, False, False, False]
    assert minimal_pearson_correlation(pre, post).isnan()


def test_warns_exactly_where_the_dtype_does_not_carry_the_answer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    for mean in (0.0, 10.0, 100.0, 2000.0):  # pytest turns an unexpected warning into an error
        pearson_correlation((x + mean).float(), (2 * x + mean).float())
    with pytest.warns(PrecisionWarning, match="3 of 3 neurons"):
        pearson_correlation((x + 1e5).float(), (2 * x + 1e5).float())
    # bfloat16 shows a clear bend, not a slight one.
    pearson_correlation((x + 1).bfloat16(), torch.relu(x + 1).bfloat16())
    with pytest.warns(PrecisionWarning):
        pearson_correlation((x + 1).bfloat16(), (x + 2).bfloat16())


class TestMetric:
    def test_batches_of_any_size_give_the_value_of_all(self):
        pre, post = layer()
        metric = MinimalPearsonCorrelation()
        for start, end in ((0, 1), (1, 30), (30, 31), (31, 200)):
            metric.update(pre[start:end], post[start:end])
        torch.testing.assert_close(metric.compute(), minimal_pearson_correlation(pre, post), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("width", [None, 5])
    def test_forward_gives_the_batch_and_keeps_the_total(self, width):
        pre, post = layer()
        metric = MinimalPearsonCorrelation(width)
        for rows in (slice(0, 50), slice(50, 200)):
            assert metric(pre[rows], post[rows]) == minimal_pearson_correlation(pre[rows], post[rows])
        torch.testing.assert_close(metric.compute(), minimal_pearson_correlation(pre, post), rtol=1e-12, atol=0)

    def test_reset_pickle_and_copy(self):
        pre, post = layer()
        metric = MinimalPearsonCorrelation()
        metric.update(pre[:100], post[:100])
        for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
            other.update(pre[100:], post[100:])
            torch.testing.assert_close(other.compute(), minimal_pearson_correlation(pre, post), rtol=1e-12, atol=0)
        metric.reset()
        metric.update(pre[:, :2], post[:, :2])
        assert metric.compute() == minimal_pearson_correlation(pre[:, :2], post[:, :2])

    def test_simulated_ranks(self):
        pre, post = layer()
        ranks = [slice(0, 20), slice(20, 200)]

        def gather(state, group=None):
            states = []
            for rows in ranks:
                rank = MinimalPearsonCorrelation()
                rank.update(pre[rows], post[rows])
                states.append(rank.moments)
            return states

        metric = MinimalPearsonCorrelation(dist_sync_fn=gather, distributed_available_fn=lambda: True)
        metric.update(pre[:20], post[:20])
        torch.testing.assert_close(metric.compute(), minimal_pearson_correlation(pre, post), rtol=1e-12, atol=0)

    def test_nothing_seen_is_nan(self):
        for metric in (MinimalPearsonCorrelation(), MinimalPearsonCorrelation(3)):
            with pytest.warns(UserWarning, match="before the ``update``"):
                assert metric.compute().isnan()

    def test_refusals(self):
        with pytest.raises(InputError, match="`num_neurons` is 0"):
            MinimalPearsonCorrelation(0)
        with pytest.raises(InputError, match="`num_neurons` is 3"):
            MinimalPearsonCorrelation(3).update(*layer())
        metric = MinimalPearsonCorrelation()
        metric.update(*layer())
        with pytest.raises(InputError, match="2 neurons"):
            metric.update(*layer(neurons=2))
        torch.testing.assert_close(metric.compute(), minimal_pearson_correlation(*layer()))


def _rank(rank, world, file, shares, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    pre, post = layer()
    metric = MinimalPearsonCorrelation()
    rows = slice(*shares[rank])
    if rows.start < rows.stop:
        metric.update(pre[rows], post[rows])
    metric._update_count += 1  # a rank without data must not warn here
    results[rank] = metric.compute().item()
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [((0, 60), (60, 200)), ((0, 0), (0, 200))], ids=["uneven", "one idle"])
def test_two_processes(tmp_path, shares):
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(2, tmp_path / "store", shares, results), nprocs=2)
        expected = minimal_pearson_correlation(*layer()).item()
        assert dict(results) == pytest.approx({0: expected, 1: expected}, rel=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_device_agrees_with_cpu(dtype):
    pre, post = layer(3000, dtype=dtype)
    metric = MinimalPearsonCorrelation().cuda()
    metric.update(pre.cuda(), post.cuda())
    torch.testing.assert_close(metric.compute().cpu(), minimal_pearson_correlation(pre, post), rtol=1e-11, atol=0)
