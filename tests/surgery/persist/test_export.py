"""Export: plain torch, the same outputs bit for bit, in onnxruntime up to rounding; the model itself is left alone."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

import lightning_embed as le
from tests.surgery.steps import layer_merge, mlp, neuron_merge, plan
from tests.tolerances import tolerance


def data(samples=50, dtype=torch.float64):
    return torch.randn(samples, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def merged(**options):
    """3-6-6-2, the first layer merged into the second, of which four neurons are left."""
    model = mlp(3, 6, 6, 2, **options)
    le.apply(model, plan(layer_merge(model), neuron_merge(model, [[0, 1], [3, 5]], layer="2", consumer="4")))
    return model


def test_a_merged_sequential_is_one_that_plain_torch_would_build():
    model = merged()
    before = copy.deepcopy(model.state_dict())
    exported = le.export(model)
    assert [type(one) for one in exported] == [nn.Linear, nn.Tanh, nn.Linear]
    assert torch.equal(exported(data()), model(data()))
    fresh = mlp(3, 4, 2, seed=9)
    fresh.load_state_dict(exported.state_dict())
    assert torch.equal(fresh(data()), model(data()))
    assert not any(one._state_dict_hooks or one._load_state_dict_pre_hooks for one in exported.modules())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert len(model) == 5
    assert all(new is not old for new in exported.parameters() for old in model.parameters())


def test_it_is_unpickled_and_run_where_there_is_no_lightning_embed(tmp_path):
    model = merged()
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((le.export(model.eval()), data(), model(data()).detach())))
    code = (
        "import pickle, sys, torch; sys.modules['lightning_embed'] = None; "
        "model, x, y = pickle.load(open('model.pickle', 'rb')); assert torch.equal(model(x), y); "
        "assert not model.training"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


class Indexing(nn.Module):
    """Has a Sequential that it calls as one, one that it indexes, and an activation that it calls by name."""

    def __init__(self):
        super().__init__()
        self.whole = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 4), nn.Tanh())
        self.parts = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.act = nn.Identity()

    def forward(self, x):
        x = self.act(self.whole(x))
        for at in (0, 1, 2, 3, 2):
            x = self.parts[at](x)
        return x


@pytest.mark.parametrize("given", [False, True])
def test_sequentials_in_other_modules_are_tried_on_data_and_kept_as_they_are_without(given):
    torch.manual_seed(0)
    model = Indexing().double()
    exported = le.export(model, data()) if given else le.export(model)
    assert torch.equal(exported(data()), model(data()))
    assert list(exported.whole._modules) == (["0", "1", "2"] if given else ["0", "1", "2", "3"])
    assert list(exported.parts._modules) == ["0", "1", "2", "3", "4"]
    assert isinstance(exported.act, nn.Identity)
    assert len(model.whole) == 4


class Half(nn.Sequential):
    """Calls its children in turn, but has a way of its own to call some of them."""

    def first(self, x):
        return self[:2](x)


def test_names_stay_where_children_have_names_and_own_code_is_not_cut():
    named = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Identity(), c=nn.Sequential(nn.Identity(), nn.Tanh())))
    assert list(le.export(named).state_dict()) == ["a.weight", "a.bias"]
    assert [list(one._modules) for one in (le.export(named), le.export(named).c)] == [["a", "c"], ["0"]]
    half = Half(nn.Identity(), nn.Linear(3, 3), nn.Tanh())
    assert torch.equal(le.export(half).first(data(2, torch.float32)), half.first(data(2, torch.float32)))


def test_hooks_of_the_users_own_stay():
    model = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.Identity(), nn.Linear(3, 2)).double()
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    exported = le.export(model)
    assert len(exported) == 3
    assert torch.equal(exported(data()), model(data()))


def test_the_state_dict_of_an_export_has_no_key_of_ours_and_modes_stay():
    model = merged()
    model[3].eval()
    exported = le.export(model)
    assert list(exported.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [exported[1].training, exported[2].training, exported.training] == [False, True, True]


def test_what_cannot_be_run_or_copied_is_refused():
    model = Indexing().double()
    with pytest.raises(le.InputError, match="call="):
        le.export(model, [{"x": data()}])
    with pytest.raises(le.InputError, match="empty"):
        le.export(model, data(0))
    model.file = sys.stdout
    with pytest.raises(le.InputError, match="cannot be copied"):
        le.export(model)


def test_onnxruntime_computes_the_same(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    model, x = merged(dtype=torch.float32, activation=nn.GELU).eval(), data(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter uses deprecated functions of its own
        torch.onnx.export(
            le.export(model),
            (x,),
            tmp_path / "model.onnx",
            dynamo=True,
            dynamic_shapes=({0: "samples"},),
            verbose=False,
        )
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    fixed = torch.__version__ < "2.7"  # its exporter knows no other shapes
    for rows in (x,) if fixed else (x, x[:7]):
        (found,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(rows).detach(), **tolerance(torch.float32))
