"""One optimizer step over many tensors, gradients at hand."""

from collections.abc import Callable, Iterator

import torch

import mlp_ext

from .harness import BASELINE, OURS, Call, Case, Competitor
from .models import ADAM_BYTES, plain_net


def shapes_of(net: str) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in plain_net(net).parameters()]


# Title -> (shapes, whether parameters and states outgrow every cache). The 50 MB of "wide" do not:
# beside 32 MiB of L3 (Zen 4) they ran at up to 1.6 times the memory's speed.
PARAMETERS: dict[str, tuple[list[tuple[int, ...]], bool]] = {
    "6 tiny tensors (seed)": (shapes_of("seed"), False),
    "0.54 M parameters (mnist)": (shapes_of("mnist"), False),
    "3.1 M parameters (wide)": (shapes_of("wide"), False),
    "33.6 M parameters": ([(4096, 4096), (4096, 4096)], True),
}

# Title -> (class, options, bytes a parameter).
RULES = {
    "SGD momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}, 20),
    "Adam": ("Adam", {}, ADAM_BYTES),
    "AdamW": ("AdamW", {}, ADAM_BYTES),
}


def make_parameters(shapes: list) -> list[torch.nn.Parameter]:
    """Parameters of these shapes with gradients, the same every time."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        parameters.append(torch.nn.Parameter(torch.randn(shape, generator=generator)))
        parameters[-1].grad = torch.randn(shape, generator=generator)
    return parameters


def stepper(optimizer: type, shapes: list, **options) -> Callable[[], Call]:
    """A competitor's `make`: the step of an optimizer over new parameters of these shapes."""

    def make():
        return optimizer(make_parameters(shapes), **options).step

    return make


def cases(full: bool) -> Iterator[Case]:
    for rule, (class_name, options, bytes_each) in RULES.items():
        plain, ours = getattr(torch.optim, class_name), getattr(mlp_ext.optim, class_name)
        for title, (shapes, outgrows_caches) in PARAMETERS.items():
            yield Case(
                "optimizers",
                f"{rule}, {title}",
                {
                    "torch": Competitor(stepper(plain, shapes, **options)),
                    "torch fused": Competitor(
                        stepper(plain, shapes, fused=True, **options), BASELINE
                    ),
                    "mlp_ext": Competitor(stepper(ours, shapes, **options), OURS),
                },
                bytes=float(bytes_each * sum(torch.Size(shape).numel() for shape in shapes)),
                ceiling="stream" if outgrows_caches else "",
            )
