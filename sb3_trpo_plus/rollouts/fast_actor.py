"""A plain MLP policy's actions in NumPy: for small networks on the CPU torch's overhead is nearly all of their cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_trpo_plus.policies.plain import features
from sb3_trpo_plus.rollouts.frozen import FrozenLinear, FrozenPolicy
from sb3_trpo_plus.rollouts.noise import noisy_actions

Array = npt.NDArray[Any]
Observations = Array | dict[str, Array]
Layer = Callable[[Array], Array]
# Multiplications in the largest layer above which torch is the faster, in spite of its overhead and of what follows.
SMALL = 2**17


class FastActor:
    """
    Computes a policy's actions in NumPy.

    An action is a function of the network's outputs and of noise that does not depend on the state: mean + std * normal for
    Gaussians, argmax(logits + Gumbel) for categories, logits + logistic > 0 for bits. gSDE's noise depends on the state,
    through the matrices that the policy holds.

    Source of the Gumbel form: Maddison, Tarlow and Minka, "A* sampling", 2014, section 2.

    :param frozen: copy of the policy
    :param n_envs: number of environments, the usual batch size of :meth:`act`
    """

    def __init__(self, frozen: FrozenPolicy, n_envs: int) -> None:
        self.policy, self.distribution = frozen.policy, frozen.policy.action_dist
        self.is_gsde = isinstance(self.distribution, StateDependentNoiseDistribution)
        weights = [module.weight for module in (*frozen.actor.hidden, frozen.actor.head) if isinstance(module, FrozenLinear)]
        is_small = n_envs * max(weight.numel() for weight in weights) <= SMALL
        self.hidden = [_layer(module, is_small) for module in frozen.actor.hidden]
        self.head = _layer(frozen.actor.head, is_small)
        self.dtype: Any = np.dtype(str(frozen.actor.head.weight.dtype).removeprefix("torch."))
        is_gaussian = isinstance(self.distribution, DiagGaussianDistribution)
        self.std = frozen.log_std.exp().numpy() if is_gaussian and frozen.log_std is not None else None
        #: Of the last call of :meth:`act`: the network's inputs, and its means (with gSDE's noise) or logits
        self.inputs = self.outputs = np.empty(0)
        self.action_shape = (-1, *(self.policy.action_space.shape or ()))
        space = self.policy.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.takes_numbers = all(
            isinstance(part, spaces.Box) and not (self.policy.normalize_images and is_image_space(part))
            for part in parts.values()
        )
        # SB3's CombinedExtractor concatenates in the order of the space's keys, whatever that of the observation's.
        self.keys = list(parts)
        self.read_exploration()

    def scaled(self, noise: Array) -> Array:
        """Noise as :meth:`act` takes it: for Gaussians, times the standard deviations; for other distributions, unchanged."""
        return (noise if self.std is None else noise * self.std).astype(self.dtype, copy=False)

    def read_exploration(self) -> None:
        """Look up gSDE's exploration matrices, which ``policy.reset_noise`` may have replaced."""
        if not isinstance(self.distribution, StateDependentNoiseDistribution):
            return
        self.matrix = self.distribution.exploration_mat.detach().numpy()
        self.matrices = self.distribution.exploration_matrices.detach().numpy()

    def act(self, observations: Observations, noise: Array | None) -> Array:
        """
        :param observations: arrays of shape (environments, ...), not preprocessed
        :param noise: as :meth:`scaled` returns it, for one step, shape (environments, ``noise_width``); None for gSDE
        :return: the actions that the policy's ``forward`` would return for this noise, shape (environments, ...)
        """
        self.inputs = latent = self._features(observations)
        for layer in self.hidden:
            latent = layer(latent)
        outputs = self.head(latent)
        if self.is_gsde:
            outputs += self._state_dependent_noise(latent)
            self.outputs = outputs
            return (np.tanh(outputs) if self.policy.squash_output else outputs).reshape(self.action_shape)
        assert noise is not None
        actions = noisy_actions(self.distribution, outputs, noise)
        # Of a Gaussian the noise may overflow, too; the noise of bits may be infinite where all is well.
        self.outputs = outputs if self.std is None else actions
        return actions.reshape(self.action_shape)

    def _features(self, observations: Observations) -> Array:
        if not self.takes_numbers:
            made: Array = features(self.policy, obs_as_tensor(observations, self.policy.device)).numpy()
            return made
        if not isinstance(observations, dict):
            return observations.reshape(len(observations), -1).astype(self.dtype, copy=False)
        parts = [observations[key].reshape(len(observations[key]), -1).astype(self.dtype, copy=False) for key in self.keys]
        return np.concatenate(parts, axis=1)

    def _state_dependent_noise(self, latent: Array) -> Array:
        if len(latent) == 1 or len(latent) != len(self.matrices):
            noise: Array = np.einsum("ij,jk->ik", latent, self.matrix)
        else:
            noise = np.einsum("ij,ijk->ik", latent, self.matrices)
        return noise


def _layer(module: FrozenLinear | nn.Module, is_small: bool) -> Layer:
    if not isinstance(module, FrozenLinear):
        return _in_place(module)
    torch_weight, torch_bias = module.weight, module.bias
    if not is_small:

        def large(inputs: Array) -> Array:
            output: Array = th.addmm(torch_bias, th.from_numpy(inputs), torch_weight.t()).numpy()
            return output

        return large

    bias = torch_bias.numpy()
    # Transposed and C-contiguous, for which einsum is fastest.
    weight = np.array(torch_weight.numpy().T, order="C")

    def small(inputs: Array) -> Array:
        # einsum instead of matmul, which calls BLAS: its AVX-512 instructions lower the clock of many processors for about a
        # millisecond, and slow down the environment's step by 5 to 30%.
        output: Array = np.einsum("ij,jk->ik", inputs, weight)
        output += bias
        return output

    return small


def _in_place(activation: nn.Module) -> Layer:
    """A function of what it may overwrite: the output of a layer."""
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
