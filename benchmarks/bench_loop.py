"""The unchanged training loop: forward, cross-entropy, zero_grad, backward, step."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import mlp_ext

from .harness import Case
from .models import NETS, batch_of, label, plain_net, step_flops


def step_of(model, loss_fn, optimizer, features, labels) -> Callable[[], object]:
    def step():
        loss = loss_fn(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def cases(full: bool) -> Iterator[Case]:
    for name in NETS:
        data = batch_of(name)

        def plain(data=data, name=name, **options):
            model = plain_net(name)
            optimizer = torch.optim.Adam(model.parameters(), **options)
            return step_of(model, F.cross_entropy, optimizer, *data)

        fused = mlp_ext.fuse(plain_net(name))
        optimizer = mlp_ext.optim.Adam(fused.parameters())
        yield Case(
            "loop",
            label(name),
            {
                "torch Adam": plain(),
                "torch Adam fused": plain(fused=True),
                "mlp_ext": step_of(fused, mlp_ext.functional.cross_entropy, optimizer, *data),
            },
            ours="mlp_ext",
            baseline="torch Adam fused",
            work=step_flops(name),
        )
