"""When to merge in training: small objects that answer yes or no at the start of every epoch."""

from __future__ import annotations

import math
from typing import Any

from lightning_embed.callbacks import _trainer
from lightning_embed.errors import InputError


class When:
    """Decides at which epochs `EmbeddingPruner` merges. Write your own by overriding `__call__`.

    What an object learns in training belongs into `state_dict`, as plain data, or a resumed run decides otherwise than
    an uninterrupted one. With several processes the answer of the first one counts for all.

    >>> class Even(When):
    ...     def __call__(self, trainer, pl_module):
    ...         return trainer.current_epoch % 2 == 0
    """

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Training begins, or goes on after a resume: look at the Trainer's plans, refuse what cannot be."""

    def reset(self) -> None:
        """Forget what an earlier fit has taught; called before a fit, and before a checkpoint is loaded."""

    def observe(self, trainer: Any) -> None:
        """Look at the metrics of an epoch that ends; called before checkpoints of that epoch are written."""

    def soon(self, trainer: Any) -> bool:
        """Whether this epoch's steps may be needed as calibration data, for a merge at the start of the next one."""
        del trainer
        return True

    def __call__(self, trainer: Any, pl_module: Any) -> bool:
        """Whether to merge at the start of this epoch; called once an epoch."""
        raise NotImplementedError(f"{type(self).__name__} has to override __call__(trainer, pl_module) -> bool.")

    def state_dict(self) -> dict[str, Any]:
        """What has to survive a resume, as plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""


class After(When):
    """From some point of the training on, every few epochs.

    Early in training a small-initialised network is linear in every layer, and merging then would take depth that
    training has yet to use.

    Args:
        start: a share of the planned training (float in 0..1) or an epoch (int). With no planned end an int is needed.
        every_n_epochs: epochs between two merging events.

    Raises:
        InputError: an argument is out of range; at the start of training, when `start` lies past the planned end, or
            is a share of a training without one.

    >>> After(10, every_n_epochs=5).every_n_epochs
    5
    """

    def __init__(self, start: int | float = 0.5, every_n_epochs: int = 1) -> None:  # noqa: PYI041  # LightningCLI would turn an epoch into a float
        name = type(self).__name__
        self.first = check_start(name, start)
        _positive(f"{name}(every_n_epochs=…)", every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._epoch = 0

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Resolve the share against the planned end."""
        name, planned = type(self).__name__, _trainer.planned_epochs(trainer, pl_module)
        self._epoch = first_epoch(name, self.first, planned)
        if planned is not None and self._epoch >= planned and not trainer.fast_dev_run:
            raise InputError(
                f"{name}(start={self.first}) begins at epoch {self._epoch}, past the end of a training "
                f"of {planned:g} epochs; nothing would ever be merged."
            )

    def _due(self, epoch: int) -> bool:
        return epoch >= self._epoch and (epoch - self._epoch) % self.every_n_epochs == 0

    def soon(self, trainer: Any) -> bool:
        """Whether the next epoch is one of those."""
        return self._due(trainer.current_epoch + 1)

    def __call__(self, trainer: Any, pl_module: Any) -> bool:
        """Whether this epoch is one of those."""
        del pl_module
        return self._due(trainer.current_epoch)


