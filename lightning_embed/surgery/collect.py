"""Gather values at named points of a model while it runs: what modules read, what they put out, derivatives by both.

One run gives all that was asked for:

    collector = Collector(model)
    read = collector.reads("2", lambda value: value.mean(dim=0))
    slopes = collector.read_derivatives("2", torch.abs)
    collector.run(tapes, seed=0)

`read` and `slopes` are lists, which then hold one entry for every call of module "2", in the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from lightning_embed.tape import Tape, replay
from lightning_embed.tape.recorder import in_backward
from lightning_embed.tape.tape import modules_by_name

T = TypeVar("T")


class Collector:
    """What is to be gathered, and the hooks that gather it between `start` and `stop`.

    Calls made inside a backward pass are passed over: a checkpointed block is computed again there.

    Args:
        model: the model that will run.
        quiet: keep the first error in `error` and gather nothing more, in place of raising it: for looking on while
            somebody else's code runs.
    """

    def __init__(self, model: nn.Module, *, quiet: bool = False) -> None:
        self.error: Exception | None = None
        self._modules = modules_by_name(model)
        self._model, self._quiet = model, quiet
        self._planned: list[Callable[[], Any]] = []
        self._derivatives: list[tuple[Callable[[Tensor], Any], list[Tensor], list[Any]]] = []
        self._hooks = ExitStack()

    def reads(self, name: str, look: Callable[[Tensor], T]) -> list[T]:
        """Gather what `look` makes of the tensor that a module reads, before the module runs."""
        return self.calls(name, look, None)

    def puts_out(self, name: str, look: Callable[[Tensor], T]) -> list[T]:
        """Gather what `look` makes of the tensor that a module puts out."""
        return self.calls(name, None, lambda _given, output: look(output))

    def calls(
        self, name: str, before: Callable[[Tensor], T] | None, after: Callable[[Tensor, Tensor], T] | None = None
    ) -> list[T]:
        """Gather what `before` makes of a module's input, or `after` of its input and output together."""
        gathered: list[T] = []

        def enter(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if before is not None:
                self._look(lambda: gathered.append(before(_only(args, kwargs).detach())))

        def leave(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            if after is not None:
                self._look(lambda: gathered.append(after(_only(args, kwargs).detach(), output.detach())))

        module = self._modules[name]
        if before is not None:
            self._planned.append(lambda: module.register_forward_pre_hook(enter, with_kwargs=True))
        if after is not None:
            self._planned.append(lambda: module.register_forward_hook(leave, with_kwargs=True))
        return gathered

    def read_derivatives(self, name: str, look: Callable[[Tensor], T]) -> list[T]:
        """Gather the derivative, by what a module reads, of a random ±1 combination of the outputs (see `run`)."""
        leaves, gathered = self._differentiate(look)

        def hook(
            _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
        ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            return (_with_leaf(_only(args, kwargs), leaves),), {}

        module = self._modules[name]
        self._planned.append(lambda: module.register_forward_pre_hook(hook, with_kwargs=True))
        return gathered

    def output_derivatives(self, name: str, look: Callable[[Tensor], T]) -> list[T]:
        """Gather the derivative, by what a module puts out, of a random ±1 combination of the outputs."""
        leaves, gathered = self._differentiate(look)
        module = self._modules[name]
        self._planned.append(
            lambda: module.register_forward_hook(lambda _module, _args, output: _with_leaf(output, leaves))
        )
        return gathered

    def _differentiate(self, look: Callable[[Tensor], T]) -> tuple[list[Tensor], list[T]]:
        leaves: list[Tensor] = []
        gathered: list[T] = []
        self._derivatives.append((look, leaves, gathered))
        return leaves, gathered

    def start(self) -> Self:
        """Put the hooks on."""
        for plan in self._planned:
            self._hooks.callback(plan().remove)
        return self

    def stop(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        self._hooks.close()

    def run(self, tapes: Iterable[Tape], *, seed: int = 0) -> Self:
        """Replay tapes and gather.

        Args:
            tapes: recorded calls.
            seed: of the signs of the combination of outputs that is differentiated. The square of a derivative has
                the sum over the outputs of the squared derivatives as its mean. All zero where outputs are detached.

        Raises:
            ReplayError: a tape does not run on the model.
        """
        generator = torch.Generator().manual_seed(seed)
        try:
            self.start()
            for tape in tapes:
                outputs = replay(self._model, tape, grad=bool(self._derivatives))
                if self._derivatives:
                    self._derive(_signed_total(outputs, generator))
        finally:
            self.stop()
        return self

    def _derive(self, total: Tensor) -> None:
        gradients = _gradients(total, [leaf for _, leaves, _ in self._derivatives for leaf in leaves])
        for look, leaves, gathered in self._derivatives:
            gathered.extend([look(next(gradients)) for _ in leaves])
            leaves.clear()

    def _look(self, look: Callable[[], None]) -> None:
        if in_backward() or self.error is not None:
            return
        if not self._quiet:
            look()
            return
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():  # recorders shall not see what is done here
                look()
        except Exception as error:  # noqa: BLE001  # the training goes on
            self.error = error


def _only(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    (given,) = (*args, *kwargs.values())
    return given


def _with_leaf(value: Tensor, leaves: list[Tensor]) -> Tensor:
    """A value plus a zero by which can be differentiated."""
    leaf = torch.zeros_like(value, requires_grad=True)
    if not in_backward():
        leaves.append(leaf)
    return value + leaf


def _signed_total(outputs: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """A random ±1 combination of all output values through which gradients flow."""
    total = torch.zeros(())
    for output in outputs:
        if output.requires_grad:
            sign = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            total = total.to(output.device) + (output * sign).double().sum()
    return total


def _gradients(total: Tensor, leaves: Sequence[Tensor]) -> Iterator[Tensor]:
    if not total.requires_grad or not leaves:
        return iter([torch.zeros_like(leaf) for leaf in leaves])
    return iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
