"""TrainStep over a process group: the parameters of one process on the whole batch, and of DDP.

The checks are in stepping.py; one group runs all of them.
"""

import pytest
import torch
import torch.nn.functional as F
from group import Group
from torch import nn
from training import OPTIMIZERS, X, Y, batches, net, optimizer_of, parameters, trained_alone

from mlp_ext import TrainStep

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STEPS = 4


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return Group("stepping", tmp_path_factory.mktemp("stepping"))


def same_on_each_rank(results):
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    return results[0]


def losses_alone(rank):
    """Of the rank's rows, at the parameters that one process has which trains on all rows."""
    losses = []
    for step, (x, y) in enumerate(batches(rank, 2, STEPS)):
        model = net("plain")
        for p, value in zip(model.parameters(), trained_alone(steps=step), strict=True):
            p.data.copy_(value)
        losses.append(F.cross_entropy(model(x), y).item())
    return losses


CASES = {
    "adam": lambda: trained_alone(),
    **{name: lambda name=name: trained_alone(name) for name in OPTIMIZERS},
    "of_torch": lambda: trained_alone("AdamW"),
    "clipped": lambda: trained_alone("SGD", clip=0.1),
    "epoch_gathered": lambda: trained_alone(),
    "epoch_of_a_loop": lambda: trained_alone(),
}


@pytest.mark.parametrize("name", CASES)
def test_one_process_on_the_whole_batch(group, name):
    results = group.results(name)
    values = same_on_each_rank([result["parameters"] for result in results])
    torch.testing.assert_close(values, CASES[name](), **CLOSE)
    for rank, result in enumerate(results):
        if name in ("adam", "epoch_gathered", "epoch_of_a_loop"):
            assert result["losses"] == pytest.approx(losses_alone(rank), rel=1e-4)
        if "mean" in result:
            assert result["mean"] == pytest.approx(sum(result["losses"]) / STEPS, rel=1e-6)


