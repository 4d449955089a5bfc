"""Float32 master weights of 16-bit parameters: what the compiled step leaves to Python."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

MASTER = "master"  # the key in a parameter's state
_NARROW = (torch.bfloat16, torch.float16)


def has_masters(optimizer: Optimizer) -> bool:
    return any(group.get("master_weights") for group in optimizer.param_groups)


def mastered(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that have a master weight, or will have one after their first step."""
    groups = (group for group in optimizer.param_groups if group.get("master_weights"))
    # Each once: a parameter may be listed twice, as in torch.
    return list(dict.fromkeys(p for g in groups for p in g["params"] if p.dtype in _NARROW))


def _refuse_shared_memory(params: list[Tensor]) -> None:
    """Two masters of one element would each undo the other's step. What wraps other tensors, as a
    DTensor does, has no address."""
    addressed = [p for p in params if p.device.type in ("cpu", "cuda") and p.data_ptr() != 0]
    extents = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in addressed)
    for (_, end), (begin, _) in zip(extents, extents[1:], strict=False):
        if begin < end:
            raise RuntimeError("`master_weights` does not support parameters that share memory")


@contextlib.contextmanager
def in_place_of_parameters(optimizer: Optimizer) -> Iterator[None]:
    """Inside, each such parameter with a gradient has its place in the optimizer taken by its
    master, with a float32 gradient, so that torch's functions work in float32. Afterwards the
    parameter is the rounding of what became of that.

    A master is made where there is none, and its elements are taken from the parameter where that
    has been written to since the last step. States of the parameter's dtype are widened. (The
    parameter itself is not made float32 meanwhile: autograd would forget its AccumulateGrad, and
    with it what DistributedDataParallel has hooked to that.)
    """
    if not has_masters(optimizer):
        yield
        return
    chosen = [p for p in mastered(optimizer) if p.grad is not None]
    _refuse_shared_memory(chosen)
    lists = [(group, group["params"]) for group in optimizer.param_groups]
    masters: dict[Tensor, Tensor] = {}
    try:
        for p in chosen:
            state = dict(optimizer.state.get(p, {}))
            master, narrow = state.pop(MASTER, None), p.detach()
            if master is None:
                master = narrow.float()
            else:
                master = torch.where(master.to(p.dtype) == narrow, master, narrow.float())
            master = torch.nn.Parameter(master, requires_grad=p.requires_grad)
            master.grad = p.grad.float()
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dtype == p.dtype:
                    state[key] = value.float()
            masters[p] = master
            optimizer.state.pop(p, None)
            if state:  # torch makes the state of a parameter that has none at all
                optimizer.state[master] = state
        for group, params in lists:
            group["params"] = [masters.get(p, p) for p in params]
        yield
    finally:
        for group, params in lists:
            group["params"] = params
        for p, master in masters.items():
            state = optimizer.state.pop(master, {})
            optimizer.state[p] = {**state, MASTER: master.detach()}
            with torch.no_grad():
                p.copy_(master)


def load_state_dict(optimizer: Optimizer, load, state_dict: dict) -> None:
    """load(state_dict), which is torch's and rounds every state to its parameter's dtype; the
    float32 states of parameters with masters stay as they are in state_dict. A state_dict that does
    not know the option leaves it as it is."""
    given: list[dict] = []
    options = [group.get("master_weights") for group in optimizer.param_groups]

    def restore(optimizer: Optimizer) -> None:
        saved = given[0]
        for group, option in zip(optimizer.param_groups, options, strict=False):
            if option is not None:
                group.setdefault("master_weights", option)
        if not has_masters(optimizer):
            return
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        params = [p for group in optimizer.param_groups for p in group["params"]]
        with_master = {id(p) for p in mastered(optimizer)}
        for i, p in zip(ids, params, strict=True):
            if id(p) not in with_master:
                continue
            for key, value in saved["state"].get(i, {}).items():
                if isinstance(value, Tensor) and value.dtype == torch.float32:
                    own = value.detach().to(p.device if value.dim() else value.device, copy=True)
                    optimizer.state[p][key] = own

    # The last hook before, to see what the others have made of state_dict, and the first after.
    before = optimizer.register_load_state_dict_pre_hook(lambda _, given_: given.append(given_))
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        load(state_dict)
    finally:
        before.remove()
        after.remove()
