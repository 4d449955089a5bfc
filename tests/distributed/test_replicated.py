"""DistributedDataParallel and ZeroRedundancyOptimizer over our modules, losses and optimizers.

Two processes, each with half of every batch, end with the parameters that one process has which
trains plain PyTorch on the whole. The checks are in replicated.py; one group runs all of them.
"""

import copy

import pytest
import torch
from group import Group
from training import LEARNING_RATE, net, optim, parameters, train, trained_alone

import mlp_ext

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
forms = pytest.mark.parametrize("form", ["fused", "own"])


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return Group("replicated", tmp_path_factory.mktemp("replicated"))


EXPECTED = {
    "ddp": lambda: trained_alone(),
    "ddp_views_of_buckets": lambda: trained_alone(),
    "ddp_static_graph": lambda: trained_alone("SGD", clip=0.1),
    "ddp_unused_parameters": lambda: trained_alone(),
    "ddp_accumulated": lambda: trained_alone("SGD", momentum=0.9),
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
def test_uneven_inputs(group, form):
    ours, plain = (group.results(f"ddp_uneven-{kind}") for kind in (form, "plain"))
    torch.testing.assert_close(ours, plain, **CLOSE)


@forms
@pytest.mark.parametrize("name", ["zero", "zero_views_of_buckets"])
def test_an_optimizer_in_parts(group, name, form):
    results = group.results(f"{name}-{form}")
    values = [result["parameters"] for result in results]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    torch.testing.assert_close(values[0], trained_alone("AdamW"), **CLOSE)
    # What rank 0 has gathered is the state_dict of one optimizer, which goes on alone.
    continued = []
    for kind in (form, "plain"):
        model = net(kind)
        for parameter, value in zip(model.parameters(), values[0], strict=True):
            parameter.data.copy_(value)
        optimizer = optim(kind).AdamW(model.parameters(), lr=LEARNING_RATE)
        optimizer.load_state_dict(copy.deepcopy(results[0]["state"]))
        assert optimizer.state[next(model.parameters())]["step"] == 4
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
