"""Follow a layer's output through what was observed, to its consumers or to the reason why there are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_embed.graph.kinds import Layer
from lightning_embed.graph.layout import is_layer, is_sharded
from lightning_embed.graph.observer import Frame, LayerCall, Observation, is_plain
from lightning_embed.graph.reasons import Reason
from lightning_embed.graph.regions import Region, slice_region
from lightning_embed.tape.functions import function_name
from lightning_embed.tape.tree import canonical_name


@dataclass(frozen=True, eq=False)
class Way:
    """One call of a layer that alone feeds its readers: the region behind it, and the same with identities in it."""

    call: LayerCall
    number: int
    region: Region
    bypass: Region

    @property
    def given(self) -> Tensor:
        """What the call was given."""
        return self.call.given


@dataclass(frozen=True, eq=False)
class Flow:
    """All calls of a layer in one mode.

    Attributes:
        ways: its calls.
        modules: outermost modules wholly between.
        shared: those of them that are used elsewhere too.
    """

    ways: tuple[Way, ...]
    modules: tuple[str, ...]
    shared: tuple[str, ...]


def _slots(pairs: Sequence[tuple[str, object]]) -> dict[int, list[str]]:
    """The canonical names under which each object is held."""
    held: dict[int, list[str]] = defaultdict(list)
    for name, one in pairs:
        if canonical_name(name) not in held[id(one)]:
            held[id(one)].append(canonical_name(name))
    return held


def static_refusals(model: nn.Module, observations: Sequence[Observation]) -> dict[str, Reason]:
    """The layers whose weights are not theirs alone, or not plain parameters, or that are never called."""
    held = _slots(list(model.named_parameters(remove_duplicate=False)))
    called = {call.layer for seen in observations for call in seen.calls}
    uses, swapped = _weight_uses(observations), _swapped(observations)
    refused: dict[str, Reason] = {}
    for path, module in model.named_modules():
        name = canonical_name(path)
        if is_quantized(module):
            refused[name] = Reason("weight not dense", "a quantized Linear")
        if not is_layer(module):
            continue
        reason = _not_plain(module, held)
        for tensor in ("weight", "bias"):
            user = uses.get(f"{name}.{tensor}")
            if reason is None and user is not None:
                reason = Reason("weight shared", f"{tensor} is used by {user}")
        if reason is None and name in swapped and not is_sharded(module):
            reason = Reason("weight computed", "it is called with another one")
        if reason is None and name not in called:
            reason = Reason("never called")
        if reason is not None:
            refused[name] = reason
    return refused


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantized Linears, which are no nn.Linear."""
    return isinstance(getattr(module, "_packed_params", None), nn.Module)


def _not_plain(module: Layer, held: Mapping[int, list[str]]) -> Reason | None:
    for tensor in ("weight", "bias"):
        parameter = module._parameters.get(tensor)
        absent = tensor == "bias" and parameter is None and getattr(module, "bias", None) is None
        if parameter is not None and nn.parameter.is_lazy(parameter):
            return Reason("lazy")
        if is_sharded(module):
            return None  # nothing of it is merged; in a call it has another weight, put together for that
        if parameter is not None and (parameter.layout != torch.strided or type(parameter.data) is not Tensor):
            return Reason("weight not dense", f"{tensor} is {_form(parameter)}")
        if parametrize.is_parametrized(module, tensor) or (type(parameter) is not nn.Parameter and not absent):
            return Reason("weight computed", tensor)
        if not is_plain(module):
            return Reason("forward overridden", type(module).__name__)
        if parameter is not None and len(held[id(parameter)]) > 1:
            return Reason("weight shared", " = ".join(held[id(parameter)]))
    return None


def _form(parameter: Tensor) -> str:
    sparse = parameter.layout != torch.strided
    return str(parameter.layout).removeprefix("torch.") if sparse else f"a {type(parameter.data).__name__}"


def _weight_uses(observations: Sequence[Observation]) -> dict[str, str]:
    """What else than its own layer used a parameter."""
    uses: dict[str, str] = {}
    for seen in observations:
        uses.update(seen.hidden_uses)
        for event in seen.events:
            own = "" if event.call is None else seen.calls[event.call].layer
            for number in event.inputs:
                name = seen.values[number].name
                if name is not None and name not in (f"{own}.weight", f"{own}.bias"):
                    uses[name] = function_name(event.function)
    return uses


def _swapped(observations: Sequence[Observation]) -> set[str]:
    """Layers that ran with another tensor than their parameter, as `torch.func.functional_call` makes them."""
    return {
        call.layer
        for seen in observations
        for call in seen.calls
        if seen.values[seen.events[call.event].inputs[1]].name != f"{call.layer}.weight"
    }


