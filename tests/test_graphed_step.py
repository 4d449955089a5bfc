"""TrainStep's way on CUDA, on the CPU: everything but the CUDA graph, which a recording that runs
the work again stands for."""

import copy
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext
from mlp_ext import _graphed_step
from mlp_ext._chain import chain_of
from mlp_ext._graphed_step import OTHER_MODEL, GraphedCore
from mlp_ext._recorded import Recorded
from mlp_ext._step_group import SharedGradients
from mlp_ext._step_parts import hook_dicts, loss_call


def record_by_running_again(work, pool=None):
    work()  # as for a graph
    loss, grads = work()

    def replay():
        again, of_each = work()
        with torch.no_grad():
            loss.copy_(again)
            for grad, value in zip(grads, of_each, strict=True):
                grad.copy_(value)

    return (loss, grads), replay, object() if pool is None else pool


def core_of(model, loss_fn, optimizer, clip=None, record=record_by_running_again):
    hooks = hook_dicts(model, optimizer, loss_fn)
    chain = chain_of(model)
    return GraphedCore(
        model, chain, loss_call(loss_fn), optimizer, clip, None, hooks,
        Recorded(model, chain, loss_fn), record,
    )  # fmt: skip


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
    "norms": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(5, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 8, bias=False),
        nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3), nn.Softplus(),
    ),
    "mlp_ext": lambda: mlp_ext.nn.MLP([5, 8, 8, 3], activation="silu", final_activation="tanh"),
}  # fmt: skip
OPTIMIZERS = {
    "adam": lambda p: mlp_ext.optim.Adam(p, 1e-2),
    "torch-sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "tensor-lr": lambda p: torch.optim.Adam(p, torch.tensor(1e-2)),
}


@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_the_loop(model, optimizer, clip):
    ours = MODELS[model]().double()
    ours[0].weight.requires_grad_(False) if model == "mlp" else None
    twin = copy.deepcopy(ours)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    of_ours = OPTIMIZERS[optimizer]([p for p in ours.parameters() if p.requires_grad])
    of_twin = OPTIMIZERS[optimizer]([p for p in twin.parameters() if p.requires_grad])
    core = core_of(ours, loss_fn, of_ours, clip)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (of_ours, of_twin)]
    for step in range(12):
        x, y = torch.randn(7 if step % 5 else 4, 5).double(), torch.randint(3, (7,))
        y = y[: len(x)]
        loss = core(x, y, False)
        expected = loss_fn(twin(x), y)
        of_twin.zero_grad()
        expected.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        of_twin.step()
        for schedule in schedules:
            schedule.step()
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(ours.state_dict(), twin.state_dict())
    assert all(p.grad is None for p in ours.parameters())


def test_keep_grad():
    model = MODELS["mlp"]()
    core = core_of(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y).backward()
    core(x, y, True)
    kept = [p.grad.clone() for p in model.parameters()]
    torch.testing.assert_close(kept, [p.grad for p in twin.parameters()])
    core(x, y, False)
    torch.testing.assert_close(kept, [p.grad for p in model.parameters()], rtol=0, atol=0)


def test_recording_changes_nothing():
    """Dropout's stream and running statistics are as if the model had run once."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    core = core_of(model, F.cross_entropy, OPTIMIZERS["torch-sgd"](model.parameters()))
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    state = torch.get_rng_state()
    twin = copy.deepcopy(model)
    expected = F.cross_entropy(twin(x), y).detach()
    torch.set_rng_state(state)
    torch.testing.assert_close(core(x, y, False), expected)
    assert int(model[1].num_batches_tracked) == 1
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)


def test_a_child_that_no_batch_goes_through():
    """As on the CPU, it is neither trained nor part of the norm."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    model = Net()
    twin = copy.deepcopy(model.used)
    core = core_of(model, F.cross_entropy, torch.optim.SGD(model.used.parameters(), 0.1), 0.1)
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    core(x, y, True)
    F.cross_entropy(twin(x), y).backward()
    nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    torch.testing.assert_close(
        [p.grad for p in model.used.parameters()], [p.grad for p in twin.parameters()]
    )
    assert model.unused.weight.grad is None


