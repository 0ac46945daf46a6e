"""Everything that touches the inside of a Lightning Trainer, and nothing else.

Facts relied on (Lightning 2.6): `fit_loop.epoch_loop._batches_that_stepped` is the x-axis of step metrics;
`on_before_optimizer_step` sees gradients unscaled and unclipped; optimizer states are loaded after `on_fit_start`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_embed.errors import InputError

Groups = list[list[list[str | None]]]

_NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def _namespaces() -> list[str]:
    """The Lightning namespaces in use: those already imported, or else the first that is installed.

    `lightning.pytorch` and `pytorch_lightning` are separate copies of one library, and importing the second turns
    the messages of the first over to its own logger; so neither is imported beside the other.
    """
    loaded = [name for name in _NAMESPACES if name in sys.modules]
    if loaded:
        return loaded
    for name in _NAMESPACES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return [name]
    raise ImportError(
        "lightning_embed.callbacks needs Lightning, which is not installed: pip install 'lightning-embed[lightning]'. "
        "lightning_embed.prune works without it."
    )


def _from_lightning(module: str, name: str) -> Any:
    """An object of the Lightning in use."""
    return getattr(importlib.import_module(f"{_namespaces()[0]}.{module}"), name)


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    _BASES = tuple(sys.modules[name].Callback for name in _namespaces())
    Callback = type("Callback", _BASES, {"__module__": __name__})

# callbacks that hold copies or masks of parameters, which do not follow a merge
_CONFLICTS = {
    "ModelPruning": "its masks keep the old shapes",
    "BaseFinetuning": "it rebuilds the optimizer's groups from the layers it froze",
    "WeightAveraging": "its averaged copy keeps the old shapes",
    "StochasticWeightAveraging": "its averaged copy keeps the old shapes",
}
_OFFLINE = "Train without EmbeddingPruner (EmbeddingMonitor may stay) and call lightning_embed.prune afterwards."


def check_supported(trainer: Any) -> None:
    """Refuse, at setup, the set-ups in which a merge would break training.

    Raises:
        MisconfigurationException: several processes, a sharding strategy, or a callback that cannot follow.
    """
    if trainer.world_size > 1:
        raise misconfiguration(
            f"EmbeddingPruner merges on a single device as yet; this Trainer runs {trainer.world_size} processes "
            f"({type(trainer.strategy).__name__}). {_OFFLINE}"
        )
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel", "XLA")):
        raise misconfiguration(f"EmbeddingPruner cannot merge parameters that {strategy} shards. {_OFFLINE}")
    for callback in trainer.callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in _CONFLICTS:
                raise misconfiguration(
                    f"EmbeddingPruner cannot work beside {type(callback).__name__}: {_CONFLICTS[kind.__name__]} when "
                    f"neurons or layers are merged. {_OFFLINE}"
                )


def misconfiguration(message: str) -> Exception:
    """Lightning's own exception."""
    error: Exception = _from_lightning("utilities.exceptions", "MisconfigurationException")(message)
    return error


def tell(trainer: Any, message: str) -> None:
    """Say one line to the user, on rank 0: above the progress bar if there is one, else as Lightning does."""
    bar = trainer.progress_bar_callback
    if bar is not None and bar.is_enabled:
        bar.print(message)
    else:
        _from_lightning("utilities.rank_zero", "rank_zero_info")(message)


@contextmanager
def unlogged(module: nn.Module) -> Iterator[None]:
    """Let `self.log` say nothing while recorded calls are replayed: a forward may log, and was heard already."""
    loggers = [one for one in module.modules() if hasattr(type(one), "log_dict")]
    saved = [(one, name, vars(one).get(name)) for one in loggers for name in ("log", "log_dict")]
    try:
        for one, name, _ in saved:
            vars(one)[name] = lambda *_args, **_kwargs: None
        yield
    finally:
        for one, name, old in saved:
            if old is None:
                del vars(one)[name]
            else:
                vars(one)[name] = old


