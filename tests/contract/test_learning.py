"""The algorithm itself: its arguments, learning, predicting, seeds, memory, threads, and users' subclasses of it."""

import gc
import inspect
import io
import threading
import warnings
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from sb3_trpo_plus import NPG, TRPO, PPOPenalty, VineTRPO
from tests.contract.programs import (
    FAMILY,
    MORE_STEPS,
    NO_CRITIC,
    OTHER_SAMPLE,
    Algorithm,
    Episodes,
    Looking,
    Raises,
    assert_at_least,
    assert_same_direction,
    contract,
    direction,
    envs,
    flat_parameters,
    learn,
    looks,
    make,
    moved,
    rollout,
)

OBSERVATIONS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
NOT_TRPO = dict.fromkeys((NPG, PPOPenalty, VineTRPO), "it has other arguments")


def signature(function: Any) -> list[tuple[str, Any]]:
    return [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]


def test_arguments_of_trpo() -> None:
    """The constructor's arguments, in their order, and their defaults; more may follow."""
    theirs = signature(sb3_contrib.TRPO.__init__)
    assert signature(TRPO.__init__)[: len(theirs)] == theirs


@pytest.mark.parametrize(
    "method", ["learn", "load", "save", "predict", "set_env", "set_parameters", "get_parameters", "set_logger"]
)
@pytest.mark.parametrize("member", FAMILY)
def test_arguments_of_methods(member: Algorithm, method: str) -> None:
    """The names and the order of each method's arguments; more may follow, by keyword only."""
    theirs = [name for name, _ in signature(getattr(sb3_contrib.TRPO, method))]
    by_keyword = {
        name
        for name, parameter in inspect.signature(getattr(member, method)).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    ours = [name for name, _ in signature(getattr(member, method))]
    assert [name for name in ours if name in theirs or name not in by_keyword] == theirs


@contract()
def test_bases(algorithm: Algorithm) -> Any:
    """``isinstance`` of SB3's base classes."""
    return issubclass(algorithm, OnPolicyAlgorithm), issubclass(algorithm, BaseAlgorithm)


@contract(without=NOT_TRPO, compare=assert_at_least)
def test_attributes(algorithm: Algorithm) -> Any:
    """All public attributes of a model."""
    return {name for name in vars(make(algorithm)) if not name.startswith("_")}


@contract(without=NOT_TRPO)
def test_positional_arguments(algorithm: Algorithm) -> Any:
    """A call with positional arguments."""
    model = algorithm("MlpPolicy", envs(), 2e-3, 32, 16, 0.9, 7, 0.2, 0.7, 5, 3, 0.8)
    names = ("learning_rate", "n_steps", "batch_size", "gamma", "cg_max_steps", "cg_damping", "line_search_shrinking_factor")
    return [getattr(model, name) for name in (*names, "line_search_max_iter", "n_critic_updates", "gae_lambda")]


@contract()
def test_unknown_argument_is_refused(algorithm: Algorithm) -> Any:
    """A TypeError that names it."""
    with pytest.raises(TypeError, match="clip_range"):
        make(algorithm, clip_range=0.2)
    return True


OUT_OF_RANGE = {"gae_lambda": 1.5, "gamma": 1.5, "target_kl": -1.0, "n_critic_updates": -1, "batch_size": 0}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_arguments_out_of_range_are_refused(name: str) -> None:
    """A ValueError that names the argument; sb3-contrib takes them, and learns nothing or fails later."""
    sb3_contrib.TRPO(
        "MlpPolicy",
        envs(),
        **{"n_steps": 32, "target_kl": 0.01, **({} if name == "batch_size" else {name: OUT_OF_RANGE[name]})},
    )
    for member in FAMILY:
        with pytest.raises(ValueError, match=name):
            make(member, **{name: OUT_OF_RANGE[name]})


@contract()
def test_rollout_too_short_is_refused(algorithm: Algorithm) -> Any:
    """An AssertionError where advantages of one sample were to be normalised."""
    kwargs: dict[str, Any] = {"n_rollout_states": 1} if issubclass(algorithm, VineTRPO) else {}
    with pytest.raises(AssertionError):
        make(algorithm, envs(n_envs=1), n_steps=1, batch_size=1, **kwargs)
    return True


@contract()
def test_learn_returns_the_model(algorithm: Algorithm) -> Any:
    """``model = TRPO(...).learn(...)``."""
    model = make(algorithm)
    return model.learn(64) is model, model.learn(total_timesteps=64, callback=None, log_interval=1, tb_log_name="x") is model


@contract(without={VineTRPO: MORE_STEPS})
def test_number_of_steps(algorithm: Algorithm) -> Any:
    """Whole rollouts, as many as it takes; and going on."""
    model, counts = make(algorithm), []
    for total, reset in ((100, True), (10, False), (64, True)):
        model.learn(total, reset_num_timesteps=reset)
        counts.append((model.num_timesteps, model._total_timesteps, model._n_updates))
    return counts


@contract(without={VineTRPO: NO_CRITIC})
def test_update_moves_everything(algorithm: Algorithm) -> Any:
    """All parameters of a default policy are learned."""
    return moved(make(algorithm))


@contract(without={VineTRPO: "its policy is fitted, and its critic only with bootstrap=True"})
def test_no_critic_updates(algorithm: Algorithm) -> Any:
    """``n_critic_updates=0``: the critic stays."""
    with warnings.catch_warnings():
        # sb3-contrib takes the mean of no losses.
        warnings.simplefilter("ignore")
        return moved(make(algorithm, n_critic_updates=0))


@contract(without=NOT_TRPO)
def test_kl_stays_within_its_limit(algorithm: Algorithm) -> Any:
    """The logged KL of an update is below ``target_kl`` and above 0."""
    model = make(algorithm, target_kl=0.003)
    learn(model)
    return 0 < float(model.logger.name_to_value["train/kl_divergence_loss"]) < 0.003


@pytest.mark.parametrize("name", ["target_kl", "cg_damping"])
@contract(without={PPOPenalty: "its KL is steered, not limited", VineTRPO: OTHER_SAMPLE})
def test_argument_changed_on_the_model(algorithm: Algorithm, name: str) -> Any:
    """``model.target_kl = ...`` acts in the next update: a smaller limit or a larger damping makes a smaller step."""
    norms = []
    for factor in (1.0, 1e-4 if name == "target_kl" else 1e4):
        model = make(algorithm, n_critic_updates=1)
        setattr(model, name, factor * getattr(model, name))
        before = model.policy.action_net.weight.detach().clone()
        learn(model)
        norms.append(float((model.policy.action_net.weight - before).norm().detach()))
    return norms[1] != norms[0], norms[1] < norms[0] if name == "target_kl" else True


@contract(without={PPOPenalty: "no step direction", VineTRPO: OTHER_SAMPLE}, compare=assert_same_direction)
def test_sub_sampling(algorithm: Algorithm) -> Any:
    """``sub_sampling_factor``: the direction is of every third sample."""
    return direction(make(algorithm, n_critic_updates=0, sub_sampling_factor=3))


@contract(without={PPOPenalty: "no step direction", VineTRPO: OTHER_SAMPLE}, compare=assert_same_direction)
def test_advantages_as_they_are(algorithm: Algorithm) -> Any:
    """``normalize_advantage=False``."""
    return direction(make(algorithm, n_critic_updates=0, normalize_advantage=False))


@pytest.mark.parametrize("space", ["box", "discrete", "multi_discrete", "multi_binary"])
@contract()
def test_predict(algorithm: Algorithm, space: str) -> Any:
    """``predict``: deterministic and sampled with a seed, for one observation and several."""
    model = make(algorithm, envs(space))
    results = []
    for deterministic in (True, False):
        for observations in (OBSERVATIONS, OBSERVATIONS[0]):
            th.manual_seed(5)
            results.append(model.predict(observations, deterministic=deterministic))
    return results


@contract()
def test_predict_passes_states_through(algorithm: Algorithm) -> Any:
    """``state`` and ``episode_start`` are arguments; the state returned is None."""
    return make(algorithm).predict(OBSERVATIONS, state=None, episode_start=np.ones(10, bool), deterministic=True)


@contract()
def test_predict_of_another_shape_is_refused(algorithm: Algorithm) -> Any:
    """An observation that is not of the space."""
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        make(algorithm).predict(np.zeros(7, np.float32))
    return True


@contract()
def test_evaluate_policy(algorithm: Algorithm) -> Any:
    """``evaluate_policy`` of SB3, for a model that has learned nothing yet."""
    return evaluate_policy(make(algorithm), envs(n_envs=2), n_eval_episodes=5, return_episode_rewards=True)


@contract()
def test_seed_reproduces_the_training(algorithm: Algorithm) -> Any:
    """Two models of one seed learn the same, to the bit; another seed something else."""
    parameters = [flat_parameters(make(algorithm, seed=seed).learn(200)) for seed in (3, 3, 4)]
    return np.array_equal(parameters[0], parameters[1]), np.array_equal(parameters[0], parameters[2])


@contract()
def test_seed_makes_the_same_policy(algorithm: Algorithm) -> Any:
    """The initial policy of a seed is SB3's."""
    return flat_parameters(make(algorithm, seed=12))


@contract()
def test_set_random_seed(algorithm: Algorithm) -> Any:
    """``model.set_random_seed`` and SB3's ``set_random_seed``: the next rollout is that of the seed."""
    model = make(algorithm, seed=None)
    model.policy.load_state_dict(make(algorithm).policy.state_dict())
    model.set_random_seed(7)
    set_random_seed(8)
    return rollout(model)


@contract()
def test_generators_after_a_rollout(algorithm: Algorithm) -> Any:
    """Torch's and NumPy's global generators at the end of a rollout: a user's next numbers are those in SB3."""
    found = looks(algorithm, lambda _: th.rand(3), "rollout_end")
    return found


@contract()
def test_device_and_verbosity(algorithm: Algorithm) -> Any:
    """``model.device``, ``model.verbose``, and that a Monitor is announced with ``verbose=1``."""
    with redirect_stdout(io.StringIO()) as out:
        model = make(algorithm, Episodes(spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(3)), verbose=1)
    return str(model.device), model.verbose, "Monitor" in out.getvalue(), "DummyVecEnv" in out.getvalue()


@contract()
def test_no_output(algorithm: Algorithm) -> Any:
    """``verbose=0`` prints nothing at all."""
    with redirect_stdout(io.StringIO()) as out:
        make(algorithm).learn(200)
    return out.getvalue()


@contract()
def test_mode_after_learning(algorithm: Algorithm) -> Any:
    """``predict`` sets evaluation mode in all modules, whatever ``learn`` has left them in."""
    model = make(algorithm).learn(64)
    model.predict(OBSERVATIONS)
    return [module.training for module in model.policy.modules()]


@contract()
def test_gradients_are_on_after_learning(algorithm: Algorithm) -> Any:
    """Gradients are enabled, and every parameter still asks for its own."""
    model = make(algorithm).learn(64)
    return th.is_grad_enabled(), [p.requires_grad for p in model.policy.parameters()]


@contract()
def test_parameters_are_the_same_objects(algorithm: Algorithm) -> Any:
    """A parameter that a user holds is the policy's after an update, and has the new numbers; the optimiser has it, too."""
    model = make(algorithm)
    held = dict(model.policy.named_parameters())
    learn(model)
    grouped = {id(parameter) for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    return [parameter is held[name] and id(parameter) in grouped for name, parameter in model.policy.named_parameters()]


@contract()
def test_learning_in_inference_of_others(algorithm: Algorithm) -> Any:
    """A loss of the user's own on the policy after ``learn`` can be differentiated, as in imitation's behavioural cloning."""
    model = make(algorithm).learn(64)
    actions = th.zeros(10, 3)
    values, log_prob, entropy = model.policy.evaluate_actions(th.as_tensor(OBSERVATIONS), actions)
    model.policy.optimizer.zero_grad()
    (values.mean() - log_prob.mean() - entropy.mean()).backward()
    model.policy.optimizer.step()
    return [parameter.grad is not None for parameter in model.policy.parameters()]


@contract()
def test_no_graph_is_left(algorithm: Algorithm) -> Any:
    """After ``learn`` no tensor of the policy's distribution is part of a graph."""
    model = make(algorithm).learn(64)
    inner = model.policy.action_dist.distribution
    return [getattr(inner, name).requires_grad for name in ("loc", "scale")]


@contract(without={VineTRPO: "the few states that it branched from stay, for the picture of its step"})
def test_rollouts_do_not_stay_in_memory(algorithm: Algorithm) -> Any:
    """After ``learn`` no tensor of the size of the rollout's observations is left."""

    def large() -> int:
        gc.collect()
        found = (one for one in gc.get_objects() if type(one) is th.Tensor)
        return sum(one.dim() >= 2 and one.shape[-1] == 211 and one.shape[0] >= 4 for one in found)

    # Three units, so that weights and the optimiser's moments of them have fewer rows than a minibatch.
    model = make(algorithm, envs(observation_space=spaces.Box(-1.0, 1.0, (211,))), policy_kwargs={"net_arch": [3]})
    before = large()
    learn(model)
    return large() - before


@contract()
def test_memory_does_not_grow(algorithm: Algorithm) -> Any:
    """The number of tensors is the same after three rollouts as after six."""
    model, counts = make(algorithm), []
    for _ in range(2):
        learn(model, 3)
        gc.collect()
        counts.append(sum(type(one) is th.Tensor for one in gc.get_objects()))
    return abs(counts[1] - counts[0]) <= 5


@contract()
def test_thread_count_is_as_before(algorithm: Algorithm) -> Any:
    """``torch.get_num_threads()`` after learning, and in a callback."""
    before = th.get_num_threads()
    inside = looks(algorithm, lambda _: th.get_num_threads())
    return th.get_num_threads() == before, {one == before for one in inside}


@contract()
def test_thread_count_after_an_error(algorithm: Algorithm) -> Any:
    """``torch.get_num_threads()`` where the update failed."""
    before = th.get_num_threads()
    model = make(algorithm)

    class Fails(nn.Module):
        def forward(self, inputs: th.Tensor) -> th.Tensor:
            if th.is_grad_enabled():
                raise KeyError("mine")
            return inputs

    model.policy.mlp_extractor.policy_net.append(Fails())
    with pytest.raises(KeyError):
        learn(model)
    return th.get_num_threads() == before


@contract()
def test_two_models_learn_at_once(algorithm: Algorithm) -> Any:
    """Two trainings in two threads come to their end, and leave as many threads as before."""
    before, models = th.get_num_threads(), [make(algorithm, seed=seed) for seed in (0, 1)]
    workers = [threading.Thread(target=model.learn, args=(200,)) for model in models]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [model._n_updates > 0 for model in models], th.get_num_threads() == before


@contract()
def test_two_models_by_turns(algorithm: Algorithm) -> Any:
    """Two models of one program do not share anything: each learns as if it were alone."""
    alone = flat_parameters(make(algorithm).learn(64))
    make(algorithm, seed=9).learn(64)
    return np.array_equal(alone, flat_parameters(make(algorithm).learn(64)))


@pytest.mark.parametrize("method", ["train", "collect_rollouts", "_setup_model", "dump_logs", "_update_info_buffer"])
@contract()
def test_method_of_a_subclass_is_called(algorithm: Algorithm, method: str) -> Any:
    """What a user's subclass of the algorithm overrides."""
    calls: list[int] = []

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return getattr(super(cls, self), method)(*args, **kwargs)

    cls = type("Mine", (algorithm,), {method: called})
    make(cls).learn(64)
    return len(calls)


@pytest.mark.parametrize("method", ["train", "collect_rollouts"])
@contract()
def test_method_patched_on_a_model(algorithm: Algorithm, method: str) -> Any:
    """``model.train = ...``: the patched one is called."""
    model, calls = make(algorithm), list[int]()
    original = getattr(model, method)

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    setattr(model, method, patched)
    model.learn(64)
    return len(calls)


@contract(without={VineTRPO: OTHER_SAMPLE, PPOPenalty: "its updates draw other minibatches before the critic's"})
def test_rewards_replaced_before_the_update(algorithm: Algorithm) -> Any:
    """Rewards replaced in `_on_rollout_end` and the advantages computed anew, as exploration bonuses do."""

    def replace(callback: Looking) -> None:
        buffer = callback.model.rollout_buffer
        buffer.rewards[:] = 0.5
        last = th.zeros(buffer.n_envs)
        buffer.compute_returns_and_advantage(last_values=last, dones=np.zeros(buffer.n_envs))

    model = make(algorithm)
    learn(model, rollout_end=replace)
    with th.no_grad():
        return model.policy.predict_values(th.as_tensor(OBSERVATIONS)).round(decimals=2)


@contract(without={VineTRPO: NO_CRITIC, PPOPenalty: "its updates draw other minibatches before the critic's"})
def test_returns_replaced_before_the_update(algorithm: Algorithm) -> Any:
    """Returns replaced in `_on_rollout_end` are those that the critic is fitted to."""

    def replace(callback: Looking) -> None:
        callback.model.rollout_buffer.returns[:] = 3.0

    model = make(algorithm, learning_rate=0.01)
    learn(model, rollout_end=replace)
    with th.no_grad():
        return model.policy.predict_values(th.as_tensor(OBSERVATIONS)).round(decimals=3)


# What is logged of an update that was not one, too.
OF_ARGUMENTS = {"train/target_kl", "train/ent_coef", "train/gamma", "train/learning_rate"}


class NotANumber(Episodes):
    """Every reward is NaN."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


@contract(documented=(True, True, True, True), contrib=Raises(AssertionError, "not finite"))
def test_rewards_that_are_no_numbers_change_nothing(algorithm: Algorithm) -> Any:
    """Skipped updates are warned of, also the second, and leave a number in the log; sb3-contrib's parameters become NaN."""
    model = make(algorithm, envs(env_class=NotANumber))
    before, warned, tags = flat_parameters(model), list[bool](), set[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                try:
                    learn(model)
                except ValueError as error:
                    raise AssertionError("not finite") from error
            warned.append(any("rewards" in str(one.message) for one in caught))
            tags = {name for name in model.logger.name_to_value if name.startswith("train/")} - OF_ARGUMENTS
    after = flat_parameters(model)
    if not np.isfinite(after).all():
        raise AssertionError("not finite")
    return np.array_equal(before, after), *warned, len(tags) > 0