def test_a_recording_of_each_precision():
    """By either of PyTorch's ways to set it, of which one makes the other's getter raise."""
    model, recorded = MODELS["mlp"](), []

    def record(work, pool):
        recorded.append(work)
        return record_by_running_again(work, pool)

    optimizer = OPTIMIZERS["torch-sgd"](model.parameters())
    core = core_of(model, F.cross_entropy, optimizer, record=record)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision, expected in (("ieee", 1), ("tf32", 2), ("ieee", 2), ("tf32", 2)):
            matmul.fp32_precision = precision
            core(torch.randn(6, 5), torch.randint(3, (6,)), False)
            assert len(recorded) == expected
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            core(torch.randn(6, 5), torch.randint(3, (6,)), False)
        assert len(recorded) == 2
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_gradients_of_a_group_lie_in_one_buffer():
    """Each aligned as the kernels like it, with nothing between them that could count in a norm."""
    params = [nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (1,), (4,), (7, 2))]
    shared = SharedGradients(None, 4, params)
    grads = [torch.randn_like(p) for p in params]
    shared.put([grads[0].t().contiguous().t(), *grads[1:]])
    torch.testing.assert_close(shared.views, [grad / 4 for grad in grads])
    start = shared.flat.data_ptr()
    assert [view.data_ptr() - start for view in shared.views] == [0, 64, 80, 96]
    assert all(view.is_contiguous() for view in shared.views)
    norm = torch.nn.utils.get_total_norm(grads)
    torch.testing.assert_close(shared.flat.norm(), norm / 4)


CHANGES = {
    "a-child": lambda m: m.__setitem__(1, nn.Tanh()),
    "a-parameter": lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn(8, 5))),
    "frozen": lambda m: m[0].weight.requires_grad_(False),
    "moved": lambda m: setattr(m[0].weight, "data", torch.randn(8, 5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_sees_changes(change):
    model = MODELS["mlp"]()
    core = core_of(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    assert isinstance(core(x, y, False), torch.Tensor)
    CHANGES[change](model)
    before = copy.deepcopy(model.state_dict())
    assert core(x, y, False) == OTHER_MODEL
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_refuses():
    model = MODELS["mlp"]()
    core = core_of(model, F.cross_entropy, OPTIMIZERS["adam"](model.parameters()))
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="on meta; expected a dense tensor on cpu"):
        core(x.to("meta"), y, False)
    with pytest.raises(RuntimeError, match="requires a gradient"):
        core(x.clone().requires_grad_(), y, False)
    with pytest.raises(ValueError, match="empty batch"):
        core(x[:0], y[:0], False)
    with pytest.raises(RuntimeError, match="autocast"), torch.autocast("cpu"):
        core(x, y, False)
    with pytest.raises(RuntimeError):
        core(x[:, :4], y, False)  # PyTorch's own words
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="a hook was registered"):
        core(x, y, False)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_calls_of_many_threads_do_not_mix():
    """Each gets the loss of its own batch; with a learning rate of 0, all of the same model."""
    model = MODELS["mlp"]()
    core = core_of(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.0))
    batches = [(torch.randn(4, 5), torch.randn(4, 3)) for _ in range(4)]
    expected = [F.mse_loss(model(x), y).item() for x, y in batches]
    found = [set() for _ in batches]

    def calls(i):
        for _ in range(100):
            found[i].add(core(*batches[i], False).item())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=calls, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for losses, loss in zip(found, expected, strict=True):
        assert len(losses) == 1 and losses.pop() == pytest.approx(loss, rel=1e-6)


def test_the_oldest_recording_makes_place(monkeypatch):
    monkeypatch.setattr(_graphed_step, "MOST_RECORDINGS", 2)
    recorded = []

    def record(work, pool):
        recorded.append(None)
        return record_by_running_again(work, pool)

    model = MODELS["mlp"]()
    core = core_of(model, F.mse_loss, torch.optim.SGD(model.parameters(), 0.1), record=record)
    for rows, recordings in ((4, 1), (5, 2), (4, 2), (6, 3), (4, 3), (5, 4), (6, 5)):
        core(torch.randn(rows, 5), torch.randn(rows, 3), False)
        assert len(recorded) == recordings, rows
