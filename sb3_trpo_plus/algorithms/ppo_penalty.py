"""Proximal policy optimisation with a penalty on the KL instead of the clipped ratio of SB3's PPO."""

import copy
import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trpo_plus.algorithms.arguments import AT_LEAST_0, COUNT, POSITIVE, Range, one_of
from sb3_trpo_plus.algorithms.base import EQUAL_ADVANTAGES, KLControlled
from sb3_trpo_plus.policies.actor import actor_gradient, parameters_at
from sb3_trpo_plus.policies.distributions import NotADistributionError, action_distribution, kl_divergence
from sb3_trpo_plus.rollouts.sample import Sample

# The adaptive penalty is changed if the KL is off its target by more than this factor, and kept within these limits.
TOLERANCE = 1.5
SMALLEST, LARGEST = 1e-6, 1e6


class PPOPenalty(KLControlled):
    """
    Proximal Policy Optimization (PPO) with the KL-penalised surrogate E[ratio * A] - beta * E[KL(old || new)].

    Several passes of minibatch gradient ascent on it improve the policy; beta is the penalty's coefficient. With
    ``penalty="adaptive"`` it is doubled after a rollout whose KL is more than 1.5 times ``target_kl``, and halved where it is
    less than ``target_kl`` / 1.5. With ``penalty="dual"`` it is the multiplier of the constraint KL <= ``target_kl`` and
    follows the gradient of the dual after each pass: beta <- max(0, beta + dual_learning_rate * (KL - target_kl)).

    Papers: Schulman et al., https://arxiv.org/abs/1707.06347, section 4 (adaptive); Boyd and Vandenberghe, "Convex
    Optimization", 2004, chapter 5 (the dual). The critic is fitted as in :class:`~sb3_trpo_plus.TRPO`.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (an id that is registered in Gymnasium, an env or a VecEnv)
    :param learning_rate: Learning rate of the actor and of the critic; a float or a function of the remaining progress (from 1
        to 0)
    :param n_steps: Steps of each environment in a rollout, which has n_steps * n_envs samples
    :param batch_size: Minibatch size of both fits
    :param n_epochs: Passes of the policy's update over the rollout, at least 1
    :param gamma: Discount factor, in [0, 1]; or a function of the remaining progress (from 1 to 0)
    :param gae_lambda: Trade-off of bias against variance in generalised advantage estimation, in [0, 1]
    :param penalty: "adaptive" or "dual"
    :param penalty_coef: beta at the start, positive (for "dual" it may be 0); training changes it, and it is saved with the
        model
    :param target_kl: The mean KL(old || new) of an update that beta is steered to, in nats, positive; for Box and MultiBinary
        actions the mean over the action's dimensions, as in :class:`~sb3_trpo_plus.TRPO`. Or a function of the remaining
        progress (from 1 to 0)
    :param dual_learning_rate: Step of the gradient ascent on beta, positive
    :param normalize_advantage: Whether to give the advantages of a rollout mean 0 and standard deviation 1
    :param ent_coef: Weight of the mean entropy in the surrogate objective, at least 0; or a function of the remaining progress
    :param max_grad_norm: Limit on the norm of the actor's gradient, positive
    :param n_critic_updates: Passes of the critic's fit over the rollout, at least 0
    :param use_sde: Whether to use generalised State-Dependent Exploration (gSDE) instead of independent action noise
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE; -1: only at the start of a rollout
    :param rollout_buffer_class: Rollout buffer class. ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: Keyword arguments of the rollout buffer
    :param sub_sampling_factor: The policy's update uses every k-th sample, k at least 1
    :param stats_window_size: Episodes that the logged success rate, episode length and reward are averaged over
    :param tensorboard_log: Folder of the TensorBoard logs; ``None``: no such logs
    :param policy_kwargs: Additional arguments of the policy
    :param verbose: 0: no output, 1: info messages, 2: debug messages
    :param seed: Seed of the pseudo-random generators
    :param device: Device of the networks (cpu, cuda, ...); auto: the GPU if there is one
    :param _init_setup_model: Whether to build the networks when the instance is created
    :param on_nonfinite: What becomes of a rollout in which the environment gave a number that is NaN or infinite, which in no
        case reaches the parameters, the statistics of a ``VecNormalize`` or, as an action, the environment. "raise": an error
        that names the environment, the step and the number; "skip": a warning that does, and no update, for an observation
        after a reset of all environments; ``None``: "raise" for an observation and "skip" for a reward
    :raises ValueError: an argument is out of its range
    :raises AssertionError: the action space is not supported, or a rollout is too short (as in SB3)
    """

    _told_by = "penalty"
    _ranges: ClassVar[dict[str, Range]] = {
        **KLControlled._ranges,
        "n_epochs": COUNT,
        "penalty": one_of("adaptive", "dual"),
        "penalty_coef": AT_LEAST_0,
        "dual_learning_rate": POSITIVE,
        "max_grad_norm": POSITIVE,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float | Schedule = 0.99,
        gae_lambda: float = 0.95,
        penalty: str = "adaptive",
        penalty_coef: float = 1.0,
        target_kl: float | Schedule = 0.01,
        dual_learning_rate: float = 10.0,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        max_grad_norm: float = 0.5,
        n_critic_updates: int = 10,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        on_nonfinite: str | None = None,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            n_critic_updates=n_critic_updates,
            normalize_advantage=normalize_advantage,
            target_kl=target_kl,
            sub_sampling_factor=sub_sampling_factor,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            on_nonfinite=on_nonfinite,
            _init_setup_model=False,
        )
        self.n_epochs = n_epochs
        self.penalty = penalty
        self.penalty_coef = penalty_coef
        self.dual_learning_rate = dual_learning_rate
        if _init_setup_model:
            self._setup_model()

    def _improve_policy(self) -> list[th.nn.Parameter]:
        """
        Ascend the penalised surrogate on minibatches of the rollout, and adjust the penalty's coefficient.

        If the update fails or is interrupted, parameters, optimiser state and coefficient are restored.

        :return: the actor's parameters, also if the update was skipped
        """
        # Evaluation mode, since the policy that collected the data had no dropout either.
        self.policy.set_training_mode(False)
        sample = self._sample()
        start = action_distribution(self.policy, sample.observations)
        self.logger.record("train/entropy", sample.entropy(start).item())
        actor_parameters, gradient = actor_gradient(self.policy, self._surrogate(start, sample))
        if not gradient.any():
            # Even with a zero gradient, Adam's momentum would move the policy.
            self._skip_policy(*EQUAL_ADVANTAGES)
            return actor_parameters
        old_parameters = [parameter.detach().clone() for parameter in actor_parameters]
        old_coefficient, old_optimizer = self.penalty_coef, copy.deepcopy(self.policy.optimizer.state_dict())
        try:
            for _ in range(self.n_epochs):
                self._one_pass(sample, actor_parameters, old_parameters)
                new, kl = self._moved(sample, actor_parameters, old_parameters)
                if self.penalty == "dual":
                    ascended = self.penalty_coef + self.dual_learning_rate * (kl.mean().item() - self.kl_limit)
                    self.penalty_coef = max(0.0, ascended)
        except BaseException as error:
            for parameter, value in zip(actor_parameters, old_parameters, strict=True):
                parameter.data.copy_(value)
            self.policy.optimizer.load_state_dict(old_optimizer)
            self.penalty_coef = old_coefficient
            if not isinstance(error, NotADistributionError):
                raise
            self._skip_policy("policy_not_finite", f"{error}. Lower learning_rate or max_grad_norm")
            return actor_parameters
        if self.penalty == "adaptive":
            self.penalty_coef = adapted(self.penalty_coef, kl.mean().item(), self.kl_limit)
        self._log_update(new, sample, kl)
        return actor_parameters

    @th.no_grad()
    def _moved(
        self, sample: Sample, actor_parameters: list[th.nn.Parameter], old_parameters: list[th.Tensor]
    ) -> tuple[Distribution, th.Tensor]:
        """The action distribution at the present parameters, and KL(old || new) in the sample's states, shape (states,)."""
        with parameters_at(actor_parameters, old_parameters):
            old = action_distribution(self.policy, sample.observations)
        new = action_distribution(self.policy, sample.observations)
        kl = kl_divergence(old, new)
        if not th.isfinite(kl).all():
            raise NotADistributionError("the KL is not finite")
        return new, kl

    def _one_pass(self, sample: Sample, actor_parameters: list[th.nn.Parameter], old_parameters: list[th.Tensor]) -> None:
        """
        Take a gradient step on each minibatch of one pass over the sample.

        :raises NotADistributionError: the loss or the gradient of a minibatch is not finite; its step is not taken
        """
        order = th.randperm(len(sample.old_log_prob), device=self.device)
        for index in th.split(order, self.batch_size):
            minibatch = sample.at(index)
            with th.no_grad(), parameters_at(actor_parameters, old_parameters):
                old = action_distribution(self.policy, minibatch.observations)
            new = action_distribution(self.policy, minibatch.observations)
            kl = kl_divergence(old, new).mean()
            loss = self.penalty_coef * kl - self._surrogate(new, minibatch)
            self.policy.optimizer.zero_grad()
            gradients = th.autograd.grad(loss, actor_parameters)
            for parameter, gradient in zip(actor_parameters, gradients, strict=True):
                parameter.grad = gradient
            norm = th.nn.utils.clip_grad_norm_(actor_parameters, self.max_grad_norm)
            if not math.isfinite(loss.item() + norm.item()):
                self.policy.optimizer.zero_grad()
                raise NotADistributionError(f"a minibatch has loss {loss.item():.3g} and gradient norm {norm.item():.3g}")
            self.policy.optimizer.step()
        self.policy.optimizer.zero_grad()

    @property
    def _samples_per_pass(self) -> int:
        return self.batch_size

    def _log_update(self, new: Distribution, sample: Sample, kl: th.Tensor) -> None:
        with th.no_grad():
            self.logger.record("train/policy_objective", self._surrogate(new, sample).item())
        self.logger.record("train/kl_mean", kl.mean().item())
        self.logger.record("train/kl_max", kl.max().item())
        self.logger.record("train/penalty_coef", self.penalty_coef)

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        if self.penalty == "adaptive" and self.penalty_coef == 0:
            raise ValueError("penalty_coef must be positive for penalty='adaptive', which doubles and halves it, but it is 0")


def adapted(coefficient: float, kl: float, target_kl: float) -> float:
    """
    The adaptive penalty's coefficient for the next rollout.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017, section 4.

    :param coefficient: for this rollout, positive
    :param kl: mean KL(old || new) after this rollout's update, nats
    :param target_kl: nats, positive
    :return: doubled, halved or the same, within 1e-6 and 1e6
    """
    if kl > TOLERANCE * target_kl:
        return min(2 * coefficient, LARGEST)
    if kl < target_kl / TOLERANCE:
        return max(coefficient / 2, SMALLEST)
    return coefficient
