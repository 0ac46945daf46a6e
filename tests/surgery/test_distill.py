"""Distillation: the loss by its formula, nearer to the teacher afterwards, everything else as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_embed as le
from lightning_embed.surgery.decide.check import Check
from lightning_embed.tape import record
from tests.surgery.steps import mlp


def data(samples=256, columns=3, dtype=torch.float64, seed=1):
    return torch.randn(samples, columns, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pair(*, activation=nn.Tanh):
    return mlp(3, 6, 4, activation=activation, seed=1), mlp(3, 12, 4, activation=activation, seed=0)


def state(model):
    return copy.deepcopy({**dict(model.named_parameters()), **dict(model.named_buffers())})


@pytest.mark.parametrize("columns", [1, 4])
def test_the_loss_is_the_squared_change_plus_the_divergence_of_the_scores(columns):
    student, teacher = mlp(3, 6, columns, seed=1), mlp(3, 12, columns, seed=0)
    new, old = student(data()).detach(), teacher(data()).detach()
    spread = old - old.mean(0)
    expected = (new - old).norm() ** 2 / spread.norm() ** 2
    temperature = spread.square().mean().sqrt() / 4
    p, q = (old / temperature).softmax(1), (new / temperature).softmax(1)
    expected += (p * (p / q).log()).sum(1).mean()
    (loss,) = le.distill(student, teacher, data(), epochs=1, lr=1e-3, batch=1000)
    assert loss == pytest.approx(expected.item(), rel=1e-9)


def test_the_units_of_the_outputs_do_not_matter():
    student, teacher = pair()
    scaled, large = copy.deepcopy(student), copy.deepcopy(teacher)
    for one in (scaled, large):
        one[2].weight.data *= 1e4
        one[2].bias.data *= 1e4
    losses = [le.distill(s, t, data(), epochs=1, lr=1e-9) for s, t in ((student, teacher), (scaled, large))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("columns", [1, 4])
def test_a_cut_network_comes_nearer_to_the_original_on_other_data(columns):
    teacher = mlp(3, 24, 24, columns)
    student = le.prune(teacher, data(), widths={"0": 6, "2": 6}, match=False).model
    check = Check(teacher, record(teacher, [data(seed=2)]), None)
    before = check.effect(student)
    losses = le.distill(student, teacher, data(1500, seed=3), epochs=40, lr=1e-2, batch=500)
    after = check.effect(student)
    assert losses[-1] < losses[0]
    assert after.change < 0.9 * before.change
    assert columns == 1 or after.agreement > before.agreement


class Odd(nn.Module):
    """Has dropout, a batch norm, a frozen layer and keyword arguments."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.b, self.c = nn.Linear(5, 2), nn.Linear(5, 1)
        self.b.requires_grad_(False)

    def forward(self, x, scale):
        h = self.drop(torch.relu(self.norm(self.a(x))))
        return {"scores": self.b(h) * scale, "value": self.c(h), "class": self.b(h).argmax(1)}


