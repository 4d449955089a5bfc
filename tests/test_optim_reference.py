"""The update rules of mlp_ext.reference, the specification, against torch.optim."""

import torch
from cases import relative_error
from optimizer_twins import OPTIONS, Twins, configs

from mlp_ext import optim, reference


def reference_step(name, p, grad, step, state, options):
    """One step of the specification; `state` is torch's, whose constants choose the options."""
    given = {k: v for k, v in options.items() if k in OWN_OPTIONS[name]}
    if name == "SGD":
        state["momentum_buffer"] = reference.sgd_step(
            p, grad, state.get("momentum_buffer"), **given
        )
        return
    if name == "AdamW":
        given = {"weight_decay": 1e-2, "decoupled_weight_decay": True, **given}
    tensors = {k: v for k, v in state.items() if k != "step"}
    if name != "RMSprop":
        tensors["step"] = step
    function = getattr(reference, f"{name.lower().removesuffix('w')}_step")
    function(p, grad, **tensors, **given)


# What a rule is told by the states that it is given, or that are its caller's affair.
OWN_OPTIONS = {
    name: {key for options in many for key in options}
    - {"amsgrad", "centered", "initial_accumulator_value"}
    for name, many in OPTIONS.items()
}


@configs
def test_reference_is_torch_optim(config):
    """The specification itself, one parameter, 20 steps, from torch's own initial state."""
    name, options = config
    twins = Twins(name, shapes=((5, 3),), dtype=torch.float64, **options)
    p = twins.params[1][0].detach().clone()
    state = None
    for step in range(1, 21):
        twins.params[1][0].grad = twins.gradients()[0]
        if state is None:
            state = initial_state(name, p, options)
        twins.optimizers[1].step()
        reference_step(name, p, twins.params[1][0].grad, step, state, options)
        assert relative_error(p, twins.params[1][0]) <= 1e-13
        for key, value in twins.optimizers[1].state[twins.params[1][0]].items():
            if key not in ("step", "mu_product"):
                assert relative_error(state[key], value) <= 1e-13, key


def initial_state(name, p, options):
    if name == "SGD":
        return {}
    twin = torch.nn.Parameter(p.clone())
    twin.grad = torch.zeros_like(p)
    optimizer = getattr(torch.optim, name)([twin], **options)
    optim.init_group(optimizer, optimizer.param_groups[0])
    return optimizer.state[twin]
