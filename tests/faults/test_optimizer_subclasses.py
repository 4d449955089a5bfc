"""Subclasses of mlp_ext.optim's classes behave as subclasses of torch.optim's."""

import copy
import functools
import pickle
import types

import pytest
import torch
from cases import OPTIMIZERS, assert_close, build, classes, optimizer_parameters, run

from mlp_ext import optim

MODULES = (optim, torch.optim)


def trained(make, steps=4):
    """Parameters after some steps of the optimizer that make(params, module) gives, for both."""
    results = []
    for module in MODULES:
        params = optimizer_parameters()
        run(make(params, module), params, range(steps))
        results.append(params)
    return results


@classes
def test_every_name_is_free(name):
    """But for torch's, and one with a prefix of our own."""
    ours = {n for kind in getattr(optim, name).__mro__[:2] for n in vars(kind)}
    theirs = set(dir(getattr(torch.optim, name))) | {"__annotations__", "__firstlineno__"}
    assert {n for n in ours - theirs if not n.startswith("__")} == {"_mlp_ext_rule"}
    assert vars(build(optim, name, optimizer_parameters())).keys() == vars(
        build(torch.optim, name, optimizer_parameters())
    ).keys()


@classes
def test_a_schedule_that_counts_in_step(name):
    """The Annotated Transformer's, as a subclass."""

    def make(params, module):
        class Noam(getattr(module, name)):
            def __init__(self, params):
                super().__init__(params, lr=0.0)
                self._step, self._compiled_step, self._torch_class = 0, "mine", None

            def step(self, closure=None):
                self._step += 1
                self.param_groups[0]["lr"] = 0.01 * self._step
                return super().step(closure)

        return Noam(params)

    assert_close(name, *trained(make), 1e-12)


def doubling(module, name):
    class Doubling(getattr(module, name)):
        def _init_group(self, group, *lists):
            result = super()._init_group(group, *lists)
            lists[1][:] = [2 * g for g in lists[1]]
            return result

    return Doubling


def on_the_instance(params, module, name, bound=False):
    optimizer = build(module, name, params)
    original = optimizer._init_group

    def patched(group, params_, grads, *others):
        result = original(group, params_, grads, *others)
        grads[:] = [2 * g for g in grads]
        return result

    optimizer._init_group = patched
    if bound:
        optimizer._init_group = types.MethodType(lambda self, *all: patched(*all), optimizer)
    return optimizer


@classes
@pytest.mark.parametrize(
    "make",
    [
        lambda params, module, name: doubling(module, name)(params, **OPTIMIZERS[name]),
        on_the_instance,
        functools.partial(on_the_instance, bound=True),
    ],
    ids=["class", "instance", "method"],
)
def test_init_group_is_obeyed(name, make):
    ours, theirs = trained(functools.partial(make, name=name))
    assert_close(name, ours, theirs, 1e-12)


@classes
def test_init_group_patched_in_torchs_class(name, monkeypatch):
    original = getattr(torch.optim, name)._init_group

    def patched(self, group, params, grads, *others):
        result = original(self, group, params, grads, *others)
        grads[:] = [2 * g for g in grads]
        return result

    plain = trained(lambda params, module: build(module, name, params))[1]
    monkeypatch.setattr(getattr(torch.optim, name), "_init_group", patched)
    ours, theirs = trained(lambda params, module: build(module, name, params))
    assert_close(name, ours, theirs, 1e-12)
    assert not torch.equal(theirs[0], plain[0])  # RMSprop and others divide scale out, but for eps


def test_init_group_as_torch_compile_wraps_it(monkeypatch):
    """That is no override: the kernels go on."""
    monkeypatch.setattr(optim, "_take_torchs_step", lambda self: pytest.fail("torch's step"))
    wrapped = torch._dynamo.disable(torch.optim.NAdam._init_group)
    monkeypatch.setattr(torch.optim.NAdam, "_init_group", wrapped)
    params = optimizer_parameters()
    run(build(optim, "NAdam", params), params, range(2))


@classes
def test_constructors_that_are_skipped(name):
    def torchs(params, module):
        class Skipping(getattr(module, name)):
            def __init__(self, params, options):
                getattr(torch.optim, name).__init__(self, params, **options)

        return Skipping(params, OPTIMIZERS[name])

    def bases(params, module):
        defaults = build(torch.optim, name, [torch.ones(1)]).defaults

        class Bare(getattr(module, name)):
            def __init__(self, params):
                torch.optim.Optimizer.__init__(self, params, dict(defaults, extra=1))

        return Bare(params)

    assert_close(name, *trained(torchs), 1e-12)
    assert_close(name, *trained(bases), 1e-12)


@classes
def test_cooperative_bases(name):
    """The constructors of torch's classes call the next in the order of the instance's class."""
    seen = []

    def make(params, module):
        class Mixin:
            def __init__(self, *args, tag=None, **kwargs):
                seen.append((module, tag))
                super().__init__(*args, **kwargs)

            def add_param_group(self, group):
                super().add_param_group({**group, "lr": 0.02})

        class Both(Mixin, getattr(module, name)):
            def state_dict(self):
                return {**super().state_dict(), "tag": 1}

            def load_state_dict(self, state):
                seen.append((module, state["tag"]))
                super().load_state_dict(state)

            def __setstate__(self, state):
                super().__setstate__(state)
                for group in self.param_groups:
                    group["weight_decay"] = 0.25

        optimizer = Both(params, tag="x")
        optimizer.load_state_dict(optimizer.state_dict())
        return optimizer

    assert_close(name, *trained(make), 1e-12)
    assert seen == [(m, tag) for m in MODULES for tag in ("x", 1)]


@classes
def test_a_step_that_copies_the_attributes_of_ours(name):
    """functools.wraps copies torch's mark that hooks have been seen to: they must run, once."""
    seen = []

    class Wrapping(getattr(optim, name)):
        @functools.wraps(getattr(optim, name).step)
        def step(self, closure=None):
            return super().step(closure)

    params = optimizer_parameters()
    optimizer = Wrapping(params, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    run(optimizer, params, range(2))
    assert seen == ["pre", "post"] * 2


class Module_level(optim.Adam):  # for pickle
    def __setstate__(self, state):
        super().__setstate__(state)
        self.restored = True


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_of_a_subclass(duplicate):
    params, straight = optimizer_parameters(), optimizer_parameters()
    optimizer = Module_level(params, lr=0.1)
    run(optimizer, params, range(2))
    twin = duplicate(optimizer)
    assert type(twin) is Module_level and twin.restored
    run(twin, twin.param_groups[0]["params"], range(2, 4))
    run(optim.Adam(straight, lr=0.1), straight, range(4))
    assert_close("", twin.param_groups[0]["params"], straight, 0)


@classes
def test_pickles_of_the_release_before(name):
    """They hold the class and what torch's __getstate__ gives."""
    params = optimizer_parameters()
    optimizer = build(optim, name, params)
    run(optimizer, params, range(2))
    twin = getattr(optim, name).__new__(getattr(optim, name))
    twin.__setstate__(copy.deepcopy(optimizer.__getstate__()))
    assert optimizer.__getstate__().keys() == {"defaults", "state", "param_groups"}
    run(twin, twin.param_groups[0]["params"], range(2, 4))
    run(optimizer, params, range(2, 4))
    assert_close(name, twin.param_groups[0]["params"], params, 0)
