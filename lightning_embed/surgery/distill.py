"""Distillation: bring a pruned network closer to the original, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.surgery.decide.scale import as_rows
from lightning_embed.tape import Tape, record, replay
from lightning_embed.tape.tree import tensors_of

SHARPNESS = 4.0  # class scores are compared at a temperature of their standard deviation over this


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    epochs: int,
    lr: float,
    batch: int = 128,
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> tuple[float, ...]:
    r"""Train a network, in place, to put out what another one does. No labels are needed.

    Adam on $\|f' - f\|^2 / \|f - \bar f\|^2 + \mathrm{KL}(\mathrm{softmax}(f/T) \| \mathrm{softmax}(f'/T))$ of every
    batch, f the teacher's outputs, f′ the student's, $\bar f$ the mean over the batch, T a quarter of the root mean
    square of $f - \bar f$. The first term is the square of `Tolerance`'s change. The second, 0 for outputs of one
    column, weighs what decides between classes. Both are 0 where the outputs are equal, and a change of units changes
    neither. Of several output tensors the sum counts.

    Both networks run in eval mode: dropout is off, and batch norms use, and keep, their running statistics.
    Preserved: the teacher, the student's shapes, buffers, modes, frozen parameters and gradients, the random state.

    Args:
        student: the pruned network; its trainable parameters are changed in place.
        teacher: the original.
        data: a tensor (samples, …), a DataLoader or an iterable of batches, as in `prune`, but all of it is used in
            every epoch. A tensor is shuffled; batches come in the order in which the loader gives them.
        epochs: passes over the data.
        lr: Adam's rate at the start; a tenth to a third of the rate that the network was trained with is good. It falls
            linearly to 0, or from epoch to epoch where the data do not tell how many batches they hold.
        batch: samples in a batch, where the data are one tensor.
        call: how to run the teacher on a batch: batch → outputs. The student is called in the same way.
        output: which tensor(s) of what the call returns are compared.
        seed: of the order of the samples.

    Returns:
        The mean loss of every epoch.

    Raises:
        InputError: the student has nothing to train, or shares it with the teacher; the data are empty or can be gone
            through only once; outputs differ in shape or hold NaN or infinite values; the training diverges. The
            student is then as it was before the call.

    >>> _ = torch.manual_seed(0)
    >>> teacher, student = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> losses = distill(student, teacher, torch.randn(99, 2), epochs=60, lr=0.1, batch=33)
    >>> losses[-1] < 1e-3 < losses[0]
    True
    """
    trained = _trained(student, teacher)
    _check(data, epochs, lr, batch)
    losses = []
    with torch.inference_mode(mode=False), torch.enable_grad(), _put_back(trained):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed devices that are not put back
        optimizer = torch.optim.Adam(trained, lr=lr)
        length = _length(data, batch)
        for epoch in range(epochs):
            total, count = 0.0, 0
            for one in _batches(data, batch):
                left = 1 - (epoch + min(1.0, count / length)) / epochs
                optimizer.param_groups[0]["lr"] = lr * left
                loss = _step(student, teacher, one, call, output, optimizer)
                if not math.isfinite(loss):
                    raise InputError(
                        f"The loss became {loss} in epoch {epoch + 1}, batch {count + 1}; the student is as it was. "
                        f"Take a smaller lr than {lr:g}, or look for NaN or infinite values in data and weights."
                    )
                total, count = total + loss, count + 1
            if count == 0:
                raise InputError("data is empty: there is no batch to distill on.")
            losses.append(total / count)
        if not all(bool(torch.isfinite(one).all()) for one in trained):
            raise InputError(f"The last step made weights infinite; the student is as it was. Take an lr below {lr:g}.")
    return tuple(losses)


def _trained(student: nn.Module, teacher: nn.Module) -> list[nn.Parameter]:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise InputError(f"{name} must be a torch.nn.Module, got {type(model).__name__}.")
    trained = [one for one in student.parameters() if one.requires_grad]
    if not trained:
        raise InputError("The student has no trainable parameter; set requires_grad on those that shall be trained.")
    if {id(one) for one in trained} & {id(one) for one in teacher.parameters()}:
        raise InputError("Student and teacher share trainable parameters; give a copy (copy.deepcopy) as the teacher.")
    return trained


def _check(data: Any, epochs: int, lr: float, batch: int) -> None:
    for name, value in (("epochs", epochs), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if not (isinstance(lr, (int, float)) and 0.0 < lr < math.inf):
        raise InputError(f"lr must be a positive number, such as 3e-4, got {lr!r}.")
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Iterable):
        raise InputError(f"data must be a DataLoader, an iterable of batches or a tensor, got {type(data).__name__}.")
    if isinstance(data, Iterator) and epochs > 1:
        raise InputError("data is an iterator, which ends after one epoch; give a list of batches or a DataLoader.")


def _length(data: Any, batch: int) -> float:
    """Number of batches in an epoch; infinite where the data do not tell."""
    if isinstance(data, Tensor):
        return -(-len(data) // batch) if data.dim() else 0
    try:
        return len(data)
    except TypeError:
        return math.inf


def _batches(data: Any, batch: int) -> Iterator[Any]:
    if not isinstance(data, Tensor):
        yield from data
    elif data.dim() and len(data):
        for rows in torch.randperm(len(data)).split(batch):
            yield data[rows.to(data.device)]


def _step(
    student: nn.Module,
    teacher: nn.Module,
    batch: Any,
    call: Callable[[Any], Any] | None,
    output: Callable[[Any], Any] | None,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One step of the optimizer; its loss before the step, which is not made where the loss is not finite."""
    tape, wanted = _seen(teacher, batch, call, output)
    try:
        given = replay(student, tape, grad=True)
    except ReplayError as error:
        raise InputError(f"The student cannot be called as the teacher is: {error}") from error
    shapes = [[tuple(one.shape) for one in outputs] for outputs in (given, wanted)]
    if shapes[0] != shapes[1]:
        raise InputError(f"The student's outputs have the shapes {shapes[0]}, the teacher's {shapes[1]}.")
    loss = torch.stack([_loss(new, old) for new, old in zip(given, wanted, strict=True)]).sum()
    if not loss.requires_grad:
        raise InputError("The student's outputs depend on no trainable parameter.")
    optimizer.zero_grad()
    if math.isfinite(loss.item()):
        loss.backward()
        optimizer.step()
    return loss.item()


