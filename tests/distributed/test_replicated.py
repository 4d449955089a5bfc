"""DistributedDataParallel and ZeroRedundancyOptimizer over our modules, losses and optimizers.

Two processes, each with half of every batch, end with the parameters that one process has which
trains plain PyTorch on the whole. The checks are in replicated.py; one group runs all of them.
"""

import copy

import pytest
import torch
from group import Group
from training import (
    LEARNING_RATE,
    LOSSES,
    OPTIMIZERS,
    net,
    optimizer_of,
    parameters,
    train,
    trained_alone,
)

import mlp_ext

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
VIEWS = ("AdamW", "zero_views_of_buckets")
forms = pytest.mark.parametrize("form", ["fused", "own"])


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return Group("replicated", tmp_path_factory.mktemp("replicated"))


EXPECTED = {
    "ddp": lambda: trained_alone(),
    "ddp_views_of_buckets": lambda: trained_alone(),
    "ddp_static_graph": lambda: trained_alone("SGD", clip=0.1),
    "ddp_unused_parameters": lambda: trained_alone(),
    "ddp_accumulated": lambda: trained_alone("SGD"),
    "ddp_hook": lambda: trained_alone(),
    "ddp_broadcast": lambda: parameters(net("plain")),
}


@forms
@pytest.mark.parametrize("name", EXPECTED)
def test_one_process_on_the_whole_batch(group, name, form):
    results = group.results(f"{name}-{form}")
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], EXPECTED[name](), **CLOSE)


@forms
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(group, name, form):
    results = group.results(f"ddp_{name}-{form}")
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], trained_alone(name), **CLOSE)


@forms
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(group, loss, form):
    results = group.results(f"ddp_{loss}-{form}")
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], trained_alone(loss=loss), **CLOSE)


@pytest.mark.parametrize("name", [*OPTIMIZERS, *LOSSES])
def test_accumulated_gradients(group, name):
    options = {"loss": name} if name in LOSSES else {}
    results = group.results(f"ddp_accumulated_{name}-fused")
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    expected = trained_alone("SGD" if options else name, **options)
    torch.testing.assert_close(results[0], expected, **CLOSE)


@forms
def test_master_weights(group, form):
    """The parameters are the roundings of one float32 copy, near what is trained in float32: its
    gradients are rounded to 8 bits."""
    results = group.results(f"master_weights-{form}")
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    masters = results[0]["masters"]
    for parameter, master in zip(results[0]["parameters"], masters, strict=True):
        assert master.dtype == torch.float32 and torch.equal(parameter, master.bfloat16())
        assert not torch.equal(parameter.float(), master)
    start = net("plain").bfloat16().float()
    optimizer = torch.optim.SGD(start.parameters(), lr=LEARNING_RATE, momentum=0.9)
    before = torch.cat([p.flatten() for p in parameters(start)])
    expected = torch.cat([p.flatten() for p in train(start, optimizer, "plain")])
    ours = torch.cat([master.flatten() for master in masters])
    assert (ours - expected).norm() < 0.03 * (expected - before).norm()


@forms
def test_uneven_inputs(group, form):
    ours, plain = (group.results(f"ddp_uneven-{kind}") for kind in (form, "plain"))
    torch.testing.assert_close(ours, plain, **CLOSE)


@forms
@pytest.mark.parametrize("name, check", [*((n, f"zero_{n}") for n in OPTIMIZERS), VIEWS])
def test_an_optimizer_in_parts(group, name, check, form):
    results = group.results(f"{check}-{form}")
    values = [result["parameters"] for result in results]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    torch.testing.assert_close(values[0], trained_alone(name), **CLOSE)
    # What rank 0 has gathered is the state_dict of one optimizer, which goes on alone.
    continued = []
    for kind in (form, "plain"):
        model = net(kind)
        for parameter, value in zip(model.parameters(), values[0], strict=True):
            parameter.data.copy_(value)
        optimizer = optimizer_of(kind, model.parameters(), name)
        optimizer.load_state_dict(copy.deepcopy(results[0]["state"]))
        assert name == "SGD" or optimizer.state[next(model.parameters())]["step"] == 4
        continued.append(train(model, optimizer, kind))
    torch.testing.assert_close(*continued, **CLOSE)
    assert results[1]["state"] is None


def test_samplers_of_each_rank():
    """mlp_ext.data.DataLoader with a DistributedSampler: torch's batches on every rank."""
    data = torch.utils.data.TensorDataset(torch.arange(11.0), torch.arange(11))
    for rank in (0, 1):
        seen = []
        for kind in (mlp_ext.data.DataLoader, torch.utils.data.DataLoader):
            sampler = torch.utils.data.DistributedSampler(data, 2, rank, seed=3)
            loader = kind(data, batch_size=4, sampler=sampler)
            for epoch in (0, 1):
                sampler.set_epoch(epoch)
                seen.append(list(loader))
        torch.testing.assert_close(seen[:2], seen[2:], rtol=0, atol=0)
        assert not torch.equal(seen[0][0][0], seen[1][0][0])
