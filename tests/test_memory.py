"""The memory of activations and gradients: kept for the next step, never shared by two tensors."""

import gc
import os
import threading
import time
from pathlib import Path

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


def test_a_block_beyond_the_bound_leaves_the_others_alone():
    y = layer(*make())
    held = y.untyped_storage().nbytes()
    cpu.release_memory()
    del y
    large = functional.linear(torch.zeros(2, 1), torch.zeros(40_000_000, 1))  # 305 MiB
    del large
    assert held <= cpu.release_memory() < 2 * held


def test_what_is_released_goes_back_to_the_system():
    tensors = [layer(*make()) for _ in range(100)]
    separators = [torch.zeros(1000) for _ in range(100)]  # small ones that would pin a heap
    before = resident_bytes()
    held = sum(y.untyped_storage().nbytes() for y in tensors)
    tensors.clear()
    cpu.release_memory()
    assert resident_bytes() <= before - 0.9 * held
    assert len(separators) == 100


def test_inference_holds_two_hidden_layers_at_a_time():
    net = mlp_ext.nn.MLP([64] + 16 * [512] + [8])
    x = torch.randn(4096, 64)
    with torch.no_grad():
        net(x)
    gc.collect()
    # Two buffers of 4096 x 512 float32, and what the last layer gave.
    assert cpu.release_memory() < 3 * 4 * 4096 * 512


def test_a_fork_never_finds_the_pool_locked():
    """A DataLoader's workers fork while other threads compute."""
    x, w = make()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            layer(x, w)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                torch.zeros(1)
                layer(x, w)
                os._exit(0)
            deadline = time.monotonic() + 30
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                assert time.monotonic() < deadline, "the child hangs"
                time.sleep(0.001)
    finally:
        stop.set()
        thread.join()


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
