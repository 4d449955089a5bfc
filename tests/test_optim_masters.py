"""mlp_ext.optim's master_weights: 16-bit parameters that are trained in float32."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from cases import STATES, assert_close, classes, dtypes, loop, relative_error, relayout

from mlp_ext import optim

SHAPES = ((33, 17), (17,), (), (0,), (3, 1, 5))
narrow = dtypes("bf16", "f16")
OPTIONS = {name: {"lr": 0.01, "weight_decay": 0.01, **STATES[name]} for name in STATES}


class Pair:
    """Ours on 16-bit parameters, torch's for-loop form on float32 ones of the same values, fed the
    same gradients."""

    def __init__(self, name, dtype, layout="contiguous", shapes=SHAPES, **options):
        torch.manual_seed(4)
        start = [torch.randn(s).to(dtype) for s in shapes]
        self.name, self.layout, self.options = name, layout, {**OPTIONS[name], **options}
        self.params = [torch.nn.Parameter(relayout(t.clone(), layout)) for t in start]
        self.wide = [torch.nn.Parameter(t.float()) for t in start]
        self.optimizer = getattr(optim, name)(self.params, master_weights=True, **self.options)
        self.reference = getattr(torch.optim, name)(self.wide, **{**self.options, **loop(name)})

    def run(self, steps, layout="contiguous"):
        for _ in range(steps):
            for p, q in zip(self.params, self.wide, strict=True):
                p.grad = relayout(torch.randn(q.shape).to(p.dtype), layout)
                q.grad = p.grad.float()
            self.optimizer.step()
            self.reference.step()
        return self

    def check(self):
        for p, q in zip(self.params, self.wide, strict=True):
            state, other = dict(self.optimizer.state[p]), self.reference.state[q]
            master = state.pop("master")
            assert master.dtype == torch.float32 and torch.equal(master.to(p.dtype), p)
            assert state.keys() == other.keys()
            for ours, theirs in ((master, q), *((state[key], other[key]) for key in other)):
                assert ours.dtype == theirs.dtype
                assert relative_error(ours, theirs) <= 2e-6 or largest(ours) < 1e-6
        return self


def largest(t):
    return t.abs().max() if t.numel() else 0.0


@classes
@narrow
def test_100_steps(isa, name, dtype):
    Pair(name, dtype).run(100).check()


@classes
@pytest.mark.parametrize("layout", ["transposed", "rows_apart", "misaligned"])
def test_layouts(isa, name, layout):
    pair = Pair(name, torch.bfloat16, layout)
    pair.run(5).run(5, layout).run(5, "expanded_rows").check()


@classes
def test_threads(isa, threads, name):
    Pair(name, torch.bfloat16, shapes=((300, 333), (70001,), (5,))).run(3).check()


@classes
def test_autograd_keeps_its_accumulators(name):
    """DistributedDataParallel hooks to them what averages the gradients."""
    pair = Pair(name, torch.bfloat16)
    before = [torch.autograd.graph.get_gradient_edge(p).node for p in pair.params]
    optim._take_torchs_step(pair.run(1).optimizer)
    after = [torch.autograd.graph.get_gradient_edge(p).node for p in pair.params]
    assert all(a is b for a, b in zip(after, before, strict=True))


@classes
@narrow
def test_small_steps_are_not_lost(name, dtype):
    """What the option is for: each of these steps is below half a unit of the parameter's last
    place, and without a master none would ever move it."""
    moved = []
    for masters in (True, False):
        p = torch.nn.Parameter(torch.full((40,), 256.0, dtype=dtype))
        optimizer = getattr(optim, name)([p], lr=1e-3, master_weights=masters)
        for _ in range(1500):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append((256.0 - p.detach().float()).mean().item())
    assert moved[0] > 0 == moved[1] or name == "Adagrad"
    assert optimizer.state.get(p, {}).get("master") is None


@classes
@pytest.mark.parametrize("way", ["file", "pickle", "torch's and back", "deepcopy"])
@narrow
def test_state_dict(isa, name, way, dtype):
    pair = Pair(name, dtype).run(7)
    kept = copy.deepcopy(pair.optimizer.state_dict())
    if way == "deepcopy":
        pair.params, pair.optimizer = copy.deepcopy((pair.params, pair.optimizer))
        pair.run(7).check()
        return
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    state = pickle.loads(pickle.dumps(kept)) if way == "pickle" else torch.load(file)
    pair.params = [torch.nn.Parameter(p.detach().clone()) for p in pair.params]
    pair.optimizer = getattr(optim, name)(pair.params, lr=3.0)  # the option is in the state_dict
    pair.optimizer.load_state_dict(state)
    for i, p in enumerate(pair.params):
        for key, value in kept["state"][i].items():
            assert torch.equal(pair.optimizer.state[p][key], value)
            assert pair.optimizer.state[p][key].dtype == value.dtype
    if way == "torch's and back":
        theirs = getattr(torch.optim, name)(pair.params, lr=3.0)
        theirs.load_state_dict(state)
        for p in pair.params:
            p.grad = torch.ones_like(p)
        theirs.step()
        again = getattr(optim, name)(pair.params, lr=3.0)
        again.load_state_dict(theirs.state_dict())
        again.step()
        for p in pair.params:
            state = again.state[p]
            assert state["master"].dtype == torch.float32
            assert torch.equal(state["master"].to(dtype), p)
        return
    pair.run(7).check()


@classes
def test_turned_on_for_a_state_dict_of_torchs(isa, name):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s).bfloat16()) for s in SHAPES]
    theirs = getattr(torch.optim, name)(params, **OPTIONS[name])
    for p in params:
        p.grad = torch.randn(p.shape).bfloat16()
    theirs.step()
    ours = getattr(optim, name)(params, master_weights=True, **OPTIONS[name])
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["master_weights"] is True
    before = [p.detach().float() for p in params]
    ours.step()
    for p, b in zip(params, before, strict=True):
        state = ours.state[p]
        assert all(v.dtype == torch.float32 for v in state.values() if v.dim() == p.dim())
        assert p.numel() == 0 or not torch.equal(state["master"], b)


def test_turned_on_for_a_scalar_state_that_torch_has_rounded():
    """load_state_dict makes NAdam's mu_product as narrow as its parameter."""
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    theirs, ours = torch.optim.NAdam([p], foreach=True), optim.NAdam([p], foreach=True)
    p.grad = torch.full_like(p, 0.1)
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[p]["mu_product"].dtype == torch.float16
    ours.param_groups[0]["master_weights"] = True
    ours.step()
    assert ours.state[p]["mu_product"].dtype == torch.float32


