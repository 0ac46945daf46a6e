"""Self-describing state dicts: merged and original sizes load into one another."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.surgery import KEY, read_architecture
from tests.surgery.steps import layer_merge, mlp, neuron_merge, plan


def merged(seed=0):
    model = mlp(3, 6, 5, 4, 2, seed=seed)
    le.apply(model, plan(layer_merge(model, "2", "3", "4"), neuron_merge(model, [[0, 1], [2, 3]], consumer="4")))
    return model


def same(a, b):
    x = torch.randn(7, 3, dtype=torch.float64)
    return torch.equal(a(x), b(x))


def test_a_merged_state_dict_narrows_a_model_of_the_original_size():
    model, fresh = merged(), mlp(3, 6, 5, 4, 2, seed=1)
    le.attach(fresh)
    fresh.load_state_dict(model.state_dict())
    assert same(model, fresh)
    assert fresh[0].out_features == 4
    assert isinstance(fresh[2], nn.Identity)
    assert isinstance(fresh[3], nn.Identity)
    assert read_architecture(fresh.state_dict()) == read_architecture(model.state_dict())


def test_an_original_state_dict_grows_a_merged_model_back():
    original, model = mlp(3, 6, 5, 4, 2, seed=1), merged()
    original.load_state_dict(original.state_dict())
    model.load_state_dict(original.state_dict())
    assert same(model, original)
    assert isinstance(model[3], nn.Tanh)
    assert [str(one) for one in model] == [str(one) for one in original]
    assert all(one.requires_grad for one in model.parameters())


def test_an_attached_but_unmerged_checkpoint_grows_it_back_too():
    original, model = mlp(3, 6, 5, 4, 2, seed=1), merged()
    le.attach(original)
    model.load_state_dict(original.state_dict())
    assert same(model, original)
    assert model.state_dict().keys() == original.state_dict().keys()


def test_it_survives_copy_pickle_and_a_prefix():
    for model in (copy.deepcopy(merged()), pickle.loads(pickle.dumps(merged()))):
        outer, fresh = nn.ModuleDict({"body": model}), nn.ModuleDict({"body": mlp(3, 6, 5, 4, 2, seed=1)})
        le.attach(fresh["body"])
        fresh.load_state_dict(outer.state_dict())
        assert same(fresh["body"], model)


def test_weights_only_file_and_loader(tmp_path):
    model = merged()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = le.load_from_checkpoint(Small, tmp_path / "model.pt")
    assert same(loaded, model)
    torch.save([1], tmp_path / "other.pt")
    with pytest.raises(le.CheckpointError, match="holds a list"):
        le.load_from_checkpoint(Small, tmp_path / "other.pt")


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp(3, 6, 5, 4, 2, seed=2))


def test_unattached_model_is_told_what_to_do():
    with pytest.raises(RuntimeError, match=r"call lightning_embed\.attach"):
        mlp(3, 6, 5, 4, 2).load_state_dict(merged().state_dict())


def test_detached_model_has_plain_keys():
    model = merged()
    le.detach(model)
    le.detach(model)
    assert not [key for key in model.state_dict() if "lightning_embed" in key]
    le.attach(model)
    assert KEY not in model.state_dict()  # it is what it is now that counts as built


@pytest.mark.parametrize("damage", [b"{", b'{"format": 1}', b'{"format": 99, "slots": {}, "history": []}', b"\xff"])
def test_damaged_key_is_refused_and_nothing_changes(damage):
    state, fresh = merged().state_dict(), mlp(3, 6, 5, 4, 2, seed=1)
    le.attach(fresh)
    before = copy.deepcopy(fresh.state_dict())
    state[KEY] = torch.tensor(list(damage), dtype=torch.uint8)
    with pytest.raises(le.CheckpointError, match=r"damaged|format 99"):
        fresh.load_state_dict(state)
    torch.testing.assert_close(fresh.state_dict(), before, rtol=0, atol=0)


def test_another_architecture_is_refused_and_nothing_changes():
    other = mlp(3, 4, 2)
    le.attach(other)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(le.CheckpointError, match="another architecture"):
        other.load_state_dict(merged().state_dict())
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)
    state = merged().state_dict()
    state["0.weight"] = state["0.weight"][:2]
    fresh = mlp(3, 6, 5, 4, 2)
    le.attach(fresh)
    with pytest.raises(le.CheckpointError, match="holds"):
        fresh.load_state_dict(state)
    assert fresh[0].out_features == 6


def test_a_checkpoint_that_fits_the_first_slots_alone_is_refused_and_nothing_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.PReLU(6), nn.Linear(6, 2)).double()
    le.apply(model, plan(neuron_merge(model, [[0, 1]], per_neuron=[("1.weight", 0)])))
    other = mlp(3, 6, 2)
    le.attach(other)
    before = list(other.parameters())
    with pytest.raises(le.CheckpointError, match="has no weight"):
        other.load_state_dict(model.state_dict())
    assert all(old is new for old, new in zip(before, other.parameters(), strict=True))
    assert other[0].out_features == other[2].in_features == 6


def test_batch_norm_and_prelu_follow():
    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 2)).double().eval()

    cut = [("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0), ("2.weight", 0)]
    model, fresh = build(0), build(1)
    le.apply(model, plan(neuron_merge(model, [[0, 1]], consumer="3", per_neuron=cut)))
    assert model[1].num_features == model[2].num_parameters == 5
    le.attach(fresh)
    fresh.load_state_dict(model.state_dict())
    assert same(fresh, model)
    assert fresh[1].num_features == 5
    fresh.load_state_dict(build(2).state_dict())
    assert same(fresh, build(2))
    assert fresh[1].num_features == 6


def test_the_fused_transformer_path_forgets_a_removed_activation():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    fresh = copy.deepcopy(encoder)
    le.apply(encoder, plan(layer_merge(encoder, "layers.0.linear1", "layers.0.activation", "layers.0.linear2")))
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        fused = encoder(x)
    torch.testing.assert_close(fused, encoder(x), rtol=1e-4, atol=1e-5)
    le.attach(fresh)
    fresh.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(x), fused, rtol=0, atol=0)


@pytest.mark.parametrize("content", [{"weight": torch.ones(2, 2)}, {"epoch": 3, "model": {}}, [1, 2]])
def test_a_file_of_another_class_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(le.CheckpointError, match="not"):
        le.load_from_checkpoint(nn.Tanh, tmp_path / "other.pt")


def test_slots_that_grow_back_take_the_mode_and_lose_an_added_bias():
    original = mlp(3, 6, 2, bias=False)
    model = copy.deepcopy(original)
    step = neuron_merge(model, [[0, 1]])
    step.shift[1] = 0.5
    le.apply(model, plan(step, layer_merge(mlp(3, 5, 2))))
    assert model[2].bias is not None
    model.eval().load_state_dict(original.state_dict())
    assert same(model, original)
    assert model[2].bias is None
    assert not any(one.training for one in model.modules())


def test_tensors_changed_after_saving_are_found_behind_a_prefix():
    outer, fresh = nn.ModuleDict({"body": merged()}), nn.ModuleDict({"body": mlp(3, 6, 5, 4, 2)})
    le.attach(fresh["body"])
    state = outer.state_dict()
    state["body.0.weight"] = state["body.0.weight"][:2]
    with pytest.raises(le.CheckpointError, match="holds"):
        fresh.load_state_dict(state)


class Sized(nn.Module):
    """Takes its options by name; hears of the checkpoint that it is loaded from."""

    def __init__(self, width=2, slope=1.0):
        super().__init__()
        self.net, self.slope, self.heard = nn.Linear(3, width), slope, None

    def on_load_checkpoint(self, checkpoint):
        self.heard = checkpoint["note"]


class Open(Sized):
    def __init__(self, **options):
        super().__init__(**options)


@pytest.mark.parametrize(("cls", "extra"), [(Sized, {"unknown": 1}), (Open, {})])
def test_saved_hyper_parameters_build_the_module_and_arguments_win(tmp_path, cls, extra):
    saved = {"state_dict": Sized(5).state_dict(), "hyper_parameters": {"width": 5, "slope": 2.0, **extra}, "note": 7}
    torch.save(saved, tmp_path / "a.ckpt")
    loaded = le.load_from_checkpoint(cls, tmp_path / "a.ckpt", slope=3.0)
    assert (loaded.net.out_features, loaded.slope, loaded.heard) == (5, 3.0, 7)
    torch.testing.assert_close(loaded.net.weight.data, saved["state_dict"]["net.weight"], rtol=0, atol=0)


class Nested(nn.Module):
    """What packages save: a part of the whole."""

    def __init__(self, seed=0):
        super().__init__()
        self.body = nn.ModuleDict({"net": mlp(3, 6, 5, 4, 2, seed=seed)})

    def forward(self, x):
        return self.body["net"](x)


def nested():
    model = Nested()
    le.apply(model, plan(neuron_merge(model, [[0, 1], [2, 3]], layer="body.net.0", consumer="body.net.2")))
    return model


def keys(state):
    return sorted(key.removesuffix(KEY) for key in state if key.endswith(KEY))


def test_the_key_is_there_only_while_something_is_merged():
    model, plain = nested(), Nested(1)
    le.attach(plain)
    assert keys(plain.state_dict()) == []
    assert keys(model.state_dict()) == ["", "body.", "body.net."]
    model.load_state_dict(plain.state_dict())
    assert same(model, plain)
    assert keys(model.state_dict()) == []


@pytest.mark.parametrize("saved", ["", "body", "body.net"])
@pytest.mark.parametrize("loaded", ["", "body", "body.net"])
def test_any_part_is_saved_and_loaded_inside_loading(saved, loaded):
    model, fresh = nested(), Nested(1)
    state = {f"{saved}.{name}".lstrip("."): one for name, one in model.get_submodule(saved).state_dict().items()}
    state = {name.removeprefix(loaded).lstrip("."): one for name, one in state.items() if name.startswith(loaded)}
    with le.loading():
        fresh.get_submodule(loaded).load_state_dict(state)
    assert same(fresh, model)
    # and the part that was loaded describes itself again, whichever module is asked
    again = Nested(2)
    with le.loading():
        again.load_state_dict(fresh.state_dict())
    assert same(again, model)
    if loaded in ("", "body"):
        le.attach(again)
        again.load_state_dict(Nested(3).state_dict())
        assert same(again, Nested(3))


def test_loading_leaves_nothing_behind_and_needs_no_merged_state_dict():
    before, fresh = nn.Module.load_state_dict, Nested(1)
    with le.loading(), le.loading():
        fresh.load_state_dict(Nested(2).state_dict())
    with pytest.raises(RuntimeError, match="Missing"), le.loading():
        fresh.load_state_dict({})
    assert nn.Module.load_state_dict is before
    assert same(fresh, Nested(2))
    assert not any(one._state_dict_hooks or one._load_state_dict_pre_hooks for one in fresh.modules())


def test_a_part_goes_on_being_merged_and_saved_as_a_whole():
    model, part = nested(), Nested(1)
    with le.loading():
        part.body["net"].load_state_dict(model.body["net"].state_dict())
    le.apply(
        part,
        plan(
            dataclasses.replace(
                layer_merge(part.body["net"], "2", "3", "4"),
                layer="body.net.2",
                region_modules=("body.net.3",),
                consumers=("body.net.4",),
            )
        ),
    )
    fresh = Nested(2)
    le.attach(fresh)
    fresh.load_state_dict(part.state_dict())
    assert same(fresh, part)
    assert isinstance(fresh.body["net"][3], nn.Identity)
    assert fresh.body["net"][0].out_features == 4


def test_pickle_torch_and_safetensors_ways(tmp_path):
    model = nested()
    torch.save(model, tmp_path / "whole.pt")
    assert same(torch.load(tmp_path / "whole.pt", weights_only=False), model)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with le.loading():
        fresh = Nested(1)
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(fresh, model)
    safe = pytest.importorskip("safetensors.torch")
    safe.save_model(model, str(tmp_path / "a.safetensors"))
    with le.loading():
        fresh = Nested(1)
        safe.load_model(fresh, tmp_path / "a.safetensors")
    assert same(fresh, model)


class OwnWay(Small):
    """A class with a way of its own to be loaded."""

    @classmethod
    def load_from_checkpoint(cls, path, strict=True):
        model = cls()
        model.load_state_dict(torch.load(path)["weights"], strict=strict)
        return model


def test_the_classs_own_way_to_load_is_used(tmp_path):
    model = merged()
    torch.save({"weights": model.state_dict()}, tmp_path / "a.ckpt")
    loaded = le.load_from_checkpoint(OwnWay, tmp_path / "a.ckpt", strict=True)
    assert same(loaded, model)
    assert le.attach(loaded).history == le.attach(model).history
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    assert same(le.load_from_checkpoint(OwnWay, tmp_path / "plain.pt"), model)
