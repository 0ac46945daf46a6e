"""Everything that touches the inside of a Lightning Trainer, and nothing else.

Facts relied on (Lightning 2.6): `fit_loop.epoch_loop._batches_that_stepped` is the x-axis of step metrics;
`on_before_optimizer_step` sees gradients unscaled and unclipped; optimizer states are loaded after `on_fit_start`.
"""

from __future__ import annotations

import gc
import importlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_embed.errors import InputError

Groups = list[list[list[str | None]]]
Agreed = TypeVar("Agreed")
Held = TypeVar("Held")

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

# callbacks that hold masks or groups of parameters, which do not follow a merge
_CONFLICTS = {
    "ModelPruning": "its masks keep the old shapes",
    "BaseFinetuning": "it rebuilds the optimizer's groups from the layers it froze",
}
_AVERAGES = ("WeightAveraging", "StochasticWeightAveraging")
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel", "XLA")
_OFFLINE = "Train without EmbeddingPruner (EmbeddingMonitor may stay) and call lightning_embed.prune afterwards."


def is_sharded(trainer: Any) -> bool:
    """Whether the strategy spreads parameters over processes, so that only all of them together can run the model."""
    return any(word in kind.__name__ for kind in type(trainer.strategy).__mro__ for word in _SHARDED)


def all_have(trainer: Any, mine: Held | None) -> Held | None:
    """What this process has, if all have theirs, where only all together can run the model; elsewhere what it has."""
    if is_sharded(trainer) and not trainer.strategy.reduce_boolean_decision(mine is not None):
        return None
    return mine


def check_supported(trainer: Any, *, attached: bool) -> None:
    """Refuse, at setup, the set-ups in which a merge would break training.

    Args:
        trainer: the Trainer.
        attached: whether `attach` was called on its module before the training was started.

    Raises:
        MisconfigurationException: a sharding strategy, several processes without DDP, a communication hook with a
            state, processes that the Trainer spawns or forks and a model that is not attached, or a callback that
            cannot follow.
    """
    strategy = trainer.strategy
    kinds = [kind.__name__ for kind in type(strategy).__mro__]
    name = kinds[0]
    if is_sharded(trainer):
        raise misconfiguration(f"EmbeddingPruner cannot merge parameters that {name} shards. {_OFFLINE}")
    if trainer.world_size > 1 and "DDPStrategy" not in kinds:
        raise misconfiguration(
            f"EmbeddingPruner merges on one device or under DDP; {name} runs {trainer.world_size} processes in a way "
            f"of its own. {_OFFLINE}"
        )
    if getattr(strategy, "_ddp_comm_state", None) is not None:
        raise misconfiguration(
            f"EmbeddingPruner cannot work with a communication hook that keeps a state (ddp_comm_state) of the "
            f"gradients' old shapes. {_OFFLINE}"
        )
    if type(strategy.launcher).__name__ == "_MultiProcessingLauncher" and not attached:
        raise misconfiguration(
            f"{name} starts processes that hand the trained weights back to this one, where the model would still have "
            "its original size. Call lightning_embed.attach(model) before trainer.fit(model), so that it can take them."
        )
    for callback in trainer.callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in _CONFLICTS:
                raise misconfiguration(
                    f"EmbeddingPruner cannot work beside {type(callback).__name__}: {_CONFLICTS[kind.__name__]} when "
                    f"neurons or layers are merged. {_OFFLINE}"
                )


def check_optimizers(trainer: Any) -> None:
    """Refuse optimizers whose state is spread over processes.

    Raises:
        MisconfigurationException: there is one.
    """
    for optimizer in trainer.optimizers:
        for kind in type(optimizer).__mro__:
            if kind.__name__ in ("ZeroRedundancyOptimizer", "PostLocalSGDOptimizer", "DistributedOptimizer"):
                raise misconfiguration(
                    f"EmbeddingPruner cannot edit the state that {kind.__name__} spreads over processes. {_OFFLINE}"
                )


def averaged_copies(trainer: Any) -> list[nn.Module]:
    """The running averages of the model that other callbacks keep, which have to follow a merge."""
    found = []
    for callback in trainer.callbacks:
        if any(kind.__name__ in _AVERAGES for kind in type(callback).__mro__):
            average = getattr(callback, "_average_model", None)
            if average is not None:
                found.append(average.module if isinstance(average, AveragedModel) else average)
    return found


def wrap_again(trainer: Any) -> None:
    """After a merge: a new DDP wrapper around the model, whose buckets fit its parameters."""
    strategy = trainer.strategy
    if isinstance(strategy.model, nn.parallel.DistributedDataParallel):
        strategy.model = trainer.lightning_module
        gc.collect()  # the old wrapper lets go of the parameters that stay
        strategy.configure_ddp()
        strategy._pl_static_graph_delay_done = False


def scale_rates(trainer: Any, factor: float) -> None:
    """Multiply every learning rate, also those that schedulers start from, so that their course goes on below."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for key in ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr"):
                if key in group:
                    group[key] = group[key] * factor
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    while schedulers:
        scheduler = schedulers.pop()
        schedulers.extend(getattr(scheduler, "_schedulers", ()))  # those that are strung together
        for key in ("base_lrs", "max_lrs", "_last_lr"):
            if isinstance(getattr(scheduler, key, None), list):
                setattr(scheduler, key, [rate * factor for rate in getattr(scheduler, key)])


def save_for_callback(checkpoint: dict[str, Any], callback: Any, key: str, value: Any) -> None:
    """Add to the state of a callback in a checkpoint what only `on_save_checkpoint` knows."""
    checkpoint["callbacks"][callback.state_key][key] = value


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


def agreed(trainer: Any, mine: Agreed) -> Agreed:
    """What rank 0 measured or decided, on every rank, so that all go on alike. Every rank has to call."""
    found: Agreed = trainer.strategy.broadcast(mine)
    return found


def log_step(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Log now, in a training-batch hook: to every logger, and into `trainer.callback_metrics`.

    Lightning hands step metrics to loggers only every `log_every_n_steps`; a sampled step need not be one of those,
    so the loggers are called directly.
    """
    # what `log` does for a step is this, a dozen times slower
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
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
            an_epoch = math.ceil(batches / trainer.accumulate_grad_batches)  # the last batch steps too
            plans.append(trainer.max_steps / steps / an_epoch)
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


def rebind_groups(trainer: Any, module: nn.Module, groups: Groups, before: Sequence[nn.Parameter] = ()) -> None:
    """Let every group hold the named parameters in the saved order.

    Args:
        trainer: the Trainer, whose optimizers are bound.
        module: its module.
        groups: what `group_names` returned where it was saved.
        before: parameters that the module held until now, which the groups may still hold.

    Raises:
        InputError: the optimizers or the module are not those of the saved groups.
    """
    parameters = dict(module.named_parameters())
    held = {id(one) for one in (*parameters.values(), *before)}
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
    "all_have",
    "averaged_copies",
    "check_optimizers",
    "check_supported",
    "group_names",
    "is_sharded",
    "log_directory",
    "log_epoch",
    "log_step",
    "misconfiguration",
    "planned_epochs",
    "rebind_groups",
    "save_for_callback",
    "scale_rates",
    "step_axis",
    "tell",
    "unlogged",
    "wrap_again",
]
