"""Sufficient statistics of a hidden layer's pre and post: one pass, mergeable over batches and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_embed.errors import InputError

# Double-precision temporaries of this many elements stay in a core's cache; taken over whole batches the
# same sums are two to five times slower, and slower than single-precision products.
_CHUNK_ELEMENTS = 2**17


class PrecisionWarning(UserWarning):
    """The number format of the data cannot carry the statistic that was asked for."""


def check_pair(pre: Tensor, post: Tensor) -> None:
    """Refuse anything but two floating tensors of one shape (samples, neurons) with at least one sample."""
    for name, tensor in (("pre", pre), ("post", post)):
        if tensor.ndim != 2:
            raise InputError(
                f"`{name}` has shape {tuple(tensor.shape)}, expected (samples, neurons); "
                "flatten the other dimensions into samples."
            )
        if not tensor.is_floating_point():
            raise InputError(f"`{name}` has dtype {tensor.dtype}; convert it to a floating dtype.")
    if pre.shape != post.shape:
        raise InputError(
            f"`pre` has shape {tuple(pre.shape)} and `post` {tuple(post.shape)}; "
            "give the same samples and neurons of one layer in both."
        )
    if pre.shape[0] == 0:
        raise InputError("`pre` holds no samples; leave empty batches out.")


def _chunks(values: Tensor) -> Sequence[Tensor]:
    if values.device.type != "cpu":  # there the number of kernels counts, not the cache
        return (values,)
    chunks: Sequence[Tensor] = values.split(max(1, _CHUNK_ELEMENTS // max(1, values.shape[1])))
    return chunks


def _mean(values: Tensor) -> Tensor:
    """The mean of every column, in double precision, shape (neurons,)."""
    total = values.new_zeros(values.shape[1], dtype=torch.float64)
    for chunk in _chunks(values):
        total += chunk.sum(0, dtype=torch.float64)
    return total / len(values)


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Count, first and second moments of (pre, post), neuron by neuron.

    With the shifts $s, t$ (the means of the first batch, kept from then on) the sums are
    $\sum (x-s)$, $\sum (y-t)$, $\sum (x-s)^2$, $\sum (y-t)^2$, $\sum (x-s)(y-t)$ over the samples,
    $x$ = pre and $y$ = post of one neuron. They determine the Pearson correlation (000, eq. 5.1) and the
    least-squares line. All tensors have shape (neurons,) and dtype float64. Values that are not finite make
    the results of their own neuron NaN and no others.

    Attributes:
        count: number of samples.
        shift_pre: what was subtracted from pre.
        shift_post: what was subtracted from post.
        sum_pre: sum of the shifted pre.
        sum_post: sum of the shifted post.
        square_pre: sum of squares of the shifted pre.
        square_post: sum of squares of the shifted post.
        cross: sum of the products of shifted pre and post.
        resolution_pre: machine epsilon of the coarsest dtype in which pre was given.
        resolution_post: the same of post.

    >>> moments = Moments.of(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]]))
    >>> moments.mean_post.item(), moments.var_pre.item(), moments.covariance.item()
    (3.0, 1.0, 2.0)
    """

    count: int
    shift_pre: Tensor
    shift_post: Tensor
    sum_pre: Tensor
    sum_post: Tensor
    square_pre: Tensor
    square_post: Tensor
    cross: Tensor
    resolution_pre: float
    resolution_post: float

    @classmethod
    def of(cls, pre: Tensor, post: Tensor) -> "Moments":
        """Take the moments of one batch.

        Args:
            pre: input of the activation, shape (samples, neurons), any floating dtype.
            post: output of the activation, same shape.

        Returns:
            The moments, on the device of the data.

        Raises:
            InputError: the shapes differ or are not (samples, neurons), no sample, or not floating.
        """
        check_pair(pre, post)
        pre, post = pre.detach(), post.detach()
        return cls._sum(pre, post, _mean(pre), _mean(post))

    @classmethod
    def _sum(cls, pre: Tensor, post: Tensor, shift_pre: Tensor, shift_post: Tensor) -> "Moments":
        samples, neurons = pre.shape
        sums = pre.new_zeros((5, neurons), dtype=torch.float64)
        sum_pre, sum_post, square_pre, square_post, cross = sums.unbind()
        for some_pre, some_post in zip(_chunks(pre), _chunks(post), strict=True):
            # fresh memory is what costs, so all but one product is made in place
            x = some_pre.to(torch.float64, copy=True).sub_(shift_pre)
            y = some_post.to(torch.float64, copy=True).sub_(shift_post)
            sum_pre += x.sum(0)
            sum_post += y.sum(0)
            cross += (x * y).sum(0)
            square_pre += x.square_().sum(0)
            square_post += y.square_().sum(0)
        return cls(
            samples,
            shift_pre,
            shift_post,
            sum_pre,
            sum_post,
            square_pre,
            square_post,
            cross,
            torch.finfo(pre.dtype).eps,
            torch.finfo(post.dtype).eps,
        )

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.cross.shape[0]

    @property
    def mean_pre(self) -> Tensor:
        """Mean of pre, shape (neurons,)."""
        return self.shift_pre + self.sum_pre / self.count

    @property
    def mean_post(self) -> Tensor:
        """Mean of post, shape (neurons,)."""
        return self.shift_post + self.sum_post / self.count

    @property
    def var_pre(self) -> Tensor:
        """Population variance of pre, shape (neurons,)."""
        return (self.square_pre / self.count - (self.sum_pre / self.count).square()).clamp_min(0.0)

    @property
    def var_post(self) -> Tensor:
        """Population variance of post, shape (neurons,)."""
        return (self.square_post / self.count - (self.sum_post / self.count).square()).clamp_min(0.0)

    @property
    def covariance(self) -> Tensor:
        """Population covariance of pre and post, shape (neurons,)."""
        return self.cross / self.count - (self.sum_pre / self.count) * (self.sum_post / self.count)

    @property
    def constant_pre(self) -> Tensor:
        """Where pre varies by no more than the spacing of numbers at its mean, boolean (neurons,)."""
        return self.var_pre.sqrt() <= self.resolution_pre * self.mean_pre.abs()

    @property
    def constant_post(self) -> Tensor:
        """Where post varies by no more than the spacing of numbers at its mean, boolean (neurons,)."""
        return self.var_post.sqrt() <= self.resolution_post * self.mean_post.abs()

    @property
    def constant(self) -> Tensor:
        """Neurons whose pre or post is constant on the data, boolean (neurons,); one sample: all."""
        return self.constant_pre | self.constant_post

    def select(self, indices: Tensor | Sequence[int]) -> "Moments":
        """Keep the given neurons, in the given order.

        Args:
            indices: neuron numbers, or a boolean mask of shape (neurons,).

        Returns:
            The moments of these neurons; nothing is measured again.
        """
        if not isinstance(indices, Tensor):
            # An empty list would otherwise become a float tensor.
            indices = torch.tensor(list(indices), dtype=torch.long)
        indices = indices.to(self.cross.device)
        return replace(self, **{name: getattr(self, name)[indices] for name in _TENSORS})

    def to_dict(self) -> dict[str, Any]:
        """Give the moments as plain data (numbers and lists), exactly.

        Returns:
            A dictionary that `from_dict` and JSON accept.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.tolist() if name in _TENSORS else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Moments":
        """Rebuild moments from `to_dict`, on the CPU.

        Args:
            data: what `to_dict` gave.

        Returns:
            The same moments, bit for bit.

        Raises:
            InputError: a key is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if data.keys() != names:
            raise InputError(f"`data` has the keys {sorted(data)}, expected {sorted(names)}.")
        values: dict[str, Any] = dict(data)
        values |= {name: torch.tensor(data[name], dtype=torch.float64) for name in _TENSORS}
        return cls(**values)


