"""Training and inference through torch.compile, export and torch.func, model by model, against the
plain model in eager mode. (Single ops are in test_functional_transforms.py.)"""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import mlp_ext

ROWS = (8, 5, 8, 7, 5)


def plain_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, 9), nn.ReLU(), nn.LayerNorm(9), nn.Linear(9, 3)
    )


class Own(nn.Module):
    """The same in layers and functions of ours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = mlp_ext.nn.Linear(6, 9, activation="silu")
        self.second = mlp_ext.nn.LinearReLU(9, 9)
        self.norm = nn.LayerNorm(9)
        self.last = nn.Linear(9, 3)

    def forward(self, x):
        x = self.norm(self.second(self.first(x)))
        return mlp_ext.functional.linear(x, self.last.weight, self.last.bias)


FORMS = {
    "fused": lambda: mlp_ext.fuse(plain_net()),
    "Sequential": lambda: mlp_ext.nn.Sequential(*plain_net()),
    "own": Own,
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(rows):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for n in rows]


def train(model, loss, optimizer, rows):
    losses = []
    for x, y in batches(rows):
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return [*losses, *(p.detach() for p in model.parameters())]


def trained_plain(rows, compiled=lambda loss: loss):
    model = plain_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return train(model, compiled(lambda m, x, y: F.cross_entropy(m(x), y)), optimizer, rows)


def our_loss(model, x, y):
    return mlp_ext.functional.cross_entropy(model(x), y)


@pytest.fixture(scope="module")
def graphs_of_plain():
    """dynamic -> how many graphs the compiler makes of the plain model over the batches of ROWS."""
    counts = {}
    for dynamic in (False, True, None):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        trained_plain(ROWS, torch.compile(backend=counter, fullgraph=True, dynamic=dynamic))
        counts[dynamic] = counter.frame_count
    assert counts[False] == len(set(ROWS)) > counts[True]
    return counts


@forms
@pytest.mark.parametrize("dynamic", [False, True, None], ids=["static", "dynamic", "automatic"])
def test_training_with_the_step_outside(form, dynamic, graphs_of_plain):
    """The same numbers as in eager mode, and no more graphs than of the plain model."""
    model, counter = form(), CompileCounterWithBackend("aot_eager")
    loss = torch.compile(our_loss, backend=counter, fullgraph=True, dynamic=dynamic)
    ours = train(model, loss, mlp_ext.optim.Adam(model.parameters(), lr=0.01), ROWS)
    torch.testing.assert_close(ours, trained_plain(ROWS), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == graphs_of_plain[dynamic]


@forms
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(form, mode):
    model, plain = form().eval(), plain_net().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with mode():
        for x, _ in batches((4, 7, 2)):
            torch.testing.assert_close(compiled(x), plain(x))
    assert counter.frame_count == 2


def test_the_default_backend():
    """Our ops and PyTorch's in one graph, forward and backward, through inductor."""
    rows, model = (8, 8, 8), Own()
    optimizer = mlp_ext.optim.Adam(model.parameters(), lr=0.01)
    ours = train(model, torch.compile(our_loss, fullgraph=True), optimizer, rows)
    torch.testing.assert_close(ours, trained_plain(rows), rtol=1e-4, atol=1e-5)


