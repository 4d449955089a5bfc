"""Tools that make options of a constructor's parameters find torch.optim's, and ours after them."""

import inspect
import typing

import pytest
import torch
from cases import classes

from mlp_ext import optim

OURS = inspect.Parameter(
    "master_weights", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool
)


@classes
def test_signature(name):
    ours, theirs = getattr(optim, name), getattr(torch.optim, name)
    for one, other in ((ours, theirs), (ours.__init__, theirs.__init__)):
        mine, others = inspect.signature(one), inspect.signature(other)
        assert [*mine.parameters.values()] == [*others.parameters.values(), OURS]
        assert mine.return_annotation == others.return_annotation
    hints = typing.get_type_hints(theirs.__init__)
    returned = {"return": hints.pop("return")} if "return" in hints else {}
    assert typing.get_type_hints(ours.__init__) == {**hints, "master_weights": bool, **returned}
    assert ours.__init__.__qualname__ == f"{name}.__init__"
    assert ours.__init__.__module__ == "mlp_ext.optim"


@classes
def test_signature_of_a_subclass(name):
    class Own(getattr(optim, name)):
        def __init__(self, params, warmup=10):
            super().__init__(params)

    class Inheriting(getattr(optim, name)):
        pass

    assert [*inspect.signature(Own).parameters] == ["params", "warmup"]
    assert inspect.signature(Inheriting) == inspect.signature(getattr(optim, name))


class Warm(optim.Adam):
    def __init__(self, params, *args, warmup: int = 10, **kwargs):
        super().__init__(params, *args, **kwargs)
        self.warmup = warmup


def test_jsonargparse():
    """What LightningCLI does with an `OptimizerCallable`."""
    jsonargparse = pytest.importorskip("jsonargparse")
    p = torch.nn.Parameter(torch.ones(2))
    factory = typing.Callable[[typing.Iterable], torch.optim.Optimizer]
    for path, extra, weights in (
        ("mlp_ext.optim.Adam", {"master_weights": True}, True),
        ("mlp_ext.optim.SGD", {"momentum": 0.5}, False),
        (f"{__name__}.Warm", {"warmup": 3, "eps": 1e-3}, False),
    ):
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--optimizer", type=factory)
        given = {"class_path": path, "init_args": {"lr": 0.25, **extra}}
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        made = instantiate(parser.parse_object({"optimizer": given}))
        optimizer = made.optimizer([p])
        group = optimizer.param_groups[0]
        assert f"{type(optimizer).__module__}.{type(optimizer).__name__}" == path
        assert group["lr"] == 0.25 and group.get("master_weights", False) is weights
        assert all(group.get(key, value) == value for key, value in extra.items())
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(optim.Adam, "adam", skip={"params"})
    found = parser.parse_args(["--adam.lr=0.5", "--adam.betas=[0.5,0.6]"]).adam
    assert (found.lr, found.betas, found.amsgrad) == (0.5, (0.5, 0.6), False)
    with pytest.raises(jsonargparse.ArgumentError):
        parser.parse_args(["--adam.learning_rate=0.5"])
