"""docs/guides.md: every program in it runs, and does what it does with its swaps undone."""

import functools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def run(code: str, seed: int) -> tuple[dict, bool]:
    """The parameters that the program ends with, and whether its model has modules of ours."""
    torch.manual_seed(seed)
    names: dict = {"__name__": "guide"}
    exec(compile(code, str(GUIDES), "exec"), names)
    model = names["model"]
    return model.state_dict(), any(
        type(m).__module__.startswith("mlp_ext") for m in model.modules()
    )


# Left at once: the end of a DistributedDataParallel whose group was destroyed may wait for a thread
# of gloo that waits for the GIL (torch 2.13).
APART = """
import os, sys, test_guides, torch
torch.save(test_guides.run(sys.stdin.read(), int(sys.argv[1])), sys.argv[2])
os._exit(0)
"""


def run_apart(code: str, seed: int, result: Path) -> tuple[dict, bool]:
    subprocess.run(
        [sys.executable, "-c", APART, str(seed), str(result)],
        input=code,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return torch.load(result)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("title", PROGRAMS)
def test_the_same_parameters(title, one_process_group, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = PROGRAMS[title]
    if "init_process_group" in code:
        run_code = functools.partial(run_apart, result=tmp_path / "result.pt")
    else:
        run_code = run
    (values, swapped), (plain, unswapped) = (run_code(c, 3) for c in (code, without_swaps(code)))
    assert swapped or "TrainStep" in code  # which leaves the model as it is
    assert not unswapped
    assert list(values) == list(plain)
    for name, value in values.items():
        torch.testing.assert_close(
            value, plain[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
