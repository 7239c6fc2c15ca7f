"""A plain MLP policy's actions without torch's overhead, which for small networks on the CPU is nearly all of their cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_trpo_plus.policies.plain import features, plain_actor
from sb3_trpo_plus.rollouts.noise import noisy_actions, standard_noise
from sb3_trpo_plus.trust_region.mlp import Mlp

Array = npt.NDArray[Any]

Layer = Callable[[Array], Array]

# Multiplications in a layer above which torch's overhead no longer counts.
SMALL = 2**17


class FastActor:
    """
    Samples a policy's actions in NumPy.

    An action is a function of the network's outputs and of noise that does not depend on the state: mean + std * normal for
    Gaussians, argmax(logits + Gumbel) for categories, logits + logistic > 0 for bits. The noise of a rollout is drawn at its
    start, step by step as torch's own samplers draw it: the same seed gives the actions that the policy itself would take.
    gSDE's noise depends on the state, through the matrices that the policy holds.

    Source of the Gumbel form: Maddison, Tarlow and Minka, "A* sampling", 2014, section 2.

    :param policy: plain, on the CPU
    :param network: its actor
    """

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> "FastActor | None":
        """
        :return: None for a policy that is not plain, or not on the CPU
        """
        network = plain_actor(policy)
        if network is None or policy.device.type != "cpu":
            return None
        return cls(policy, network)

    def __init__(self, policy: ActorCriticPolicy, network: Mlp) -> None:
        self.policy, self.network = policy, network
        self.action_shape = (-1, *(policy.action_space.shape or ()))
        space = policy.observation_space
        self.takes_numbers = isinstance(space, spaces.Box) and not (policy.normalize_images and is_image_space(space))
        self.dtype: Any = np.dtype(str(network.layers[0].weight.dtype).removeprefix("torch."))

    def begin(self, n_steps: int, n_envs: int) -> None:
        """
        Read the policy's present parameters, and draw the noise of a rollout.

        :param n_steps: of each environment
        :param n_envs: environments, which act together
        """
        activations = [*self.network.activations, nn.Identity()]
        layers = [_layer(linear, act, n_envs) for linear, act in zip(self.network.layers, activations, strict=True)]
        *self.hidden, self.head = layers
        distribution = self.policy.action_dist
        if isinstance(distribution, StateDependentNoiseDistribution):
            self.read_exploration()
            return
        noise = standard_noise(distribution, n_steps, n_envs)
        self.noise = self.scaled(noise.numpy()).astype(self.dtype, copy=False)

    def scaled(self, noise: Array) -> Array:
        """Standard noise times the standard deviations of a Gaussian; as it is for other distributions."""
        if isinstance(self.policy.action_dist, DiagGaussianDistribution):
            noise = noise * self.policy.log_std.detach().exp().numpy()
        return noise

    def read_exploration(self) -> None:
        """Read gSDE's matrices, after the policy has drawn new ones."""
        distribution = self.policy.action_dist
        assert isinstance(distribution, StateDependentNoiseDistribution)
        self.matrix = distribution.exploration_mat.detach().numpy()
        self.matrices = distribution.exploration_matrices.detach().numpy()

    def act(self, observations: Array, step: int) -> Array:
        """
        :param observations: shape (environments, ...), not preprocessed
        :param step: of the rollout
        :return: what the policy's own forward would return for this noise, shape (environments, ...)
        """
        if self.takes_numbers:
            latent = observations.reshape(len(observations), -1).astype(self.dtype, copy=False)
        else:
            latent = features(self.policy, th.as_tensor(observations)).numpy()
        for layer in self.hidden:
            latent = layer(latent)
        outputs = self.head(latent)

        distribution = self.policy.action_dist
        if not isinstance(distribution, StateDependentNoiseDistribution):
            outputs = noisy_actions(distribution, outputs, self.noise[step])
        else:
            outputs += self._state_dependent_noise(latent)
            if self.policy.squash_output:
                outputs = np.tanh(outputs)
        return outputs.reshape(self.action_shape)

    def _state_dependent_noise(self, latent: Array) -> Array:
        if len(latent) == 1 or len(latent) != len(self.matrices):
            noise: Array = np.einsum("ij,jk->ik", latent, self.matrix)
        else:
            noise = np.einsum("ij,ijk->ik", latent, self.matrices)
        return noise


def _layer(linear: nn.Linear, activation: nn.Module, n_envs: int) -> Layer:
    bias = linear.bias.detach().clone().numpy()
    # Laid out as NumPy multiplies fastest, and a copy: the policy may be changed in place later.
    weight = np.array(linear.weight.detach().numpy().T, order="C")
    if n_envs * weight.size > SMALL:
        torch_bias, torch_weight = th.from_numpy(bias), th.from_numpy(weight)

        def large(inputs: Array) -> Array:
            output: Array = activation(th.addmm(torch_bias, th.from_numpy(inputs), torch_weight)).numpy()
            return output

        return large

    in_place = _in_place(activation)

    def small(inputs: Array) -> Array:
        # Not by BLAS: its AVX-512 instructions lower the clock of many processors for about a millisecond, in which the
        # environment then runs 5 to 30% slower. einsum has loops of its own.
        output = np.einsum("ij,jk->ik", inputs, weight)
        output += bias
        return in_place(output)

    return small


def _in_place(activation: nn.Module) -> Layer:
    if type(activation) is nn.Tanh:
        return lambda array: np.tanh(array, out=array)
    if type(activation) is nn.ReLU:
        return lambda array: np.maximum(array, 0, out=array)
    if type(activation) is nn.Identity:
        return lambda array: array

    def by_torch(array: Array) -> Array:
        output: Array = activation(th.from_numpy(array)).numpy()
        return output

    return by_torch