@forms
def test_a_module_compiled_in_place(form):
    """Module.compile, as training scripts call it on each block of a model."""
    rows, model = (8, 8, 8), form()
    keys, counter = list(model.state_dict()), CompileCounterWithBackend("aot_eager")
    model.compile(backend=counter, fullgraph=True)
    ours = train(model, our_loss, mlp_ext.optim.Adam(model.parameters(), lr=0.01), rows)
    torch.testing.assert_close(ours, trained_plain(rows), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1 and list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_compiled_step(name):
    """Inside a compiled function the step is torch's own, which the compiler fuses itself."""
    results = []
    for module in (mlp_ext.optim, torch.optim):
        model = plain_net()
        optimizer = getattr(module, name)(model.parameters(), lr=torch.tensor(0.01))
        step = optimizer.step
        if module is mlp_ext.optim:
            counter = CompileCounterWithBackend("aot_eager")
            step = torch.compile(step, backend=counter)
        for x, y in batches((8, 8, 8)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            step()
        results.append([p.detach() for p in model.parameters()])
    assert counter.frame_count > 0
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@forms
def test_export_and_decompositions(form):
    model, plain = form().eval(), plain_net().eval()
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (torch.randn(4, 6),), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    programs = [program, program.run_decompositions(), torch.export.load(file)]
    # It can be loaded where mlp_ext is not, and converted to ONNX.
    for other in programs:
        assert "mlp_ext" not in str(other.graph)
    for x, _ in batches((4, 9)):
        for other in programs:
            torch.testing.assert_close(other.module()(x), plain(x))


def test_an_export_with_its_loss_in_it():
    losses = mlp_ext.functional

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Own()

        def forward(self, x, y):
            logits = self.net(x)
            square = losses.mse_loss(logits, 0 * logits) + losses.l1_loss(logits, 0 * logits)
            binary = losses.binary_cross_entropy_with_logits(logits, 0 * logits)
            return losses.cross_entropy(logits, y, label_smoothing=0.1) + square + binary

    model, batch = WithLoss(), batches((6,))[0]
    program = torch.export.export(model, batch)
    assert "mlp_ext" not in str(program.graph)
    torch.testing.assert_close(program.module()(*batch), model(*batch))


@forms
def test_functions_of_the_parameters(form):
    """jacrev, jacfwd, hessian and a gradient of each sample, by functional_call."""
    model, plain = form().double(), plain_net().double()
    names = list(dict(model.named_parameters()))
    values = [p.detach() for p in plain.parameters()]
    x, y = batches((3,))[0]
    x = x.double()

    def loss(module, names, values, x, y):
        parameters = dict(zip(names, values, strict=True))
        output = torch.func.functional_call(module, parameters, (x,))
        return F.cross_entropy(output, y), output

    def derivatives(module, names):
        call = lambda v, x: loss(module, names, [*values[:-1], v], x, y)  # noqa: E731
        each = torch.func.grad(lambda v, x, y: loss(module, names, v, x[None], y[None])[0])
        return {
            "jacrev": torch.func.jacrev(lambda v: call(v, x)[1])(values[-1]),
            "jacfwd": torch.func.jacfwd(lambda x: call(values[-1], x)[1])(x),
            "hessian": torch.func.hessian(lambda x: call(values[-1], x)[0])(x),
            "samples": torch.func.vmap(each, in_dims=(None, 0, 0))(values, x, y),
        }

    ours = derivatives(model, names)
    theirs = derivatives(plain, list(dict(plain.named_parameters())))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert ours["hessian"].abs().max() > 1e-3


@forms
def test_an_ensemble_is_trained_at_once(form):
    """stack_module_state, vmap and one optimizer, against models trained one by one."""

    def members(build):
        torch.manual_seed(0)
        models = [build() for _ in range(3)]
        for model in models:
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return models

    models = members(form)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    optimizer = mlp_ext.optim.Adam(parameters.values(), lr=0.01)

    def losses(x, y):
        def one(parameters, buffers):
            output = torch.func.functional_call(base, (parameters, buffers), (x,))
            return mlp_ext.functional.cross_entropy(output, y)

        return torch.func.vmap(one)(parameters, buffers)

    for x, y in batches((8, 8, 8)):
        optimizer.zero_grad()
        losses(x, y).sum().backward()
        optimizer.step()

    for i, plain in enumerate(members(plain_net)):
        alone = torch.optim.Adam(plain.parameters(), lr=0.01)
        train(plain, lambda m, x, y: F.cross_entropy(m(x), y), alone, (8, 8, 8))
        mine = [p[i].detach() for p in parameters.values()]
        torch.testing.assert_close(
            mine, [p.detach() for p in plain.parameters()], rtol=1e-4, atol=1e-5
        )
