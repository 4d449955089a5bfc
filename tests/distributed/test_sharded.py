"""fully_shard, tensor parallelism and distributed checkpoints over our modules and optimizers.

Two processes end with the parameters of one that trains plain PyTorch. The checks are in
sharded.py; one group runs all of them.
"""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from group import Group
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from training import LOSSES, OPTIMIZERS, net, optimizer_of, train, trained_alone

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STEPS = 4
forms = pytest.mark.parametrize("form", ["fused", "own"])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def halfway(form: str, name: str = "Adam"):
    model = net(form)
    optimizer = optimizer_of(form, model.parameters(), name)
    train(model, optimizer, form, steps=2)
    return model, optimizer


# The checkpoints "of-one-..." that two processes read, and the form of the net that has written
# them: the keys are those of nn.Sequential and a fused one, or those of the net in modules of ours.
WRITERS = {("Adam", "own"): "own", **{(name, "fused"): "plain" for name in ("Adam", *OPTIMIZERS)}}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sharded")
    for (name, form), writer in WRITERS.items():
        values, states = get_state_dict(*halfway(writer, name))
        content = {"model": values, "optimizer": states}
        dcp.save(content, checkpoint_id=folder / f"of-one-{name}-{form}", no_dist=True)
    return Group("sharded", folder)


def load_checkpoint(model, optimizer, path):
    values, states = get_state_dict(model, optimizer)
    dcp.load({"model": values, "optimizer": states}, checkpoint_id=path, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=values, optim_state_dict=states)


def same_on_each_rank(results):
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    return results[0]


# Layers in each stack of a forward. A Linear that is a unit of its own has hooks: left alone.
STACKS = {
    "fused": {"root": [2, 2], "blocks": [2, 2], "linears": []},
    "own": {"root": [2, 2], "blocks": [2, 2], "linears": []},
}


@forms
@pytest.mark.parametrize("where, clip", [("root", None), ("blocks", 0.1), ("linears", None)])
def test_fully_sharded(group, where, clip, form):
    results = group.results(f"fsdp_{where}-{form}")
    values = same_on_each_rank([result["parameters"] for result in results])
    torch.testing.assert_close(values, trained_alone(clip=clip), **CLOSE)
    assert results[0]["stacks"] == STACKS[form][where] * STEPS


@pytest.mark.parametrize("name", [*OPTIMIZERS, *LOSSES])
def test_every_optimizer_and_loss(group, name):
    results = group.results(f"fsdp_{name}-fused")
    values = same_on_each_rank([result["parameters"] for result in results])
    expected = trained_alone(loss=name) if name in LOSSES else trained_alone(name)
    torch.testing.assert_close(values, expected, **CLOSE)


def test_master_weights(group):
    """Sharded as their parameters, which are their roundings."""
    result = same_on_each_rank(group.results("fsdp_master_weights-fused"))
    for parameter, master in zip(result["parameters"], result["masters"], strict=True):
        assert master.dtype == torch.float32 and torch.equal(parameter, master.bfloat16())
        assert not torch.equal(parameter.float(), master)
    # Their checkpoint, read by one process.
    model = net("fused").bfloat16()
    optimizer = optimizer_of("fused", model.parameters(), "AdamW", master_weights=True)
    load_checkpoint(model, optimizer, group.folder / "of-two-masters")
    masters = [optimizer.state[p]["master"] for p in model.parameters()]
    torch.testing.assert_close(masters, result["masters"], rtol=0, atol=0)


@forms
def test_fully_sharded_with_accumulated_gradients(group, form):
    values = same_on_each_rank(group.results(f"fsdp_accumulated-{form}"))
    torch.testing.assert_close(values, trained_alone("SGD"), **CLOSE)


@forms
def test_fully_sharded_in_mixed_precision(group, form):
    ours, plain = (
        same_on_each_rank(group.results(f"fsdp_mixed-{kind}")) for kind in (form, "plain")
    )
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-3)
    assert not torch.equal(plain[0], net("plain").body[0].weight)


def test_fuse_after_sharding(group):
    result = group.results("fuse_after_sharding-fused")[0]
    assert result["how"] == (
        "left alone: PyTorch's own operators run DTensor, a subclass of Tensor"
    )
    torch.testing.assert_close(result["parameters"], trained_alone(), **CLOSE)


@forms
def test_tensor_parallel(group, form):
    values = same_on_each_rank(group.results(f"tensor_parallel-{form}"))
    torch.testing.assert_close(values, trained_alone("SGD"), **CLOSE)


@pytest.mark.parametrize(
    "name, saved_by, loaded_by",
    [
        ("Adam", "fused", "fused"),
        ("Adam", "own", "own"),
        *((name, "fused", "plain") for name in ("Adam", *OPTIMIZERS)),
    ],
)
def test_a_checkpoint_of_two_processes_in_one(group, name, saved_by, loaded_by):
    check = f"save_{name}" if name in OPTIMIZERS else "save"
    expected = same_on_each_rank(group.results(f"{check}-{saved_by}"))
    model = net(loaded_by)
    optimizer = optimizer_of(loaded_by, model.parameters(), name)
    for options in optimizer.param_groups:
        options["lr"] = 77.0
    load_checkpoint(model, optimizer, group.folder / f"of-two-{name}-{saved_by}")
    torch.testing.assert_close(train(model, optimizer, loaded_by, steps=2), expected, **CLOSE)


@pytest.mark.parametrize("name, form", WRITERS)
def test_a_checkpoint_of_one_process_in_two(group, name, form):
    check = f"load_{name}" if name in OPTIMIZERS else "load"
    values = same_on_each_rank(group.results(f"{check}-{form}"))
    model, optimizer = halfway("plain", name)
    torch.testing.assert_close(values, train(model, optimizer, "plain", steps=2), **CLOSE)
