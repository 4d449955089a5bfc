"""The memory of activations and gradients: kept for the next step, never shared by two tensors."""

import gc
import threading

import torch

import mlp_ext
from mlp_ext import cpu, functional

# 256 x 300 float32 are 300 KiB: above the size from which blocks are kept.
ROWS, WIDTH = 256, 300


def layer(x, w):
    return functional.linear(x, w, activation="relu")


def make():
    return torch.randn(ROWS, 40), torch.randn(WIDTH, 40)


def test_blocks_are_kept_and_given_back():
    gc.collect()
    cpu.release_memory()
    y = layer(*make())
    held = y.untyped_storage().nbytes()
    assert cpu.release_memory() == 0  # what a tensor holds stays
    del y
    assert held <= cpu.release_memory() <= 1.5 * held
    assert cpu.release_memory() == 0


def test_the_next_tensor_of_the_size_takes_the_block():
    x, w = make()
    y = layer(x, w)
    place = y.data_ptr()
    del y
    assert layer(x, w).data_ptr() == place
    assert layer(x, w).data_ptr() % 64 == 0


def test_living_tensors_never_share_a_block():
    x, w = make()
    kept, expected = [], torch.relu(x @ w.T)
    for _ in range(20):
        kept.append(layer(x, w))
        layer(x, w).fill_(7)  # freed at once
    assert len({y.data_ptr() for y in kept}) == 20
    for y in kept:
        torch.testing.assert_close(y, expected)


def test_views_and_storages_keep_the_block_alive():
    x, w = make()
    view = layer(x, w)[3:5]
    expected = view.clone()
    for _ in range(5):
        layer(x, w).fill_(7)
    assert torch.equal(view, expected)


def test_a_tensor_can_be_resized():
    y = layer(*make())
    before = y.clone()
    y.resize_(4 * ROWS, WIDTH)
    assert torch.equal(y[:ROWS], before)
    y.fill_(1)
    assert torch.equal(y.sum(), torch.tensor(4.0 * ROWS * WIDTH))


def test_threads_make_and_drop_tensors_at_once():
    x, w = make()
    expected = torch.relu(x @ w.T)
    wrong = []

    def work():
        for _ in range(50):
            if not torch.allclose(layer(x, w), expected, rtol=1e-4, atol=1e-4):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_profiler_sees_the_memory():
    x, w = make()
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(x, w)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    freed = sum(min(0, event.self_cpu_memory_usage) for event in profile.events())
    assert max(allocated, -freed) >= 4 * ROWS * WIDTH


def test_a_training_step_takes_no_new_memory():
    """The blocks of one step are those of the next."""
    x, w = torch.randn(ROWS, 400), torch.nn.Parameter(torch.randn(WIDTH, 400))
    places = set()
    for _ in range(6):
        w.grad = None
        mlp_ext.functional.linear_relu(x, w).sum().backward()
        places.add(w.grad.data_ptr())
    assert len(places) <= 2
