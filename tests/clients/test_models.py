"""Larger models around our layers: mixer, residual MLP, transformer, attention; and a gradient
penalty. Each is trained beside its plain twin.

In float64: the bias of attention's keys has the gradient 0, and Adam makes whole steps of what
rounding in float32 leaves of it.
"""

import copy

import pytest
import torch
from torch import nn

import mlp_ext


class Mixer(nn.Module):
    """MLP-Mixer: token mixing on the transposed axis, so the stack's input is no contiguous one."""

    def __init__(self, tokens: int = 6, channels: int = 8) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(4))
        self.token_mixing = nn.ModuleList(self.block(tokens, 10) for _ in range(2))
        self.channel_mixing = nn.ModuleList(self.block(channels, 12) for _ in range(2))
        self.head = nn.Linear(channels, 3)

    @staticmethod
    def block(width: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width)
        )

    def forward(self, x):
        for i in range(2):
            x = x + self.token_mixing[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channel_mixing[i](self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class Residual(nn.Module):
    """Pre-activation blocks with BatchNorm; the same block is used twice, and x is kept."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, 16, bias=False),
                nn.SiLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, width),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(width, 3), nn.Tanh())

    def forward(self, x):
        x = self.stem(x.mean(1))
        for block in (*self.blocks, self.blocks[0]):
            x = x + block(x)
        return self.head(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 12), nn.ELU(), nn.Linear(12, 3))

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(8, 3))

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class GradientPenalty(nn.Module):
    """A critic whose output has its own gradient's norm in it: a second derivative in training."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        )

    def forward(self, x):
        with torch.enable_grad():
            x = x.mean(1).detach().requires_grad_()
            out = self.critic(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + (slope.norm(dim=1, keepdim=True) - 1).square()


MODELS = {kind.__name__: kind for kind in (Mixer, Residual, Attention, Encoder, GradientPenalty)}
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
models = pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
X, Y = (
    torch.randn(10, 6, 8, generator=torch.Generator().manual_seed(1)).double(),
    torch.arange(10) % 3,
)


def twins(kind):
    torch.manual_seed(0)
    plain = kind().double()
    return mlp_ext.fuse(copy.deepcopy(plain)), plain


def train(model, optimizer, loss_fn, steps=6):
    """Losses of some steps, with the same dropout masks for each model."""
    torch.manual_seed(5)
    losses = []
    for _ in range(steps):
        loss = loss_fn(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@models
def test_training(kind):
    ours, plain = twins(kind)
    losses = train(
        ours, mlp_ext.optim.AdamW(ours.parameters(), 0.01), mlp_ext.functional.cross_entropy
    )
    expected = train(
        plain, torch.optim.AdamW(plain.parameters(), 0.01), nn.functional.cross_entropy
    )
    assert expected[-1] < expected[0]
    torch.testing.assert_close(losses, expected, **CLOSE)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), **CLOSE)
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(X), plain(X), **CLOSE)
    if kind is not GradientPenalty:
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(ours(X), plain(X), **CLOSE)


FUSED = {"Mixer": 8, "Residual": 5, "Attention": 3, "Encoder": 1, "GradientPenalty": 3}


@models
def test_explain_names_what_is_left_alone(kind):
    reports = mlp_ext.explain(twins(kind)[0])
    assert sum(report.fused for report in reports) == FUSED[kind.__name__]
    for report in reports:
        if not report.fused:
            assert (
                "in a forward of its own" in report.how or "is a subclass of Linear" in report.how
            )


def test_a_feed_forward_block_with_our_linear():
    """explain's advice followed in a transformer layer: linear1 with its own ReLU.

    The layer's fast path (eval, no grad) reads linear1.weight and applies its own activation; it
    must not be taken, or the same numbers must come of it.
    """
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ours = copy.deepcopy(plain)
    ours.linear1 = mlp_ext.nn.Linear(8, 16, activation="relu")
    ours.linear1.load_state_dict(plain.linear1.state_dict())
    ours.activation = nn.Identity()
    assert [r.path for r in mlp_ext.explain(ours) if r.fused] == ["linear1"]
    for training in (True, False):
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                ours.train(training), plain.train(training)
                torch.testing.assert_close(ours(X.float()), plain(X.float()))
    for model in (ours, plain):
        model.train()(X.float()).square().sum().backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