def test_modes_buffers_gradients_frozen_parameters_random_state_and_the_teacher_stay():
    torch.manual_seed(0)
    teacher, student = Odd(), Odd()
    student.a.weight.grad = torch.ones(5, 3)
    before, frozen = state(teacher), student.b.weight.clone()
    buffers = copy.deepcopy(list(student.buffers()))
    random = torch.get_rng_state()
    batches = [{"x": data(20, dtype=torch.float32, seed=seed), "scale": 2.0} for seed in range(2)]
    losses = le.distill(student, teacher, batches, epochs=20, lr=0.05, call=lambda batch: teacher(**batch))
    assert losses[-1] < losses[0] / 2
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(state(teacher), before, rtol=0, atol=0)
    torch.testing.assert_close(list(student.buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(student.b.weight, frozen)
    assert torch.equal(student.a.weight.grad, torch.ones(5, 3))
    assert student.c.weight.grad is None
    assert student.training
    assert student.norm.training
    assert teacher.training


def test_only_what_output_selects_counts():
    torch.manual_seed(0)
    teacher, student = Odd(), Odd()
    untouched = student.c.weight.clone()
    batches = [{"x": data(20, dtype=torch.float32), "scale": 2.0}]
    options = {"call": lambda batch: teacher(**batch), "output": lambda outputs: outputs["scores"]}
    le.distill(student, teacher, batches, epochs=3, lr=0.01, **options)
    assert torch.equal(student.c.weight, untouched)
    with pytest.raises(le.InputError, match="output="):
        le.distill(student, teacher, batches, epochs=1, lr=0.01, **{**options, "output": lambda o: o["class"]})


def test_a_tensor_a_list_and_a_loader_are_the_same_data():
    student, teacher = pair()
    x = data()
    kinds = [x, [x], DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))]
    students = [copy.deepcopy(student) for _ in kinds]
    losses = [
        le.distill(one, teacher, kind, epochs=2, lr=1e-2, batch=len(x))
        for one, kind in zip(students, kinds, strict=True)
    ]
    for one, loss in zip(students[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-12)
        torch.testing.assert_close(state(one), state(students[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loader", [False, True])
def test_the_seed_alone_decides_the_order(loader):
    student, teacher = pair()
    students = [copy.deepcopy(student) for _ in range(3)]
    for number, (one, seed) in enumerate(zip(students, (0, 0, 1), strict=True)):
        torch.manual_seed(number)
        given = DataLoader(TensorDataset(data()), batch_size=32, shuffle=True) if loader else data()
        le.distill(one, teacher, given, epochs=1, lr=1e-2, batch=32, seed=seed)
    torch.testing.assert_close(state(students[0]), state(students[1]), rtol=0, atol=0)
    assert not torch.equal(students[0][0].weight, students[2][0].weight)


def test_outputs_that_are_constant_are_learned_too():
    student, teacher = pair()
    teacher[2].weight.data.zero_()
    le.distill(student, teacher, data(), epochs=60, lr=3e-2, batch=256)
    torch.testing.assert_close(student(data()), teacher(data()), rtol=0.05, atol=0.05)


# refused: with a reason, and the student as it was


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (data(0), {}, "empty"),
        (torch.tensor(1.0), {}, "empty"),
        ([], {}, "empty"),
        (7, {}, "data must be"),
        ("digits", {}, "data must be"),
        (iter([data()]), {"epochs": 2}, "iterator"),
        (data(), {"epochs": 0}, "epochs"),
        (data(), {"batch": 0}, "batch"),
        (data(), {"lr": 0.0}, "lr"),
        (data(), {"lr": float("nan")}, "lr"),
        (data(columns=2), {}, "call="),
        ([data(), float("nan") * data()], {}, "epoch 1, batch 2"),
        (data(), {"epochs": 3, "lr": 1e300}, "lr"),
    ],
)
def test_bad_input_is_refused_and_the_student_put_back(batches, options, message):
    student, teacher = pair(activation=nn.ReLU)
    before = state(student)
    with pytest.raises(le.InputError, match=message):
        le.distill(student, teacher, batches, **{"epochs": 1, "lr": 1e-2, **options})
    torch.testing.assert_close(state(student), before, rtol=0, atol=0)


def test_networks_that_do_not_fit_are_refused():
    student, teacher = pair()
    options = {"epochs": 1, "lr": 1e-2}
    with pytest.raises(le.InputError, match=r"\(128, 2\).*\(128, 4\)"):
        le.distill(mlp(3, 6, 2), teacher, data(), **options)
    with pytest.raises(le.InputError, match="called as the teacher is"):
        le.distill(mlp(2, 6, 4), teacher, data(), **options)
    with pytest.raises(le.InputError, match="student must be"):
        le.distill("net", teacher, data(), **options)
    with pytest.raises(le.InputError, match="share"):
        le.distill(teacher, teacher, data(), **options)
    student.register_parameter("unused", nn.Parameter(torch.ones(1)))
    student[:3].requires_grad_(False)
    with pytest.raises(le.InputError, match="depend on no trainable parameter"):
        le.distill(student, teacher, data(), **options)
    with pytest.raises(le.InputError, match="has no trainable parameter"):
        le.distill(student.requires_grad_(False), teacher, data(), **options)
