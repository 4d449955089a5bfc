"""One graph used twice, or by two threads: allowed and refused as by PyTorch."""

import threading

import pytest
import torch

import mlp_ext
from mlp_ext import cpu, functional


def test_a_second_backward_that_reads_nothing_saved():
    """Only the bias has a gradient: PyTorch needs nothing for it, so it may be asked for twice."""
    w, b = torch.randn(3, 4), torch.zeros(3, requires_grad=True)
    out = functional.linear(torch.randn(5, 4), w, b).sum()
    out.backward()
    out.backward()
    assert torch.equal(b.grad, torch.full((3,), 10.0))


def test_a_second_backward_is_refused():
    for activation in (None, "relu", "gelu"):
        w, b = torch.randn(3, 4, requires_grad=True), torch.zeros(3, requires_grad=True)
        out = functional.linear(torch.randn(5, 4), w, b, activation=activation).sum()
        out.backward()
        with pytest.raises(RuntimeError, match="second time"):
            out.backward()


def test_two_threads_go_backward_through_one_graph():
    """Whoever comes second finds the graph freed, or both get through; nobody crashes."""
    net = mlp_ext.nn.MLP([8, 16, 16, 4])
    labels = torch.zeros(5, dtype=torch.int64)
    for _ in range(100):
        hidden = net(torch.randn(5, 8))
        losses = [hidden.sum(), functional.cross_entropy(hidden, labels)]

        def work(loss):
            try:
                torch.autograd.grad(loss, list(net.parameters()))
            except RuntimeError as error:
                assert "second time" in str(error) or "freed" in str(error)

        threads = [threading.Thread(target=work, args=(loss,)) for loss in losses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_backward_on_another_isa(dtype):
    """What was saved on one serves any other, also where that would not have taken the call."""
    x, w = torch.randn(256, 256).to(dtype), torch.randn(256, 256).to(dtype)
    grads = []
    for name in cpu.supported_isas():
        weight = w.clone().requires_grad_()
        out = functional.linear(x, weight, activation="tanh")
        with cpu.use_isa(name):
            grads.append(torch.autograd.grad(out.float().sum(), weight)[0].float())
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_isa_may_change_while_another_thread_computes(dtype):
    x, w = torch.randn(64, 300).to(dtype), torch.randn(200, 300).to(dtype)
    expected = torch.relu(x.float() @ w.float().T)
    stop, wrong = threading.Event(), []

    def work():
        while not stop.is_set():
            out = functional.linear(x, w, activation="relu").float()
            if not torch.allclose(out, expected, rtol=2e-2, atol=0.5):
                wrong.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(300):
        for name in cpu.supported_isas():
            with cpu.use_isa(name):
                pass
    stop.set()
    thread.join()
    assert not wrong