@classes
def test_a_parameter_that_was_written_to(isa, name):
    """Its new elements count; the others keep what their masters have beyond 16 bits."""
    pair = Pair(name, torch.bfloat16).run(5)
    with torch.no_grad():
        pair.params[0][3:5] = 0.25
        pair.wide[0][3:5] = 0.25
        pair.params[1].fill_(-2.0)
        pair.wide[1].fill_(-2.0)
    pair.run(5).check()
    pair.params[1].data = torch.zeros(17, dtype=torch.bfloat16)
    pair.wide[1].data = torch.zeros(17)
    pair.run(5).check()


@classes
def test_nan_and_inf(isa, name):
    pair = Pair(name, torch.bfloat16, shapes=((40,),)).run(3)
    for p in (pair.params[0], pair.wide[0]):
        p.grad = torch.zeros(40, dtype=p.dtype)
        p.grad[::7], p.grad[1::7] = float("nan"), float("inf")
    pair.optimizer.step(), pair.reference.step()
    pair.run(2)
    for p, q in zip(pair.params, pair.wide, strict=True):
        assert relative_error(pair.optimizer.state[p]["master"], q) <= 1e-5


FALLBACKS = {
    "tensor lr": {"lr": torch.tensor(0.01)},
    "fused": {"fused": True},
    "foreach": {"foreach": True},
}