class Once(When):
    """Once, at some point of the training: what to cut a network with to a size, early, so that the rest is cheaper.

    Args:
        start: a share of the planned training (float in 0..1) or an epoch (int), from the second epoch on. With no
            planned end an int is needed.

    Raises:
        InputError: as `After`.

    >>> Once(3).first
    3
    """

    def __init__(self, start: int | float = 0.1) -> None:  # noqa: PYI041  # LightningCLI would turn an epoch into a float
        self.first = check_start("Once", start)
        self._epoch = 0

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Resolve the share against the planned end."""
        planned = _trainer.planned_epochs(trainer, pl_module)
        self._epoch = max(1, first_epoch("Once", self.first, planned))
        if planned is not None and planned <= 1 and not trainer.fast_dev_run:
            raise InputError(
                f"Once(start={self.first}) merges at the start of an epoch, on what the one before has recorded, but "
                "this Trainer plans a single epoch; cut the network before the training with lightning_embed.prune."
            )

    def soon(self, trainer: Any) -> bool:
        """Whether the next epoch is the one."""
        return bool(trainer.current_epoch + 1 == self._epoch)

    def __call__(self, trainer: Any, pl_module: Any) -> bool:
        """Whether this epoch is the one."""
        del pl_module
        return bool(trainer.current_epoch == self._epoch)


def check_start(name: str, start: Any) -> int | float:
    """Refuse what is no point of a training."""
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not start >= 0:
        raise InputError(f"{name}(start=…) must be a share of training or an epoch, got {start!r}.")
    if isinstance(start, float) and start >= 1.0:
        raise InputError(
            f"{name}(start={start}) as a float is a share of the planned training and must be below 1; "
            "give an int for an epoch."
        )
    return start


def first_epoch(name: str, start: float, planned: float | None) -> int:
    """The epoch that a share or a number stands for."""
    if not isinstance(start, float):
        return start
    if planned is None:
        raise InputError(
            f"{name}(start={start}) is a share of the planned training, but this Trainer has no planned end; give an "
            "int, the epoch from which on to merge."
        )
    return min(round(start * planned), math.ceil(planned) - 1)


class NearEnd(When):
    """Once, with some epochs left to train on.

    Args:
        epochs: how many are left. Needs a planned end of training.

    Raises:
        InputError: `epochs` is no positive integer; at the start of training, when no end is planned or fewer epochs.

    >>> NearEnd(5).epochs
    5
    """

    def __init__(self, epochs: int = 1) -> None:
        _positive("NearEnd(epochs=…)", epochs)
        self.epochs = epochs
        self._epoch = -1

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Count back from the planned end."""
        planned = _trainer.planned_epochs(trainer, pl_module)
        if (planned is None or planned <= self.epochs) and not trainer.fast_dev_run:
            plans = "has no planned end" if planned is None else f"plans {planned:g} epochs"
            raise InputError(f"NearEnd(epochs={self.epochs}) merges before the last epochs, but this Trainer {plans}.")
        self._epoch = math.ceil(planned or 0) - self.epochs

    def soon(self, trainer: Any) -> bool:
        """Whether the next epoch is the one."""
        return bool(trainer.current_epoch + 1 == self._epoch)

    def __call__(self, trainer: Any, pl_module: Any) -> bool:
        """Whether this epoch is the one."""
        del pl_module
        return bool(trainer.current_epoch == self._epoch)


