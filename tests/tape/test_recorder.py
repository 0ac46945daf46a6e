"""What a training step leaves on the tape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lightning_embed.errors import InputError
from lightning_embed.tape import Named, Recorder, Ref, replay
from tests.tape.modules import Noisy, Parts, clean, mlp, names, taped
from tests.zoo import IN, ROWS, ZOO


def test_losses_metrics_and_logging_are_dropped() -> None:
    model, x, y = Parts(), torch.randn(ROWS, IN), torch.zeros(ROWS, dtype=torch.long)
    with Recorder(model) as recorder:
        logits = model(x)
        loss = model.loss(logits / model.temperature, y) + F.cross_entropy(logits, y)
        (logits.argmax(-1) == y).float().mean().item()
        loss.backward()
    tape = taped(recorder)
    assert names(tape) == ["the model"]
    assert tape.outputs == (Ref(0, 0),)
    assert (tape.samples, tape.nbytes) == (ROWS, x.nbytes)
    assert clean(model)


def test_layers_called_from_the_step_and_the_functions_between() -> None:
    model, x = Parts().train(), torch.randn(ROWS, IN)
    with Recorder(model) as recorder:
        h = F.dropout(F.relu(model.fc1(x * 2)), 0.5)
        h = h * model.temperature + 1
        h[:, 0] = 3.0
        h += model.fc1(x).detach()
        loss = model.loss(model.fc2(h), torch.zeros(ROWS, dtype=torch.long))
        loss.backward()
    tape = taped(recorder)
    assert names(tape) == [
        "module 'fc1'",
        *(f"function {name}" for name in ("relu", "dropout", "mul", "add", "setitem")),
        "module 'fc1'",
        "function detach",
        "function add",
        "module 'fc2'",
    ]
    assert Named("temperature") in tape.steps[3].args
    model.eval()
    expected = model.fc1(x * 2).relu() * model.temperature + 1
    expected[:, 0] = 3.0
    assert torch.equal(replay(model, tape)[0], model.fc2(expected + model.fc1(x)))


def test_changes_through_a_view_are_replayed() -> None:
    model, x = Parts(), torch.randn(ROWS, IN)
    with Recorder(model) as recorder:
        h = model.fc1(x) * 2
        h[:, :3].zero_()
        torch.add(h, 1.0, out=h) if not h.requires_grad else h.add_(1.0)
        model.fc2(h)
    expected = model.fc1(x) * 2
    expected[:, :3] = 0
    assert torch.equal(replay(model, taped(recorder))[0], model.fc2(expected + 1))


def test_outputs_are_what_the_dropped_code_consumes() -> None:
    model, x = ZOO["Autoencoder"].make(), torch.randn(ROWS, IN)
    with Recorder(model) as recorder:
        h = model.encoder(x)
        mu, logvar = model.mu(h), model.logvar(h)
        assert mu.shape[0] == ROWS  # asking for a shape is no use of the values
        decoded = model.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp())
        loss = F.mse_loss(decoded, x) + (mu.square() + logvar.exp() - logvar).mean()
    assert loss.requires_grad
    outputs = replay(model, taped(recorder))
    assert [tuple(one.shape) for one in outputs] == [(ROWS, 2), (ROWS, 2), (ROWS, IN)]
    h = model.encoder(x)
    assert torch.equal(outputs[0], model.mu(h))
    assert torch.equal(outputs[1], model.logvar(h))


def test_two_optimizers_in_one_step() -> None:
    model, x = ZOO["Adversarial"].make(), torch.randn(ROWS, IN)
    optimizers = [torch.optim.Adam(net.parameters()) for net in (model.generator, model.discriminator)]
    with Recorder(model) as recorder:
        fake = model.generator(torch.randn_like(x))
        (model.discriminator(fake.detach()).mean() - model.discriminator(x).mean()).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
        (-model.discriminator(fake).mean()).backward()
        optimizers[0].step()
    tape = taped(recorder)
    assert names(tape) == [
        "module 'generator'",
        "function detach",
        *["module 'discriminator'"] * 3,
    ]
    assert [ref.step for ref in tape.outputs] == [2, 3, 4]
    assert len(replay(model, tape)) == 3


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed_reentrant"])
def test_recomputation_in_backward_is_ignored(name: str) -> None:
    model = ZOO[name].make()
    with Recorder(model) as recorder:
        out = model(torch.randn(ROWS, IN, requires_grad=True))
        out.sum().backward()
        assert recorder._frames == []
    assert names(taped(recorder)) == ["the model"]
    assert clean(model)


def test_a_model_that_returns_its_loss() -> None:
    class OwnLoss(Parts):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().mean()

    with Recorder(OwnLoss()) as recorder:
        recorder.model(torch.randn(ROWS, IN))
    assert replay(recorder.model, taped(recorder))[0].dim() == 0


def test_autocast_is_recorded() -> None:
    model = mlp().eval()
    with Recorder(model) as recorder, torch.autocast("cpu", torch.bfloat16):
        expected = model(torch.randn(ROWS, IN))
    assert expected.dtype == torch.bfloat16
    assert torch.equal(replay(model, taped(recorder))[0], expected)
    with Recorder(model) as recorder:
        expected = model(torch.randn(ROWS, IN))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(replay(model, taped(recorder))[0], expected)


def test_a_step_redirected_through_forward_is_looked_through() -> None:
    # as Lightning's strategies do: forward is replaced, and put back as soon as it is entered
    model, x = Parts().eval(), torch.randn(ROWS, IN)

    def training_step(batch: Tensor) -> Tensor:
        return model(batch).mean()

    for _ in range(2):  # the second time forward is in the instance's dict from the start
        original = model.forward

        def redirected(*args: Any, original: Any = original) -> Tensor:
            model.forward = original
            return training_step(*args)

        with Recorder(model) as recorder:
            model.forward = redirected
            model(x)
        tape = taped(recorder)
        assert names(tape) == ["the model"]
        assert torch.equal(replay(model, tape)[0], model(x))


def test_compiled_modules_are_recorded_by_their_own_names() -> None:
    wrapper = nn.Module()
    wrapper.net = torch.compile(mlp().eval(), backend="eager")
    x = torch.randn(4, IN)
    wrapper.net(x)  # compiled before the hooks come, which would be skipped
    with Recorder(wrapper) as recorder:
        expected = wrapper.net(x)
    tape = taped(recorder)
    assert [step.module for step in tape.steps] == ["net"]
    torch.testing.assert_close(replay(wrapper, tape)[0], expected)


def test_nothing_called() -> None:
    model = Parts()
    with Recorder(model) as recorder:
        model.loss(torch.randn(2, 3), torch.zeros(2, dtype=torch.long))
    assert recorder.tape is None
    assert recorder.reason == "no module with parameters was called"


def test_start_and_stop_between_other_modes() -> None:
    class Other(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    model = mlp()
    recorder = Recorder(model).start()
    with Other() as other:
        model(torch.randn(4, IN))
        assert recorder.stop() is not None
        assert _get_current_function_mode_stack() == [other]
    assert clean(model)
    with pytest.raises(InputError, match="without start"):
        recorder.stop()


@pytest.mark.parametrize("inside", [True, False])
def test_an_error_in_the_recorded_code(inside: bool) -> None:
    model = Noisy()
    model.fails = inside
    with pytest.raises(ValueError, match="on purpose"), Recorder(model) as recorder:  # noqa: PT012  # both places
        model(torch.randn(4, IN))
        raise ValueError("on purpose")
    assert recorder.tape is None
    assert "on purpose" in recorder.reason
    assert clean(model)


def test_an_error_that_the_step_survives() -> None:
    model, other = Noisy(), mlp()
    both = nn.ModuleList([model, other])
    model.fails = True
    with Recorder(both) as recorder:
        with pytest.raises(ValueError, match="on purpose"):
            model(torch.randn(4, IN))
        other(torch.randn(4, IN))
    assert names(taped(recorder)) == ["module '1'"]


def test_parameters_in_others_places_cannot_be_recorded() -> None:
    model = Parts()
    weights = {name: 0.9 * parameter for name, parameter in model.named_parameters()}
    with Recorder(model) as recorder:
        torch.func.functional_call(model, weights, (torch.randn(4, IN),))
    assert recorder.tape is None
    assert "other tensors in its parameters' places" in recorder.reason
