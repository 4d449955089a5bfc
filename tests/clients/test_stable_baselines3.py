"""Stable-Baselines3: an agent with a fused policy and our optimizer learns what the plain one does.

PPO, DQN and SAC, same seeds: the same actions, so the same data, and the same parameters to
rounding after some updates.
"""

import gymnasium
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from torch import nn

import mlp_ext

# PPO's policies have torch.optim.Adam work with eps=1e-5, and know it by `==`: a subclass must be
# told (docs/guides.md).
ADAM = {"optimizer_class": mlp_ext.optim.Adam}
ALGORITHMS = {
    "PPO": (PPO, "CartPole-v1", {"n_steps": 32, "batch_size": 16, "n_epochs": 2}, {"eps": 1e-5}),
    "DQN": (DQN, "CartPole-v1", {"learning_starts": 16, "target_update_interval": 20}, {}),
    "SAC": (SAC, "Pendulum-v1", {"learning_starts": 16, "batch_size": 32}, {}),
}
STEPS = 128
algorithms = pytest.mark.parametrize("name", ALGORITHMS)


def agent(name: str, ours: bool, **options):
    kind, environment, settings, optimizer_kwargs = ALGORITHMS[name]
    policy = {"net_arch": [24, 24], "activation_fn": nn.Tanh if kind is PPO else nn.ReLU}
    if ours:
        policy |= {**ADAM, "optimizer_kwargs": optimizer_kwargs}
    model = kind(
        "MlpPolicy",
        gymnasium.make(environment),
        seed=5,
        device="cpu",
        policy_kwargs=policy,
        **settings,
        **options,
    )
    if ours:
        mlp_ext.fuse(model.policy)
    return model


def assert_same_parameters(ours, plain):
    theirs = plain.policy.state_dict()
    assert list(ours.policy.state_dict()) == list(theirs)
    for key, value in ours.policy.state_dict().items():
        torch.testing.assert_close(
            value, theirs[key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


def optimizers(model) -> list[torch.optim.Optimizer]:
    policy = model.policy
    found = [getattr(part, "optimizer", None) for part in (policy, *policy.children())]
    return [optimizer for optimizer in found if optimizer is not None]


@pytest.fixture(scope="module")
def trained():
    """name -> (ours, plain), both after the same number of steps in the environment."""
    torch.set_num_threads(1)
    return {
        name: tuple(agent(name, ours).learn(STEPS) for ours in (True, False)) for name in ALGORITHMS
    }


@algorithms
def test_the_same_agent(trained, name):
    ours, plain = trained[name]
    fresh = agent(name, False).policy.state_dict()
    moved = [key for key, value in plain.policy.state_dict().items() if not value.equal(fresh[key])]
    assert len(moved) > len(fresh) / 2, "the comparison is of trained networks"
    assert_same_parameters(ours, plain)
    assert optimizers(ours) and all(type(o) is mlp_ext.optim.Adam for o in optimizers(ours))


@algorithms
def test_every_linear_of_a_policy_that_is_in_a_sequential_is_fused(trained, name):
    reports = mlp_ext.explain(trained[name][0].policy)
    assert sum(report.fused for report in reports) >= 3
    for report in reports:
        assert report.fused or "calls it in a forward of its own" in report.how


@algorithms
@pytest.mark.parametrize("way", ["ours", "to plain", "from plain"])
def test_a_saved_agent_goes_on(trained, name, way, tmp_path):
    """save and load keep optimizer class and state; the loaded policy is to be fused again."""
    ours, plain = trained[name]
    kind = type(plain)
    saved = plain if way == "from plain" else ours
    saved.save(tmp_path / "agent")
    if way == "ours":
        loaded = kind.load(tmp_path / "agent", device="cpu")
        assert optimizers(loaded) and all(type(o) is mlp_ext.optim.Adam for o in optimizers(loaded))
        assert not any(report.fused for report in mlp_ext.explain(loaded.policy))
        mlp_ext.fuse(loaded.policy)
    else:
        loaded = agent(name, way == "from plain")
        loaded.set_parameters(str(tmp_path / "agent"), device="cpu")
    assert_same_parameters(loaded, saved)
    for mine, theirs in zip(optimizers(loaded), optimizers(saved), strict=True):
        torch.testing.assert_close(mine.state_dict()["state"], theirs.state_dict()["state"])

    environment = gymnasium.make(ALGORITHMS[name][1])
    observation, _ = environment.reset(seed=1)
    actions = [m.predict(observation, deterministic=True)[0] for m in (loaded, saved)]
    torch.testing.assert_close(*map(torch.as_tensor, actions), rtol=1e-4, atol=1e-5)


def test_ppo_keeps_its_own_epsilon_for_torchs_adam_alone():
    """What the guide warns of; if this fails, the guide's `optimizer_kwargs` are needless."""
    assert agent("PPO", False).policy.optimizer.defaults["eps"] == 1e-5
    bare = PPO("MlpPolicy", gymnasium.make("CartPole-v1"), policy_kwargs=dict(ADAM), device="cpu")
    assert bare.policy.optimizer.defaults["eps"] == 1e-8