def test_float64(group):
    values = same_on_each_rank([result["parameters"] for result in group.results("float64")])
    model = net("plain").double()
    optimizer = optimizer_of("plain", model.parameters())
    for x, y in batches(0, 1, STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    torch.testing.assert_close(values, parameters(model), rtol=1e-10, atol=1e-12)


def test_bfloat16(group):
    """Averaged in float32: what TrainStep gives on the whole batch, but for its rounded dW."""
    values = same_on_each_rank([result["parameters"] for result in group.results("bfloat16")])
    model = net("plain")
    optimizer = optimizer_of("plain", model.parameters(), "SGD")
    step = TrainStep(model, F.cross_entropy, optimizer, compute_dtype=torch.bfloat16)
    start = parameters(model)
    for x, y in batches(0, 1, STEPS):
        step(x, y)
    moved = torch.cat([(p - s).flatten() for p, s in zip(parameters(model), start, strict=True)])
    ours = torch.cat([(p - s).flatten() for p, s in zip(values, start, strict=True)])
    assert (ours - moved).norm() < 0.02 * moved.norm()


def test_frozen_layers_and_parameters_of_no_optimizer(group):
    """What is clipped is the norm of all gradients, also of those that no optimizer uses."""
    values = same_on_each_rank(group.results("frozen"))
    model = net("plain")
    model.middle.requires_grad_(False)
    optimizer = optimizer_of("plain", model.body.parameters(), "SGD")
    for x, y in batches(0, 1, STEPS):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    torch.testing.assert_close(values, parameters(model), **CLOSE)


def test_kept_gradients(group):
    """Those of the whole batch, averaged and clipped."""
    grads = same_on_each_rank(group.results("kept_gradients"))
    model = net("plain")
    for p, value in zip(model.parameters(), trained_alone(steps=STEPS - 1, clip=0.1), strict=True):
        p.data.copy_(value)
    F.cross_entropy(model(X + 0.1 * (STEPS - 1)), Y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    torch.testing.assert_close(grads, [p.grad for p in model.parameters()], **CLOSE)


@pytest.mark.parametrize("name", ["as_in_ddp", "as_in_ddp_sum", "as_in_ddp_broadcast"])
def test_batch_norm_and_ragged_batches_as_in_ddp(group, name):
    """Every process counts the same, also with fewer rows; so do its running statistics with DDP's
    broadcast_buffers=False, and with broadcast ones those of the first process do."""
    results = group.results(name)
    same_on_each_rank([ours[0] for ours, _ in results])
    for rank, (ours, ddp) in enumerate(results):
        torch.testing.assert_close(ours[0], ddp[0], **CLOSE)
        if name != "as_in_ddp_broadcast" or rank == 0:
            torch.testing.assert_close(ours[1], ddp[1], **CLOSE)
    assert not torch.equal(results[0][0][1][0], results[1][0][1][0])  # running means of two shards


def test_dropout_draws_in_each_process(group):
    results = group.results("dropout")
    same_on_each_rank([result["parameters"] for result in results])
    assert results[0]["losses"][0] != results[1]["losses"][0]  # the same rows, and other masks


def test_a_group_of_one(group):
    results = group.results("group_of_one")
    torch.testing.assert_close(results[0], trained_alone(), **CLOSE)
    assert not torch.equal(results[0][0], results[1][0])


NOTE = "RuntimeError: TrainStep: of the 2 processes of the group "
FAILURES = {
    "wrong_class": (1, "IndexError: Target 8"),
    "wrong_width": (0, "RuntimeError: TrainStep got an input of shape"),
    "other_parameters": (1, "RuntimeError: TrainStep: the model's parameters"),
    "loader_fails": (1, "OSError: no such file"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_step_that_one_process_fails_is_taken_by_none(group, name):
    """The check has compared parameters and states; the step after it is as if nothing had been."""
    results = group.results(name)
    rank, error = FAILURES[name]
    assert results[rank]["error"].startswith(error), results[rank]["error"]
    expected = f"{NOTE}1 came for a step, 0 to the end of their batches, and 1 failed."
    assert results[1 - rank]["error"].startswith(expected), results[1 - rank]["error"]
    values = same_on_each_rank([result["parameters"] for result in results])
    torch.testing.assert_close(values, trained_alone("SGD", steps=2), **CLOSE)


@pytest.mark.parametrize("name", ["uneven_gathered", "uneven_loop"])
def test_epochs_of_different_lengths(group, name):
    results = group.results(name)
    for result in results:
        assert result["error"].startswith(
            f"{NOTE}1 came for a step, 1 to the end of their batches, and 0 failed."
        ), result["error"]
    values = same_on_each_rank([result["parameters"] for result in results])
    torch.testing.assert_close(values, trained_alone(steps=2), **CLOSE)


def test_a_wrong_class_in_an_epoch(group):
    results = group.results("wrong_class_in_an_epoch")
    assert results[1]["error"].startswith("IndexError: Target 5"), results[1]["error"]
    assert results[0]["error"].startswith(f"{NOTE}1 came for a step"), results[0]["error"]
    values = same_on_each_rank([result["parameters"] for result in results])
    torch.testing.assert_close(values, trained_alone(steps=2), **CLOSE)


def test_an_interrupt_of_one_process(group):
    results = group.results("interrupted")
    assert results[1]["error"].startswith("KeyboardInterrupt"), results[1]["error"]
    assert results[0]["error"].startswith(f"{NOTE}1 came for a step"), results[0]["error"]
    values = same_on_each_rank([result["parameters"] for result in results])
    assert not torch.equal(values[0], net("plain").body[0].weight)


def test_refusals(group):
    first, second = group.results("refusals")
    for errors in (first, second):
        assert errors["shapes"].startswith(
            "ValueError: TrainStep: the processes of the group have different models: process 0 "
            "has 0.weight (8, 6) torch.float32 requires_grad=True on cpu, "
            "and process 1 0.weight (9, 6)"
        ), errors["shapes"]
        assert "process 0 has no more, and process 1 1.weight (3, 3)" in errors["depths"]
        assert errors["ddp"].startswith(
            "ValueError: TrainStep cannot run the model: DistributedDataParallel is not supported; "
            "give TrainStep the module in it, and a process_group"
        ), errors["ddp"]
        assert errors["a name"] == (
            "TypeError: process_group is a torch.distributed.ProcessGroup or None, got str"
        )
        assert errors["copy"].startswith("TypeError: a TrainStep with a process_group")
    cause = "ValueError: TrainStep cannot run '1': Conv1d is not supported"
    assert second["one model"] == cause
    assert first["one model"] == f"ValueError: TrainStep failed in process 1 of the group: {cause}"
    cause = "ValueError: clip_grad_norm is a positive number or None, got -1"
    assert second["a norm"] == cause
    assert first["a norm"] == f"ValueError: TrainStep failed in process 1 of the group: {cause}"
    assert first["no member"] == "none"
    assert second["no member"].startswith("ValueError: TrainStep got a process_group that this")


def test_without_a_group_initialized():
    model = net("plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="process_group, but torch.distributed is not init"):
        TrainStep(model, F.cross_entropy, optimizer, process_group=object())
