"""Every way by which Lightning or a user reads a checkpoint, of models before and after merges."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import lightning_embed as le
from lightning_embed.surgery import KEY
from tests.compatibility.training import Batches, Net, merges, ours, trainer


class BestFirst(Callback):
    """Makes the first epoch the best one: it is older and larger than what comes of the merges."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("score", float(trainer.current_epoch))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    best = ModelCheckpoint(folder, filename="best", monitor="score", mode="min")
    every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_last=True, auto_insert_metric_name=False)
    slim = ModelCheckpoint(folder, filename="slim", save_weights_only=True, every_n_epochs=2)
    run = trainer(folder, [*ours(), BestFirst(), best, every, slim], enable_checkpointing=True)
    model = Net()
    run.fit(model, Batches(), Batches(seed=1))
    assert [epoch for _, _, epoch in merges(run)] == [2, 2, 4]
    return folder, run, model


def widths(model):
    return model.net[0].out_features, model.net[2].__class__.__name__


SMALL, LARGE = (3, "Identity"), (12, "Linear")


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize(("which", "size"), [("best", LARGE), ("last", SMALL), ("a path", (6, "Identity"))])
@pytest.mark.cell("Checkpoints", "trainer.{verb}(ckpt_path={which}), larger or smaller than the model")
def test_evaluation_from_a_checkpoint(trained, verb, which, size):
    folder, run, model = trained
    path = folder / "2.ckpt" if which == "a path" else which
    getattr(run, verb)(model, Batches(seed=1), ckpt_path=path, **({} if verb == "predict" else {"verbose": False}))
    assert widths(model) == size
    saved = torch.load(folder / {"best": "best.ckpt", "last": "last.ckpt", "a path": "2.ckpt"}[which])["state_dict"]
    assert all(torch.equal(one, saved[name]) for name, one in model.named_parameters())


@pytest.mark.parametrize("which", ["best", "last", "a path", "a finished run"])
@pytest.mark.cell("Checkpoints", "trainer.fit(ckpt_path={which})")
def test_fit_goes_on_from_a_checkpoint(trained, which, tmp_path):
    folder, _, _ = trained
    path = folder / {"best": "best.ckpt", "last": "last.ckpt", "a path": "2.ckpt"}.get(which, "5.ckpt")
    epochs = 6 if which in ("best", "a path") else 8
    model, run = Net(seed=4), trainer(tmp_path, ours(), max_epochs=epochs)
    run.fit(model, Batches(), ckpt_path=path)
    assert run.current_epoch == epochs
    assert widths(model) == SMALL


@pytest.mark.cell("Checkpoints", 'fit(ckpt_path="last") after a run of the same Trainer')
def test_the_same_trainer_resumes_its_last(trained):
    _, run, model = trained
    run.fit_loop.max_epochs = 7
    run.fit(model, Batches(), Batches(seed=1), ckpt_path="last")
    assert run.current_epoch == 7
    assert widths(model) == SMALL


@pytest.mark.parametrize("name", ["slim.ckpt", "2.ckpt", "best.ckpt"])
@pytest.mark.cell("Checkpoints", "lightning_embed.load_from_checkpoint, no Trainer ({name})")
def test_our_loader(trained, name):
    folder, _, _ = trained
    model = le.load_from_checkpoint(Net, folder / name)
    saved = torch.load(folder / name, weights_only=True)["state_dict"]
    assert all(torch.equal(one, saved[key]) for key, one in model.named_parameters())


class Late(Net):
    """Builds its layers when Lightning asks for them."""

    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = Net().net


@pytest.mark.cell("Checkpoints", "layers built in configure_model: fit, test and our loader")
def test_layers_built_late(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="late", every_n_epochs=5)
    run = trainer(tmp_path, [*ours(), saving], max_epochs=5, enable_checkpointing=True)
    run.fit(Late(), Batches())
    fresh = Late()
    trainer(tmp_path, ours()).test(fresh, Batches(), ckpt_path=tmp_path / "late.ckpt", verbose=False)
    assert widths(fresh) == widths(le.load_from_checkpoint(Late, tmp_path / "late.ckpt")) == SMALL