@classes
@pytest.mark.parametrize("how", [*FALLBACKS, "a scaler"])
def test_where_torchs_step_runs(name, how):
    """It runs on the masters, to the same result."""
    options = FALLBACKS.get(how, {"fused": True} if how == "a scaler" else {})
    if "fused" in options and "fused" not in loop(name):
        options = {}
    pair = Pair(name, torch.bfloat16, **{k: v for k, v in options.items() if k == "lr"})
    if "lr" not in options:
        pair.optimizer = getattr(optim, name)(
            pair.params, master_weights=True, **{**pair.options, **options}
        )
    if how == "a scaler" and options:
        pair.optimizer.grad_scale = torch.tensor(1.0)
        pair.optimizer.found_inf = torch.tensor(0.0)
    objects = [p.data_ptr() for p in pair.params]
    versions = [p._version for p in pair.params]
    pair.run(6).check()
    assert [p.data_ptr() for p in pair.params] == objects
    assert all(p._version > v for p, v in zip(pair.params, versions, strict=True))
    assert all(p.grad.dtype == p.dtype == torch.bfloat16 for p in pair.params)


@classes
def test_parameters_that_share_memory_are_refused(name):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    q = torch.nn.Parameter(p.data[1:])
    optimizer = getattr(optim, name)([p, q], lr=0.1, master_weights=True)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with pytest.raises(RuntimeError, match="share memory"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p)) and p.dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = getattr(optim, name)([p, p], lr=0.1, master_weights=True)
    optimizer.step()
    assert torch.equal(optimizer.state[p]["master"].bfloat16(), p) and (p < 1).all()


def test_sparse_gradient():
    """Of torch's classes, SGD and Adagrad take them."""
    for name in ("SGD", "Adagrad"):
        p = torch.nn.Parameter(torch.ones(6, 2, dtype=torch.bfloat16))
        q = torch.nn.Parameter(torch.ones(6, 2))
        ours = getattr(optim, name)([p], lr=0.1, master_weights=True)
        theirs = getattr(torch.optim, name)([q], lr=0.1)
        for _ in range(3):
            q.grad = torch.eye(6)[:, :2].to_sparse()
            p.grad = q.grad.bfloat16()
            ours.step(), theirs.step()
        assert relative_error(ours.state[p]["master"], q) <= 1e-6
    p = torch.nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
    p.grad = torch.eye(6)[0].bfloat16().to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse"):
        optim.Adam([p], master_weights=True).step()
    assert p.dtype == torch.bfloat16 and torch.equal(p, torch.ones_like(p)) and p.grad.is_sparse


@classes
def test_wide_parameters_have_none(name):
    results = []
    for module, options in ((optim, {"master_weights": True}), (torch.optim, {})):
        torch.manual_seed(1)
        params = [
            torch.nn.Parameter(torch.randn(5, dtype=d)) for d in (torch.float32, torch.float64)
        ]
        optimizer = getattr(module, name)(params, **OPTIONS[name], **options)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert not any("master" in state for state in optimizer.state.values())
        results.append(params)
    assert_close("", *results, 1e-6)


@classes
def test_the_option(name):
    signature = inspect.signature(getattr(optim, name))
    theirs = inspect.signature(getattr(torch.optim, name))
    assert [*signature.parameters][:-1] == [*theirs.parameters]
    assert signature.parameters["master_weights"].default is False
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    assert "master_weights" not in getattr(optim, name)([p], lr=0.1).param_groups[0]
    with pytest.raises(RuntimeError, match="does not support `differentiable`"):
        getattr(optim, name)([p], lr=0.1, master_weights=True, differentiable=True)
    q = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    groups = [{"params": [p]}, {"params": [q], "master_weights": True}]
    optimizer = getattr(optim, name)(groups, lr=0.1)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    assert "master" in optimizer.state[q] and "master" not in optimizer.state.get(p, {})


@pytest.mark.parametrize("spoilt", [torch.ones(4), torch.ones(3, device="meta"), torch.ones(3, 1)])
def test_a_master_that_does_not_fit(spoilt):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = optim.Adam([p], master_weights=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    kept = p.detach().clone()
    optimizer.state[p]["master"] = spoilt
    with pytest.raises(RuntimeError, match="'master' is of shape"):
        optimizer.step()
    assert torch.equal(p, kept) and optimizer.state[p]["step"] == 1
