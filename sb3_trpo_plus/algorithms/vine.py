"""TRPO with the vine procedure: from the same states, several actions are tried, each followed by a rollout of its own."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_trpo_plus.algorithms.arguments import COUNT, FLAG, Range, one_of, or_none
from sb3_trpo_plus.algorithms.branches import grow, observations_at
from sb3_trpo_plus.algorithms.trpo import TRPO
from sb3_trpo_plus.envs.vec_states import VecState, branching, check_restorable, get_vec_state, set_vec_state
from sb3_trpo_plus.policies.distributions import action_distribution
from sb3_trpo_plus.policies.observations import select, stack
from sb3_trpo_plus.rollouts.checks import ObservationNotFiniteError
from sb3_trpo_plus.rollouts.failures import raise_naming
from sb3_trpo_plus.rollouts.sample import Sample, normalized

Array = npt.NDArray[Any]

# Unless n_actions is given: Discrete spaces of up to FEW_ACTIONS are tried as a whole, of others SAMPLED actions per state.
FEW_ACTIONS = 8
SAMPLED = 4


@dataclass(frozen=True)
class VineSample(Sample):
    """
    The states branched from (the rollout set) and their branches. ``actions`` and ``old_log_prob`` are those of the trunk.

    :param branches: the actions tried in each state, shape (states, actions, ...)
    :param log_proposal: log-probabilities (densities) with which they were drawn, shape (states, actions); None if they are
        all actions of the space
    :param advantages: of the branches, normalised if ``normalize_advantage``, shape (states, actions)
    :param raw_advantages: the same before normalisation
    """

    branches: th.Tensor
    log_proposal: th.Tensor | None

    def at(self, index: slice | th.Tensor) -> "VineSample":
        """The samples of some of the states, by slice or by an integer tensor."""
        observations = select(self.observations, index)
        return VineSample(
            observations,
            self.actions[index],
            self.old_log_prob[index],
            self.advantages[index],
            self.raw_advantages[index],
            self.branches[index],
            None if self.log_proposal is None else self.log_proposal[index],
        )

    def expected_advantage(self, distribution: Distribution, advantages: th.Tensor) -> th.Tensor:
        """
        L, averaged over the states: sum_a pi(a|s) A(s,a) if all actions were tried (TRPO paper, equation 15), else the
        self-normalised sum_k w_k A_k / sum_k w_k with w = pi(a|s) / q(a|s) (equation 16); w A if only one action was tried.
        """
        return (_weights(distribution, self.branches, self.log_proposal) * advantages).sum(dim=1).mean()


class VineTRPO(TRPO):
    """
    TRPO with the vine procedure, which measures what an action is worth by trying it and others from the same state.

    A rollout of ``n_steps`` steps, the trunk, gives the states; in ``n_rollout_states`` of them, drawn at random, each of
    ``n_actions`` actions is followed by a rollout with the present policy. Branches of a state share their random numbers, the
    environment's and the policy's, so that the differences between actions are estimated with little variance. Q is the
    discounted return of a branch. No critic is needed.

    The environment must be one that can be put back into a state (:mod:`sb3_trpo_plus.states`): MuJoCo, classic control, toy
    text, ALE, and others that can be copied, which is tested when training starts. The steps of all branches count in
    ``num_timesteps``, and callbacks are called at each, with ``branching`` True and all ``dones`` False in their locals.
    The last branches may overshoot ``total_timesteps`` by far.

    Paper: https://arxiv.org/abs/1502.05477, section 5.2

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (an id that is registered in Gymnasium, an env or a VecEnv)
    :param learning_rate: Learning rate of the critic; a float or a function of the remaining progress (from 1 to 0)
    :param n_steps: Steps of each environment in the trunk
    :param batch_size: Minibatch size of the critic's fit
    :param gamma: Discount factor, in [0, 1]; or a function of the remaining progress (from 1 to 0)
    :param cg_max_steps: Limit on the iterations of conjugate gradients, at least 1
    :param cg_damping: Added to the diagonal of the Fisher matrix, at least 0
    :param line_search_shrinking_factor: Factor of the step at each backtrack, in (0, 1)
    :param line_search_max_iter: Steps tried before the update is given up, at least 1
    :param n_critic_updates: Passes of the critic's fit over the trunk, at least 0
    :param gae_lambda: Trade-off of bias against variance in the critic's targets, in [0, 1]
    :param use_sde: Whether to use generalised State-Dependent Exploration (gSDE) instead of independent action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE; -1: only at the start of a rollout
    :param rollout_buffer_class: Rollout buffer class. ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: Keyword arguments of the rollout buffer
    :param normalize_advantage: Whether to give the advantages of a rollout mean 0 and standard deviation 1
    :param target_kl: Limit on the KL(old || new) of an update in the states branched from, as in :class:`~sb3_trpo_plus.TRPO`
    :param stats_window_size: Episodes that the logged success rate, episode length and reward are averaged over
    :param tensorboard_log: Folder of the TensorBoard logs; ``None``: no such logs
    :param policy_kwargs: Additional arguments of the policy
    :param verbose: 0: no output, 1: info messages, 2: debug messages
    :param seed: Seed of the pseudo-random generators
    :param device: Device of the networks (cpu, cuda, ...); auto: the GPU if there is one
    :param _init_setup_model: Whether to build the networks when the instance is created
    :param n_rollout_states: States of the trunk to branch from, at least 1, at most n_steps * n_envs
    :param n_actions: Actions tried in each of them, at least 1. A Discrete space with no more than that is tried as a whole,
        from others actions are drawn; a single one gets no baseline, and is only compared with those in other states.
        ``None``: all actions of a Discrete space of up to 8, otherwise 4
    :param rollout_length: Limit on the steps of a branch, including the action tried, at least 1; ``None``: until the episode
        ends, which it must do
    :param proposal: Distribution that actions are drawn from. "policy": the present policy, the first being the trunk's own
        action; "uniform": uniform over the action space, which omits a Gaussian's actions beyond the bounds of a Box
    :param bootstrap: Whether to add the critic's value of the last observation to the return of a branch that was cut off, by
        ``rollout_length`` or by a time limit; otherwise nothing is added, and no critic is fitted
    :param fisher_sub_sampling_factor: as in :class:`~sb3_trpo_plus.TRPO`, and so are the arguments after it
    :param cg_residual_tol: Relative residual at which conjugate gradients stop, at least 0
    :param ent_coef: Weight of the mean entropy in the surrogate objective, at least 0; or a function of the remaining progress
    :param fisher: "gauss_newton" or "empirical"
    :param kl_constraint: "mean" or "max"
    :param log_improvement_bound: Whether to log ``train/improvement_lower_bound``
    :param on_nonfinite: as in :class:`~sb3_trpo_plus.TRPO`; an observation in a branch does not end the episode of the trunk
    :raises TypeError: the state of the environment can't be saved
    :raises ValueError: an argument is out of its range, or the environment does not come back exactly
    """

    _told_by = "n_rollout_states"
    _ranges: ClassVar[dict[str, Range]] = {
        **TRPO._ranges,
        "n_rollout_states": COUNT,
        "proposal": one_of("policy", "uniform"),
        "n_actions": or_none(COUNT),
        "rollout_length": or_none(COUNT),
        "bootstrap": FLAG,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 256,
        batch_size: int = 128,
        gamma: float | Schedule = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule = 0.01,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        n_rollout_states: int = 64,
        n_actions: int | None = None,
        rollout_length: int | None = None,
        proposal: str = "policy",
        bootstrap: bool = False,
        fisher_sub_sampling_factor: int = 1,
        cg_residual_tol: float = 1e-5,
        ent_coef: float | Schedule = 0.0,
        fisher: str = "gauss_newton",
        kl_constraint: str = "mean",
        log_improvement_bound: bool = False,
        on_nonfinite: str | None = None,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            line_search_shrinking_factor=line_search_shrinking_factor,
            line_search_max_iter=line_search_max_iter,
            n_critic_updates=n_critic_updates,
            gae_lambda=gae_lambda,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            fisher_sub_sampling_factor=fisher_sub_sampling_factor,
            cg_residual_tol=cg_residual_tol,
            ent_coef=ent_coef,
            fisher=fisher,
            kl_constraint=kl_constraint,
            log_improvement_bound=log_improvement_bound,
            on_nonfinite=on_nonfinite,
        )
        self.n_rollout_states = n_rollout_states
        self.n_actions = n_actions
        self.rollout_length = rollout_length
        self.proposal = proposal
        self.bootstrap = bootstrap
        self._vine: VineSample | None = None
        self._checked_env: VecEnv | None = None
        if _init_setup_model:
            self._setup_model()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect the trunk, an ordinary on-policy rollout, and then the branches from some of its states.

        :param env: the environments
        :param callback: called at each step, and at the start and the end of the trunk
        :param rollout_buffer: to be filled with the trunk
        :param n_rollout_steps: steps of each environment in the trunk
        :return: False if the callback ended the training before all was collected
        """
        if self._checked_env is not env:
            try:
                check_restorable(env)
            except Exception as error:
                raise_naming(error, env, "in a test of whether its state can be restored")
            self._checked_env = env
        self._vine = None
        callback.update_locals({"branching": False})
        drawn = np.random.permutation(n_rollout_steps * env.num_envs)[: self.n_rollout_states]  # noqa: NPY002
        trunk = _StateRecorder(env, {divmod(int(place), env.num_envs) for place in drawn})
        if not super().collect_rollouts(trunk, callback, rollout_buffer, n_rollout_steps):
            return False
        if self._not_finite is not None:
            # The update will be skipped, so there is nothing that branches could be for.
            return True

        places = tuple(map(list, zip(*trunk.states, strict=True)))
        observations = obs_as_tensor(observations_at(rollout_buffer.observations, places), self.device)
        own_actions, own_log_prob = (
            th.as_tensor(array[places], device=self.device) for array in (rollout_buffer.actions, rollout_buffer.log_probs)
        )
        own_actions = own_actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else own_actions.float()
        actions, log_proposal = self._propose(observations, own_actions, own_log_prob)
        try:
            q = self._q_values(env, callback, list(trunk.states.values()), actions)
        except ObservationNotFiniteError as error:
            if self.on_nonfinite != "skip":
                raise
            self._not_finite = str(error)
            return True
        if q is None:
            return False
        advantages = q - self._baseline(observations, actions, log_proposal, q)
        scaled = normalized(advantages, self.normalize_advantage)
        self._vine = VineSample(observations, own_actions, own_log_prob, scaled, advantages, actions, log_proposal)
        return True

    @th.no_grad()
    def _propose(
        self, observations: Any, own_actions: th.Tensor, own_log_prob: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Actions to try, shape (states, actions, ...), and their log-probabilities when drawn; None if all are tried."""
        n_states, n_all = len(own_actions), self._number_of_actions()
        if n_all is not None and (n_all <= FEW_ACTIONS if self.n_actions is None else n_all <= self.n_actions):
            return th.arange(n_all, device=self.device).expand(n_states, -1), None
        n_actions = self.n_actions or SAMPLED
        if self.proposal == "uniform":
            drawn = [_uniform(self.action_space, self.policy.squash_output) for _ in range(n_states * n_actions)]
            actions = th.as_tensor(np.stack([action for action, _ in drawn]), device=self.device)
            log_density = th.full((n_states, n_actions), drawn[0][1], device=self.device)
            return actions.view(n_states, n_actions, *drawn[0][0].shape), log_density
        distribution = self.policy.get_distribution(observations)
        others = [self._draw(distribution) for _ in range(n_actions - 1)]
        log_probs = [own_log_prob, *(distribution.log_prob(action) for action in others)]
        return th.stack([own_actions, *others], dim=1), th.stack(log_probs, dim=1)

    def _number_of_actions(self) -> int | None:
        return int(self.action_space.n) if isinstance(self.action_space, spaces.Discrete) else None

    def _draw(self, distribution: Distribution) -> th.Tensor:
        if not isinstance(distribution, StateDependentNoiseDistribution):
            return distribution.sample()
        # gSDE's sample() returns the same action in a state until its matrix is resampled.
        inner: Any = distribution.distribution
        drawn: th.Tensor = inner.sample()
        return th.tanh(drawn) if self.policy.squash_output else drawn

    def _q_values(self, env: VecEnv, callback: BaseCallback, states: list[VecState], actions: th.Tensor) -> th.Tensor | None:
        """Discounted returns of the branches, shape (states, actions); None if the callback ended the training."""
        dtype = self.action_space.dtype if isinstance(self.action_space, (spaces.Discrete, spaces.MultiDiscrete)) else None
        as_taken = actions.cpu().numpy().astype(dtype or np.float32)
        as_taken = as_taken.reshape(*actions.shape[:2], *(self.action_space.shape or ()))
        end_of_trunk = [get_vec_state(env, index) for index in range(env.num_envs)]
        try:
            with branching(env) as suspended:

                def on_step(rewards: Array, infos: list[dict[str, Any]]) -> bool:
                    self.num_timesteps += env.num_envs
                    for info in infos:
                        info.pop("episode", None)
                    # Callbacks count episodes by dones, and a branch is no episode of the training.
                    dones = np.zeros(env.num_envs, dtype=bool)
                    callback.update_locals({"rewards": rewards, "infos": infos, "dones": dones, "branching": True})
                    with suspended():
                        return callback.on_step()

                grown = grow(env, states, as_taken, self.policy, self.rollout_buffer.gamma, self.rollout_length, on_step)
        finally:
            callback.update_locals({"branching": False})
            for index, state in enumerate(end_of_trunk):
                set_vec_state(env, index, state)
        if grown is None:
            return None
        returns, cuts = grown
        if self.bootstrap and cuts:
            with th.no_grad():
                last = self.policy.obs_to_tensor(stack([cut.observation for cut in cuts]))[0]
                values = self.policy.predict_values(last).flatten().tolist()
            for cut, value in zip(cuts, values, strict=True):
                returns[cut.place] += cut.discount * value
        return th.as_tensor(returns, dtype=th.float32, device=self.device)

    @th.no_grad()
    def _baseline(
        self, observations: Any, actions: th.Tensor, log_proposal: th.Tensor | None, q: th.Tensor
    ) -> th.Tensor | float:
        """V of each state, shape (states, 1), estimated from Q as L is; 0 for a single action, whose V would equal its Q."""
        if actions.shape[1] == 1:
            return 0.0
        distribution = action_distribution(self.policy, observations)
        return (_weights(distribution, actions, log_proposal) * q).sum(dim=1, keepdim=True)

    def _sample(self) -> Sample:
        assert self._vine is not None
        return self._vine

    def _first_not_finite(self) -> str | None:
        broken = super()._first_not_finite()
        if broken is None and self._vine is not None and not th.isfinite(self._vine.raw_advantages).all():
            return "returns of branches"
        return broken

    @property
    def _fits_critic(self) -> bool:
        return self.bootstrap

    @property
    def _samples_per_pass(self) -> int:
        return self.n_rollout_states

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        if self.normalize_advantage and self.n_rollout_states == self.n_actions == 1:
            raise ValueError(
                "normalize_advantage needs at least 2 branches, but n_rollout_states and n_actions are 1: raise one of them, "
                "or set normalize_advantage=False"
            )
        if self.n_rollout_states > self.n_steps * self.n_envs:
            raise ValueError(
                f"n_rollout_states must be at most n_steps * n_envs = {self.n_steps} * {self.n_envs}, the states of the "
                f"trunk, but it is {self.n_rollout_states}: lower it or raise n_steps"
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_vine", "_checked_env"]


class _StateRecorder(VecEnvWrapper):
    """
    Saves the states of the environments before chosen steps.

    :param venv: the environments
    :param places: pairs of the step, counted from 0, and the index of the environment
    """

    def __init__(self, venv: VecEnv, places: set[tuple[int, int]]) -> None:
        super().__init__(venv)
        self.places, self.n_steps = places, 0
        self.states: dict[tuple[int, int], VecState] = {}

    def step_async(self, actions: Array) -> None:
        for index in range(self.num_envs):
            if (self.n_steps, index) in self.places:
                self.states[self.n_steps, index] = get_vec_state(self.venv, index)
        self.n_steps += 1
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()

    def reset(self) -> VecEnvObs:
        return self.venv.reset()


def _weights(distribution: Distribution, branches: th.Tensor, log_proposal: th.Tensor | None) -> th.Tensor:
    """Weights of the branches' advantages in L, see :meth:`VineSample.expected_advantage`; shape (states, actions)."""
    log_prob = th.stack([distribution.log_prob(branches[:, k]) for k in range(branches.shape[1])], dim=1)
    if log_proposal is None:
        return log_prob.exp()
    log_ratio = log_prob - log_proposal
    return log_ratio.exp() if branches.shape[1] == 1 else th.softmax(log_ratio, dim=1)


def _uniform(space: spaces.Space[Any], is_squashed: bool) -> tuple[Array, float]:
    """A uniform action, before unscaling, from NumPy's global generator (which SB3 seeds), and its log-density."""
    random: Any = np.random
    if isinstance(space, spaces.Box):
        low, high = (np.full(space.shape, -1.0), np.full(space.shape, 1.0)) if is_squashed else (space.low, space.high)
        drawn = np.asarray(random.uniform(low.flatten(), high.flatten()), dtype=np.float32)
        return drawn, -float(np.log(high - low).sum())
    if isinstance(space, spaces.MultiBinary):
        bits = int(np.prod(space.shape))
        return np.asarray(random.randint(2, size=bits), dtype=np.float32), -bits * float(np.log(2))
    n = space.nvec.flatten() if isinstance(space, spaces.MultiDiscrete) else space.n  # type: ignore[attr-defined]
    return np.asarray(random.randint(n)), -float(np.log(n).sum())