@pytest.mark.cell("Checkpoints", "save_weights_only=True")
def test_weights_only_files_hold_the_architecture(trained, tmp_path):
    folder, _, _ = trained
    saved = torch.load(folder / "slim.ckpt", weights_only=True)
    assert "callbacks" not in saved
    model = Net(seed=3)
    trainer(tmp_path, ours()).test(model, Batches(), ckpt_path=folder / "slim.ckpt", verbose=False)
    assert widths(model) == SMALL


@pytest.mark.cell("Checkpoints", "torch.load(weights_only=True) of every file")
def test_files_are_plain_data(trained):
    folder, _, _ = trained
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) >= 9
    for file in files:
        torch.load(file, weights_only=True)


@pytest.mark.cell("Checkpoints", "load_from_checkpoint of Lightning, module attached in its constructor")
def test_lightnings_own_loader_on_a_module_that_attaches_itself(trained):
    class Attached(Net):
        def __init__(self):
            super().__init__()
            le.attach(self)

    folder, _, _ = trained
    assert widths(Attached.load_from_checkpoint(folder / "last.ckpt")) == SMALL


@pytest.mark.cell("Checkpoints", "a checkpoint from before the callback was added")
def test_a_checkpoint_without_us(tmp_path):
    before = trainer(tmp_path, max_epochs=2)
    before.fit(Net(), Batches())
    before.save_checkpoint(tmp_path / "before.ckpt")
    model, run = Net(seed=1), trainer(tmp_path, ours())
    run.fit(model, Batches(), ckpt_path=tmp_path / "before.ckpt")
    assert widths(model) == SMALL
    assert [epoch for _, _, epoch in merges(run)] == [3, 3, 4]  # nothing was recorded in epoch 1


@pytest.mark.cell("Checkpoints", "a checkpoint with merges, the callback removed: refused, naming the remedy")
def test_without_the_callback_the_key_says_what_to_do(trained, tmp_path):
    folder, _, _ = trained
    with pytest.raises(RuntimeError, match=r"call lightning_embed\.attach on the model before loading"):
        trainer(tmp_path).fit(Net(), Batches(), ckpt_path=folder / "last.ckpt")


@pytest.mark.parametrize("damage", ["key", "tensor", "other model", "truncated"])
@pytest.mark.cell("Checkpoints", "damaged ({damage}): a clear error, the model unchanged")
def test_damage_is_refused(trained, tmp_path, damage):
    folder, _, _ = trained
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    state = saved["state_dict"]
    if damage == "key":
        state[KEY] = state[KEY][:-7]
    elif damage == "tensor":
        state["net.0.weight"] = torch.zeros(5, 4)
    elif damage == "other model":
        state[KEY] = torch.tensor(list(bytes(state[KEY].tolist()).replace(b"net.", b"web.")), dtype=torch.uint8)
    file = tmp_path / "damaged.ckpt"
    torch.save(saved, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-2000])
    model = Net(seed=5)
    old = {name: (one, one.detach().clone()) for name, one in model.named_parameters()}
    refused = OSError if damage == "truncated" else le.CheckpointError  # torch's own, of a file it cannot read
    with pytest.raises(refused, match=r"damaged|another architecture|changed after saving|Invalid argument"):
        trainer(tmp_path, ours()).fit(model, Batches(), ckpt_path=file)
    assert all(one is old[name][0] and torch.equal(one, old[name][1]) for name, one in model.named_parameters())


@pytest.mark.cell("Checkpoints", "damaged calibration data: a clear error")
def test_damaged_calibration_data(trained, tmp_path):
    folder, _, _ = trained
    saved = torch.load(folder / "1.ckpt", weights_only=True)
    (state,) = [one for one in saved["callbacks"].values() if "tapes" in one]
    state["tapes"][0][0]["steps"][0]["function"] = ["torch", "", "load"]
    torch.save(saved, tmp_path / "damaged.ckpt")
    with pytest.raises(le.CheckpointError, match=r"call \.load, no function of tensors"):
        trainer(tmp_path, ours()).fit(Net(), Batches(), ckpt_path=tmp_path / "damaged.ckpt")