def follow(model: nn.Module, name: str, observations: Sequence[Observation], *, exact: bool) -> Flow | Reason:
    """Follow every call of a layer that alone feeds its readers, to see whether it can be taken out.

    Args:
        model: where modules are held.
        name: the layer.
        observations: all of one mode.
        exact: whether all calls must have the same arguments too, or only the same readers.

    Returns:
        The flow, or why the layer cannot be taken out.
    """
    ways: list[Way] = []
    modules: list[str] = []
    shared: list[str] = []
    slots = _slots(list(model.named_modules(remove_duplicate=False)))
    for seen in observations:
        follower = _Follower(seen)
        frames: set[int] = set()
        for number, call in enumerate(seen.calls):
            if call.layer != name:
                continue
            result = follower.way(number)
            if isinstance(result, Reason):
                return result
            way, chosen = result
            ways.append(way)
            frames |= chosen
        for number in sorted(frames):
            frame = seen.frames[number]
            modules.append(frame.name)
            elsewhere = any(
                other.module == frame.module and place not in frames for place, other in enumerate(seen.frames)
            )
            if elsewhere or len(slots[frame.module]) > 1:
                shared.append(frame.name)
    if not ways:
        return Reason("never called")
    if any(not _agree(way.region, ways[0].region, exact=exact) for way in ways):
        return Reason("calls disagree")
    return Flow(tuple(ways), tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(shared)))


def _agree(region: Region, other: Region, *, exact: bool) -> bool:
    if exact:
        return region.signature(sizes=False) == other.signature(sizes=False)
    return {post.layer for post in region.posts} == {post.layer for post in other.posts}


class _Follower:
    """Answers questions about one observation."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.users: dict[int, list[int]] = defaultdict(list)
        for number, event in enumerate(seen.events):
            for value in dict.fromkeys(event.inputs):
                self.users[value].append(number)
        self.below: dict[int, set[int]] = defaultdict(set)  # frame -> events in it and in the frames below it
        for number, event in enumerate(seen.events):
            frame = event.frame
            while frame is not None:
                self.below[frame].add(number)
                frame = seen.frames[frame].parent

    def way(self, number: int) -> tuple[Way, set[int]] | Reason:
        """One call: its regions and the frames that can become identities."""
        seen, call = self.seen, self.seen.calls[number]
        reached = self._reach(number)
        if isinstance(reached, Reason):
            return reached
        members, readers = reached
        layers = [seen.calls[reader].layer for reader in readers]
        if len(set(layers)) < len(layers):
            return Reason("calls disagree", "a consumer reads it twice")
        region, _ = slice_region(seen, readers)
        frames = self._frames(number, members)
        instead = {seen.frames[frame].returned[0]: seen.frames[frame].given[0] for frame in frames}
        bypass, _ = slice_region(seen, readers, {new: old for new, old in instead.items() if new != old})
        return Way(call, number, region, bypass), frames

    def _reach(self, number: int) -> tuple[set[int], list[int]] | Reason:
        """The events that depend on this call alone and the calls of layers that read them."""
        seen = self.seen
        members: set[int] = set()
        readers: list[int] = []
        joined: list[str] = []
        waiting = [seen.calls[number].made]
        done: set[int] = set()
        while waiting:
            value = waiting.pop()
            if value in done:
                continue
            done.add(value)
            for user in self.users[value]:
                event = seen.events[user]
                if event.call is not None and seen.calls[event.call].read == value:
                    readers.append(event.call)
                elif event.origins == {number}:
                    members.add(user)
                    waiting.extend(made for made in event.made if seen.values[made].name is None)
                else:
                    joined.append(function_name(event.function))
        if joined:
            return Reason("joined by", ", ".join(dict.fromkeys(joined)))
        for reader in readers:
            origins = seen.values[seen.calls[reader].read].origins
            if origins != {number}:
                return Reason("consumer shared", f"{seen.calls[reader].layer!r} also reads other data")
        return members, sorted(set(readers))

    def _frames(self, call: int, members: set[int]) -> set[int]:
        """The outermost module calls that lie wholly in the region and could be identities."""
        seen = self.seen

        def inside(frame: Frame, number: int) -> bool:
            return (
                frame.simple
                and len(frame.given) == len(frame.returned) == 1
                and seen.values[frame.given[0]].origins == {call}
                and seen.values[frame.returned[0]].origins == {call}
                and bool(self.below[number] & members)
                and all(one in members or not seen.events[one].origins for one in self.below[number])
            )

        found = {number for number, frame in enumerate(seen.frames) if inside(frame, number)}
        return {number for number in found if not self._ancestors(number) & found}

    def _ancestors(self, number: int) -> set[int]:
        found = set()
        parent = self.seen.frames[number].parent
        while parent is not None:
            found.add(parent)
            parent = self.seen.frames[parent].parent
        return found
