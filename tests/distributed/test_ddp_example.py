"""examples/ddp.py under torchrun, with two processes, against plain PyTorch in one."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from group import run_processes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ddp.py"


def example():
    import importlib.util

    spec = importlib.util.spec_from_file_location("example_ddp", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", [[], ["--train-step"]], ids=["loop", "train_step"])
def test_torchrun_and_one_process(options, tmp_path, monkeypatch, capsys):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    run_processes([[*launch, str(EXAMPLE), "--save", "two.pt", *options]], tmp_path)
    log = (tmp_path / "0.log").read_text()
    assert "accuracy of 2 processes" in log, log
    assert len(re.findall(r"^epoch \d/3: loss", log, re.MULTILINE)) == 3

    module = example()
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
    alone = module.main().state_dict()
    assert "accuracy of 1 process:" in capsys.readouterr().out

    # Plain PyTorch on whole batches: both samplers' parts of each batch, in one.
    plain, data = module.make_model(), module.make_data()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    sampler = torch.utils.data.DistributedSampler(data, 1, 0, seed=2)
    loader = torch.utils.data.DataLoader(data, batch_size=module.BATCH, sampler=sampler)
    for epoch in range(module.EPOCHS):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, value in plain.state_dict().items():
        for other in (two, alone):
            torch.testing.assert_close(
                other[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert module.accuracy(plain) > 0.9