_TENSORS = tuple(field.name for field in fields(Moments) if field.type is Tensor)


def update_moments(moments: Moments | None, pre: Tensor, post: Tensor) -> Moments:
    """Add a batch, around the shifts of the first one.

    Args:
        moments: what was seen so far, or None before the first batch.
        pre: input of the activation, shape (samples, neurons).
        post: output of the activation, same shape.

    Returns:
        The moments of all samples; the given ones are left as they are.

    Raises:
        InputError: the shapes do not fit each other or the moments, no sample, or not floating.

    >>> first, second = torch.zeros(2, 1), torch.ones(2, 1)
    >>> update_moments(update_moments(None, first, first), second, second).var_pre.item()
    0.25
    """
    if moments is None:
        return Moments.of(pre, post)
    check_pair(pre, post)
    if pre.shape[1] != moments.neurons:
        raise InputError(
            f"`pre` has {pre.shape[1]} neurons, the batches before had {moments.neurons}; "
            "start new moments when a layer's width changes."
        )
    return merge_moments(moments, Moments._sum(pre.detach(), post.detach(), moments.shift_pre, moments.shift_post))


def merge_moments(a: Moments, b: Moments) -> Moments:
    r"""Moments of the union of two sets of samples.

    The second is moved to the shifts of the first: with $d = s_b - s_a$, $e = t_b - t_a$,
    $\sum (x-s_a)(y-t_a) = \sum (x-s_b)(y-t_b) + e \sum (x-s_b) + d \sum (y-t_b) + n d e$, and likewise for
    the squares. This is an identity, so merging is associative and commutative up to float64 rounding.

    Args:
        a: moments of some samples.
        b: moments of other samples of the same neurons; its shifts may differ.

    Returns:
        The moments of all samples, with the shifts of `a`.

    Raises:
        InputError: the numbers of neurons differ.

    >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    >>> merge_moments(Moments.of(zero, zero), Moments.of(one, one)).covariance.item()
    0.25
    """
    if a.neurons != b.neurons:
        raise InputError(f"`a` has {a.neurons} neurons and `b` {b.neurons}; merge moments of one layer.")
    n, d, e = b.count, b.shift_pre - a.shift_pre, b.shift_post - a.shift_post
    return Moments(
        count=a.count + b.count,
        shift_pre=a.shift_pre,
        shift_post=a.shift_post,
        sum_pre=a.sum_pre + b.sum_pre + n * d,
        sum_post=a.sum_post + b.sum_post + n * e,
        square_pre=a.square_pre + b.square_pre + 2 * d * b.sum_pre + n * d.square(),
        square_post=a.square_post + b.square_post + 2 * e * b.sum_post + n * e.square(),
        cross=a.cross + b.cross + e * b.sum_pre + d * b.sum_post + n * d * e,
        resolution_pre=max(a.resolution_pre, b.resolution_pre),
        resolution_post=max(a.resolution_post, b.resolution_post),
    )