def step_axis(trainer: Any) -> int:
    """The x-axis on which Lightning draws step metrics (batches that stepped an optimizer)."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def agreed(trainer: Any, metrics: dict[str, float]) -> dict[str, float]:
    """What rank 0 measured, on every rank, so that callbacks which monitor it decide alike. Every rank has to call."""
    found: dict[str, float] = trainer.strategy.broadcast(metrics)
    return found


def log_step(trainer: Any, module: Any, metrics: Mapping[str, float]) -> None:
    """Log now, in a training-batch hook: to every logger, and into `trainer.callback_metrics`.

    Lightning hands step metrics to loggers only every `log_every_n_steps`; a sampled step need not be one of those,
    so the loggers are called directly.
    """
    module.log_dict(dict(metrics), on_step=True, on_epoch=False, logger=False, batch_size=1)
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step_axis(trainer))


def log_epoch(module: Any, metrics: Mapping[str, float], *, prog_bar: bool = False) -> None:
    """Log in an epoch hook what was agreed: to loggers, `trainer.callback_metrics` and, if asked, the progress bar."""
    module.log_dict(dict(metrics), on_step=False, on_epoch=True, prog_bar=prog_bar, batch_size=1, sync_dist=True)


def planned_epochs(trainer: Any, module: Any) -> float | None:
    """Epochs that the Trainer plans to train; None without a planned end."""
    plans = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        plans.append(float(trainer.max_epochs))
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        batches = float(trainer.num_training_batches)
        # in manual optimization every optimizer's step counts; each is taken to step once a batch
        steps = 1 if module.automatic_optimization else max(1, len(trainer.optimizers))
        if batches not in (0.0, float("inf")):
            plans.append(trainer.max_steps * trainer.accumulate_grad_batches / steps / batches)
    return min(plans, default=None)


def log_directory(trainer: Any) -> Path | None:
    """The folder of the run's logs; None when the run logs nothing."""
    if not trainer.loggers:
        return None
    directory = trainer.log_dir or trainer.default_root_dir
    return Path(directory)


def group_names(trainer: Any, module: nn.Module) -> Groups:
    """Names of the parameters in every group of every optimizer; None for one that the module does not hold."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        [[names.get(id(one)) for one in group["params"]] for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]


def rebind_groups(trainer: Any, module: nn.Module, groups: Groups) -> None:
    """Let every group hold the named parameters in the saved order, before the optimizer state is loaded."""
    parameters = dict(module.named_parameters())
    if [len(one.param_groups) for one in trainer.optimizers] != [len(one) for one in groups]:
        raise InputError(
            "The checkpoint was saved with other optimizers or parameter groups than configure_optimizers returns now."
        )
    missing = {name for one in groups for group in one for name in group if name is not None} - set(parameters)
    if missing:
        raise InputError(
            f"The checkpoint's optimizer holds {', '.join(sorted(missing))}, which the loaded model does not have; "
            "was the state dict loaded without its architecture key?"
        )
    for optimizer, named_groups in zip(trainer.optimizers, groups, strict=True):
        for group, named in zip(optimizer.param_groups, named_groups, strict=True):
            held = {id(one) for one in parameters.values()}
            foreign = [one for one in group["params"] if id(one) not in held]
            if len(foreign) != named.count(None):
                raise InputError(
                    f"The checkpoint's optimizer holds {named.count(None)} parameters from outside the module, "
                    f"configure_optimizers returns {len(foreign)} now."
                )
            places = iter(foreign)
            group["params"][:] = [next(places) if name is None else parameters[name] for name in named]


__all__ = [
    "Callback",
    "Groups",
    "agreed",
    "check_supported",
    "group_names",
    "log_directory",
    "log_epoch",
    "log_step",
    "misconfiguration",
    "planned_epochs",
    "rebind_groups",
    "step_axis",
    "tell",
    "unlogged",
]
