"""What is looked at after an operation, and the snapshot that a refused step must leave alone."""

import torch


def kept(tensor):
    """A copy, or a word for what has no memory."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        return tensor.to_dense().clone()
    if type(tensor) is not torch.Tensor:
        tensor = tensor.as_subclass(torch.Tensor)
    if tensor.numel() and tensor.untyped_storage().nbytes() == 0:
        return "freed"
    return tensor.clone()


def seen_of(world):
    """Notes gradients, parameters, buffers and the optimizer's states."""
    with torch.no_grad():
        params = world.parameters()
        if world.plan.entry == "loop" or (world.plan.keep_grad and world.plan.entry == "step"):
            world.note("gradients", [kept(p.grad) for p in params])
        world.note("parameters", [kept(p) for p in params])
        if buffers := [kept(b) for b in world.model.buffers()]:
            world.note("buffers", buffers)
        for key, values in states_of(world).items():
            world.note(f"state {key}", [kept(value) for value in values])


def states_of(world):
    """{key: values}, of parameters that have a state, in order; PyTorch's None is no entry."""
    found = {}
    for i, p in enumerate(world.parameters()):
        for key, value in world.optimizer.state.get(p, {}).items():
            if value is not None and key != "master":
                found.setdefault(key, []).append(value)
                found.setdefault(f"{key} owners", []).append(i)
    return dict(sorted(found.items()))


def snapshot(world):
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        return {
            "parameters": [kept(p) for p in world.parameters()],
            "buffers": [kept(b) for b in world.model.buffers()],
            "gradients": [kept(p.grad) for p in world.parameters()],
            "states": {
                (i, key): kept(value)
                for i, p in enumerate(world.parameters())
                for key, value in world.optimizer.state.get(p, {}).items()
            },
            "generator": torch.get_rng_state(),
        }


def changed(before, after):
    """The first entry that differs, or None. States that were missing may have been made, of zeros
    by torch's own function, before the step is begun."""
    made_before, made_after = before["states"], after["states"]
    before = {**before, "states": list(made_before.values())}
    after = {**after, "states": [made_after[key] for key in made_before if key in made_after]}
    for name in before:
        if len(before[name]) != len(after[name]):
            return name
        pairs = zip(before[name], after[name], strict=True)
        if not all(_same(a, b) for a, b in pairs):
            return name
    return None


def _same(a, b):
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and a == b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.nan_to_num(nan=7.5), b.nan_to_num(nan=7.5))