class OnPlateau(When):
    """When a monitored metric has not improved for some epochs; then again after as many.

    Args:
        monitor: name of a logged metric (`trainer.callback_metrics`), such as "val_loss".
        patience: epochs without an improvement.
        threshold: relative improvement that counts as one.
        mode: "min" or "max", what is better.
        start: nothing is merged before this epoch.

    Raises:
        InputError: an argument is out of range; in training, when the metric is not logged.

    >>> OnPlateau("val_loss", patience=2).monitor
    'val_loss'
    """

    def __init__(
        self, monitor: str, patience: int = 3, threshold: float = 1e-3, mode: str = "min", start: int = 0
    ) -> None:
        _positive("OnPlateau(patience=…)", patience)
        _share("OnPlateau(threshold=…)", threshold)
        if mode not in ("min", "max"):
            raise InputError(f"OnPlateau(mode=…) must be 'min' or 'max', got {mode!r}.")
        _epoch("OnPlateau(start=…)", start)
        self.monitor, self.patience, self.threshold, self.mode, self.first = monitor, patience, threshold, mode, start
        self._metric = Metric(monitor)
        self.reset()

    def reset(self) -> None:
        """Forget the best value."""
        self._metric.reset()
        self._best: float | None = None
        self._waited = 0

    def observe(self, trainer: Any) -> None:
        """Take the metric, if the epoch has a new value of it."""
        self._metric.observe(trainer, "OnPlateau")

    def __call__(self, trainer: Any, pl_module: Any) -> bool:
        """Whether the value of the last epoch makes the patience full; an epoch without a new value does not count."""
        del pl_module
        value = self._metric.take()
        if value is None:
            return False
        sign = 1.0 if self.mode == "min" else -1.0
        if self._best is None or sign * (self._best - value) > self.threshold * abs(self._best):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._waited < self.patience or trainer.current_epoch < self.first:
            return False
        self._waited = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, the epochs since, and the value that is not yet looked at."""
        return {"best": self._best, "waited": self._waited, "value": self._metric.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        self._best, self._waited, self._metric.value = state["best"], state["waited"], state["value"]


class NearCriticalPoint(When):
    """Near a critical point: the loss hardly falls *and* the gradient is small (paper 000, App. C).

    A small decrease alone may come of a small learning rate, a small gradient alone of a single lucky batch. Put an
    `EmbeddingMonitor` before the pruner; its `grad_norm/l1` is the gradient that is read.

    Args:
        monitor: name of the logged loss, averaged over epochs (`self.log("loss", loss, on_epoch=True)`: "loss_epoch").
        decrease: the largest relative decrease of the loss over an epoch.
        gradient: the largest L1 norm of the gradient, as a share of the largest seen so far.
        start: nothing is merged before this epoch.

    Raises:
        InputError: an argument is out of range; in training, when one of the two is not logged.

    >>> NearCriticalPoint("loss_epoch").gradient
    0.1
    """

    def __init__(self, monitor: str, decrease: float = 0.01, gradient: float = 0.1, start: int = 0) -> None:
        _share("NearCriticalPoint(decrease=…)", decrease)
        _share("NearCriticalPoint(gradient=…)", gradient)
        _epoch("NearCriticalPoint(start=…)", start)
        self.monitor, self.decrease, self.gradient, self.first = monitor, decrease, gradient, start
        self._metrics = Metric(monitor), Metric("grad_norm/l1", hint=" Put an EmbeddingMonitor beside it.")
        self.reset()

    def reset(self) -> None:
        """Forget losses and gradients."""
        for metric in self._metrics:
            metric.reset()
        self._loss: float | None = None
        self._largest = 0.0

    def observe(self, trainer: Any) -> None:
        """Take the loss and the gradient, if the epoch has new values of them."""
        for metric in self._metrics:
            metric.observe(trainer, "NearCriticalPoint")

    def __call__(self, trainer: Any, pl_module: Any) -> bool:
        """Compare the last epoch with the one before."""
        del pl_module
        loss, gradient = (metric.take() for metric in self._metrics)
        if loss is None or gradient is None:
            return False
        before, self._loss = self._loss, loss
        self._largest = max(self._largest, gradient)
        if before is None or trainer.current_epoch < self.first:
            return False
        return before - loss <= self.decrease * abs(before) and gradient <= self.gradient * self._largest

    def state_dict(self) -> dict[str, Any]:
        """The last loss, the largest gradient, and the values that are not yet looked at."""
        values = [metric.value for metric in self._metrics]
        return {"loss": self._loss, "largest": self._largest, "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        self._loss, self._largest = state["loss"], state["largest"]
        for metric, value in zip(self._metrics, state["values"], strict=True):
            metric.value = value


class Metric:
    """A logged metric (`trainer.callback_metrics`), taken at the end of every epoch that has a new finite value.

    Lightning keeps the last value of what is not logged in every epoch; it is the same tensor then.
    """

    def __init__(self, name: str, hint: str = "") -> None:
        self.name, self.hint = name, hint
        self.reset()

    def reset(self) -> None:
        """Forget the value."""
        self.value: float | None = None
        self._seen: Any = None

    def observe(self, trainer: Any, whose: str) -> None:
        """Take a new value; refuse a name that nobody logs, once it should be there."""
        metrics = trainer.callback_metrics
        found = metrics.get(self.name)
        if found is None and trainer.current_epoch + 1 >= max(1, trainer.check_val_every_n_epoch or 1):
            known = ", ".join(sorted(metrics)) or "none"
            raise InputError(f"{whose} looks at {self.name!r}, which is not logged; logged are: {known}.{self.hint}")
        if found is not None and found is not self._seen:
            self._seen = found
            self.value = float(found) if math.isfinite(float(found)) else None

    def take(self) -> float | None:
        """The value, once."""
        value, self.value = self.value, None
        return value


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}.")


def _epoch(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name} must be an epoch (an integer of at least 0), got {value!r}.")


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{name} must be a number from 0 to 1, got {value!r}.")


__all__ = ["After", "NearCriticalPoint", "NearEnd", "OnPlateau", "Once", "When"]
