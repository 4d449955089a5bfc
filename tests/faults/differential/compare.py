"""Whether the two logs of a case say the same."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import torch

from .plan import DISTURBANCES
from .world import World

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
NUDGE = {torch.float64: 1e-14, torch.float32: 3e-7, torch.bfloat16: 4e-3}
# What an operation that fails says all the same; the rest is what hooks noted before it failed.
OF_ERRORS = ("error", "changed by an error", "error beside a thread")
# Others have other words in the two libraries, or are said once in a process, by the first run.
BROADCAST = "Using a target size"


@dataclass
class Failure:
    kind: str  # what cases of one cause have in common
    text: str


def difference(plan, theirs, ours):
    mine, other = comparable(ours.log), comparable(theirs.log)
    spread = functools.cache(lambda: _spread(plan, other))
    for i, (index, label, value) in enumerate(other):
        if i >= len(mine):
            return failure_of(plan, label, index, "missing", f"ours ends before {label} {value}")
        at, name, found = mine[i]
        if (at, name) != (index, label):
            text = f"PyTorch: {label} {value}, ours: operation {at}, {name} {found}"
            for world in (theirs, ours):
                text += f"\n    {getattr(world, 'message', 'no error')}"
            if at < index:
                return failure_of(plan, name, at, _word(found), text)
            return failure_of(plan, label, index, f"but {name} {_word(found)}", text)
        if label == "error":
            if found is not value and not _is_another_of(plan, index, found):
                text = f"{value} {theirs.message}\n    {found} {ours.message}"
                return failure_of(plan, label, index, f"{_word(value)} {_word(found)}", text)
        elif why := _unlike(label, value, found, _least_tolerance(plan)):
            if not isinstance(why, float):
                return failure_of(plan, label, index, "kind", why)
            limit = 8 * spread()[i]
            if why > limit:
                text = f"differs by {why:.2e}, PyTorch from itself by {limit / 8:.1e}"
                return failure_of(plan, label, index, "value", text)
        if not _is_finite(value):
            return None  # what follows is noise
    if len(mine) > len(other):
        at, name, found = mine[len(other)]
        return failure_of(plan, name, at, "more", f"only ours: {name} {found}")
    return None


def comparable(log):
    """Warnings stand at the end of their operation; each once. Of an operation that fails, what ran
    before the failure is not compared: TrainStep looks at all that it needs before it begins."""
    failed = {index for index, label, _ in log if label == "error"}
    seen, result = set(), []
    for index, label, value in log:
        if index in failed and label not in OF_ERRORS:
            continue
        if label == "warning":
            if not value[1].startswith(BROADCAST) or (index, value) in seen:
                continue
            seen.add((index, value))
        result.append((index, label, value))
    return result


def _is_another_of(plan, index, error):
    """Whether PyTorch raises it there as well, of what else is wrong in the program: with two
    mistakes in it, either may be found first. Looks at it without some of its disturbances."""
    odd = [i for i, name in enumerate(plan.names()[:index]) if name != "train"]
    usual = {"target": "int64" if plan.loss["kind"] == "ce" else "same"}
    for n in range(min(len(odd), 4) + 1):
        for out in itertools.combinations(odd, n):
            operations = [one for i, one in enumerate(plan.operations[:index]) if i not in out]
            for loss in (plan.loss, {**plan.loss, **usual}):
                other = dataclasses.replace(plan, operations=operations, loss=loss)
                if World(other, False).run().log[-1:] == [(len(operations), "error", error)]:
                    return True
    return False


def _word(value):
    return getattr(value, "__name__", "" if isinstance(value, torch.Tensor) else str(value)[:30])


def failure_of(plan, label, index, what, text):
    operation = "build" if not index else plan.operations[index - 1][0]
    name = operation if operation in DISTURBANCES else plan.name(index)
    subclass = plan.optimizer["subclass"]
    where = plan.entry + (f", {subclass} subclass:" if subclass else ":")
    return Failure(f"{where} {name} | {operation}: {label} {what}", text)


def _lists(value, found):
    """Pairs of tensors, or None for values of another kind."""
    if isinstance(value, torch.Tensor) and isinstance(found, torch.Tensor):
        return [(value, found)]
    if isinstance(value, list) and isinstance(found, list) and len(value) == len(found):
        return list(zip(value, found, strict=True))
    return None


def _narrowest(plan):
    """The dtype with the least bits that may come in anywhere, whatever that of a result is."""
    names = plan.names()
    if plan.dtype == torch.bfloat16 or "autocast" in names or "converted" in names:
        return torch.bfloat16
    return torch.float32 if "swap_on_conversion" in names else plan.dtype


def _has_narrow_options(plan):
    """Of a learning rate that is of float32 PyTorch computes in float32 what follows."""
    return plan.optimizer["lr_kind"] in ("tensor", "float32") or "options" in plan.names()


def _least_tolerance(plan):
    return max(TOLERANCE[_narrowest(plan)], 1e-6 if _has_narrow_options(plan) else 0.0)


def _unlike(label, value, found, least):
    """None; a text for another kind of value; or a relative error beyond the tolerance."""
    pairs = _lists(value, found)
    if pairs is None:
        return None if value == found else f"PyTorch {value}, ours {found}"
    tensors = []
    for i, (a, b) in enumerate(pairs):
        if isinstance(a, float) and isinstance(b, float):
            tensors.append(_as_tensors(a, b))
        elif not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            if type(a) is not type(b) or a != b:
                return f"{label}[{i}]: PyTorch {_short(a)}, ours {_short(b)}"
        elif a.dtype != b.dtype or a.shape != b.shape:
            return f"{label}[{i}]: PyTorch {a.dtype} {[*a.shape]}, ours {b.dtype} {[*b.shape]}"
        elif a.numel():
            tensors.append((a, b))
    error = _error(tensors)
    tolerance = max([least, *(TOLERANCE.get(a.dtype, 0.0) for a, _ in tensors)])
    return error if error > tolerance else None


def _as_tensors(*values):
    return [v if isinstance(v, torch.Tensor) else torch.tensor(v).double() for v in values]


def _short(value):
    return f"{value.dtype} {[*value.shape]}" if isinstance(value, torch.Tensor) else value


def _error(pairs):
    """The largest difference relative to the largest value of all of one label."""
    scale = worst = 0.0
    for a, b in pairs:
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(a.nan_to_num(3e300).masked_fill(finite, 0), _odd(b, finite)):
            return float("inf")
        a, b = a.masked_fill(~finite, 0), b.masked_fill(~finite, 0)
        scale = max(scale, a.abs().max().item())
        worst = max(worst, (a - b).abs().max().item())
    return worst / scale if scale else worst


def _odd(b, finite):
    """b where the other is not finite; NaN everywhere else would not do, nor would infinity."""
    result = b.nan_to_num(3e300).masked_fill(finite, 0)
    return result if b[finite].isfinite().all() else result + 1


def _is_finite(value):
    tensors = value if isinstance(value, list) else [value]
    return all(t.isfinite().all() for t in tensors if isinstance(t, torch.Tensor) and t.numel())


def _spread(plan, log):
    """How far each entry of PyTorch's log moves when inputs and parameters move by rounding, or all
    is computed in float64: what PyTorch itself loses, of small losses and in states of 16 bits. And
    from run to run: torch 2.13's fused SGD leaves some of a bfloat16 buffer as it finds it."""
    worst = [0.0] * len(log)
    eps = max(NUDGE[_narrowest(plan)], NUDGE[torch.float32] if _has_narrow_options(plan) else 0.0)
    others = [World(plan, False, nudge=(eps, seed)) for seed in range(6)]
    again = [World(plan, False) for _ in range(3)]
    for other in (*others, *again, World(plan, False, widened=True)):
        moved = zip(log, comparable(other.run().log), strict=False)
        for i, ((_, label, value), (_, name, found)) in enumerate(moved):
            error = 0.0 if label == "error" or label != name else _movement(value, found)
            worst[i] = max(worst[i], error)
    return worst


def _movement(value, moved):
    pairs = _lists(value, moved)
    if pairs is None:
        return 0.0
    kinds = (torch.Tensor, float)
    pairs = [(a, b) for a, b in pairs if isinstance(a, kinds) and isinstance(b, kinds)]
    tensors = [_as_tensors(a, b) for a, b in pairs]
    return _error([(a, b) for a, b in tensors if a.numel() and a.shape == b.shape])
