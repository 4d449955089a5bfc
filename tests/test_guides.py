"""docs/guides.md: every program in it runs, and does what it does with its swaps undone."""

import re
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

GUIDES = Path(__file__).resolve().parents[1] / "docs" / "guides.md"
SECTIONS = GUIDES.read_text().split("\n## ")[1:]
PROGRAMS = {
    section.splitlines()[0]: code
    for section in SECTIONS
    for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
}
SWAPPED = re.compile(r"^(.*)\bmlp_ext[.\w]+(.*)  # was: (\S+)$", re.MULTILINE)
ADDED = re.compile(r"^.*  # new\n", re.MULTILINE)


def without_swaps(code: str) -> str:
    return ADDED.sub("", SWAPPED.sub(r"\1\3\2", code))


def test_what_is_found():
    assert len(PROGRAMS) == 6 == GUIDES.read_text().count("```python")
    for code in PROGRAMS.values():
        assert "mlp_ext" in code and "mlp_ext" not in without_swaps(code)
        assert len(SWAPPED.findall(code)) + len(ADDED.findall(code)) <= 6, "about five lines"


@pytest.fixture
def one_process_group(monkeypatch):
    """What torchrun tells its processes, for a group of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**values, "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, str(value))
    # A DistributedDataParallel that is the last to hold its group waits, with the GIL, for a thread
    # that at times waits for the GIL (torch 2.13): here the last one is the group's own object.
    kept, destroy = [], dist.destroy_process_group
    monkeypatch.setattr(
        dist, "destroy_process_group", lambda: (kept.append(dist.group.WORLD), destroy())
    )
    yield


def run(code: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    names: dict = {"__name__": "guide"}
    exec(compile(code, str(GUIDES), "exec"), names)
    return names["model"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("title", PROGRAMS)
def test_the_same_parameters(title, one_process_group, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ours, plain = (run(code, 3) for code in (PROGRAMS[title], without_swaps(PROGRAMS[title])))
    swapped = any(type(m).__module__.startswith("mlp_ext") for m in ours.modules())
    assert swapped or "TrainStep" in PROGRAMS[title]  # which leaves the model as it is
    assert not any(type(m).__module__.startswith("mlp_ext") for m in plain.modules())
    values = plain.state_dict()
    assert list(ours.state_dict()) == list(values)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(
            value, values[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
