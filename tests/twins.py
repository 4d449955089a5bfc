"""What the module tests share: telling a module of ours from its twin of torch.nn must fail."""

import copy
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn


def outcome(model: nn.Module, input: Tensor, seed: int = 7) -> dict[str, object]:
    """All that one training step shows: output or error, gradients, buffers, the RNG afterwards."""
    torch.manual_seed(seed)
    input = input.detach().clone().requires_grad_(input.is_floating_point())
    model.zero_grad(set_to_none=True)
    seen: dict[str, object] = {}
    try:
        output = model(input)
        seen["output"] = output.detach().clone()
        seen["requires_grad"] = output.requires_grad
        if output.requires_grad:
            (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum().backward()
    except Exception as error:
        seen["error"] = type(error)
    seen["input.grad"] = input.grad
    seen |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    seen |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    seen["rng"] = torch.get_rng_state()
    return seen


def assert_same(ours: nn.Module, torchs: nn.Module, input: Tensor, *, error: bool = False) -> None:
    """Same outcome, keys and flags of both. An exception must be expected with `error`."""
    left, right = outcome(ours, input), outcome(torchs, input)
    assert left.get("error") is right.get("error")
    assert ("error" in right) == error, right.get("error")
    assert left.keys() == right.keys()
    for name in right:
        if isinstance(right[name], Tensor):
            assert isinstance(left[name], Tensor), name
            torch.testing.assert_close(left[name], right[name], msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert left[name] == right[name], name
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert [m.training for m in ours.modules()] == [m.training for m in torchs.modules()]


def same_state(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def seeded(build: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "torch.save": saved_and_loaded}

ACTIVATION_MODULES = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}
