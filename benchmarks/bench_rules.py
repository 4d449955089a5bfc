"""The optimizers of which PyTorch has no fused form on the CPU (Adagrad's apart), and clipping."""

from collections.abc import Callable, Iterator

import torch

import mlp_ext

from .bench_optimizers import PARAMETERS, make_parameters, stepper
from .harness import BASELINE, OURS, Call, Case, Competitor

# Title -> (class, options, bytes a parameter): it and its states are read and written, its gradient
# read.
RULES = {
    "Adagrad": ("Adagrad", {}, 20),
    "RMSprop": ("RMSprop", {}, 20),
    "RMSprop centered, momentum": ("RMSprop", {"momentum": 0.9, "centered": True}, 36),
    "NAdam": ("NAdam", {}, 28),
    "RAdam": ("RAdam", {}, 28),
    "Adamax": ("Adamax", {}, 28),
}


def clipper(function: Callable, shapes: list, **options) -> Callable[[], Call]:
    """The limit is a little lower at each call, so that each scales the gradients."""

    def make():
        parameters = make_parameters(shapes)
        limit = float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))

        def clip():
            nonlocal limit
            limit *= 0.99999
            return function(parameters, limit, **options)

        return clip

    return make


def cases(full: bool) -> Iterator[Case]:
    sizes = list(PARAMETERS.items())
    for title, (shapes, outgrows_caches) in sizes if full else sizes[:2]:
        numbers = sum(torch.Size(shape).numel() for shape in shapes)
        ceiling = "stream" if outgrows_caches else ""
        for rule, (class_name, options, bytes_each) in RULES.items():
            plain, ours = getattr(torch.optim, class_name), getattr(mlp_ext.optim, class_name)
            competitors = {
                "torch": Competitor(stepper(plain, shapes, **options)),
                "torch foreach": Competitor(
                    stepper(plain, shapes, foreach=True, **options), BASELINE
                ),
                "mlp_ext": Competitor(stepper(ours, shapes, **options), OURS),
            }
            yield Case(
                "rules",
                f"{rule}, {title}",
                competitors,
                bytes=float(bytes_each * numbers),
                ceiling=ceiling,
            )
        plain, ours = torch.nn.utils.clip_grad_norm_, mlp_ext.nn.utils.clip_grad_norm_
        yield Case(
            "rules",
            f"clip_grad_norm_, {title}",
            {
                "torch": Competitor(clipper(plain, shapes, foreach=False)),
                "torch foreach": Competitor(clipper(plain, shapes, foreach=True), BASELINE),
                "mlp_ext": Competitor(clipper(ours, shapes), OURS),
            },
            bytes=float(12 * numbers),
            ceiling=ceiling,
        )