def _seen(
    teacher: nn.Module, batch: Any, call: Callable[[Any], Any] | None, output: Callable[[Any], Any] | None
) -> tuple[Tape, list[Tensor]]:
    """How the teacher was called on a batch, and what it put out."""
    seen: list[Tensor] = []

    def keep(returned: Any) -> Any:
        selected = returned if output is None else output(returned)
        seen.extend(one.detach().clone() for one in tensors_of(selected) if one.is_floating_point())
        return selected

    (tape,) = record(teacher, [batch], call=call, output=keep)
    return tape, seen


def _loss(new: Tensor, old: Tensor) -> Tensor:
    new, old = as_rows(new), as_rows(old).to(new.device)
    spread = (old - old.mean(dim=0)).square()
    if not bool(spread.any()):  # one sample, or a constant output
        spread = old.square() if bool(old.any()) else torch.ones_like(old)
    change = (new - old).square().sum() / spread.sum()
    temperature = spread.mean().sqrt() / SHARPNESS
    new, old = (torch.log_softmax(one / temperature, dim=1) for one in (new, old))
    return change + nn.functional.kl_div(new, old, log_target=True, reduction="batchmean")


@contextmanager
def _put_back(trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put gradients and random state back at the end, and on an error the parameters too."""
    saved = [(one, one.detach().clone(), one.grad) for one in trained]
    for one in trained:
        one.grad = None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except BaseException:
        with torch.no_grad():
            for one, value, _ in saved:
                one.copy_(value)
        raise
    finally:
        for one, _, gradient in saved:
            one.grad = gradient
