"""Adam on one flat vector of all parameters."""

import functools
import math
from pathlib import Path
from typing import Any

import torch as th
from torch.optim import optimizer as optimizer_module

from sb3_trpo_plus.trust_region.flat import flatten, unflatten

OPTIONS: dict[str, Any] = {
    "lr": 0.5, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False,
}  # fmt: skip


@functools.cache
def has_fused_adam(device: th.device) -> bool:
    """
    Whether torch's private Adam kernel exists and does what Adam does; tested once for each device, on one number.

    :param device: of the parameters
    """
    parameter, gradient, mean, square, n_steps = (th.full((1,), x, device=device) for x in (1.0, 2.0, 0.0, 0.0, 1.0))
    try:
        th._fused_adam_([parameter], [gradient], [mean], [square], [], [n_steps[0]], **OPTIONS)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    # The first step is the learning rate times the sign of the gradient; the moments are (1 - beta) g and (1 - beta) g^2.
    found = th.cat([parameter, mean, square]).tolist()
    return all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(found, (0.5, 0.2, 0.004), strict=True))


def _is_torchs(function: Any) -> bool:
    """Whether a function, and each that it wraps by ``functools.wraps``, is defined in torch.optim: else it was patched."""
    folder = Path(optimizer_module.__file__).parent
    while function is not None:
        if Path(function.__code__.co_filename).parent != folder:
            return False
        function = getattr(function, "__wrapped__", None)
    return True


class FlatAdam:
    """
    The steps of a ``torch.optim.Adam``, taken on one flat vector instead of on each parameter.

    :param optimizer: its state is read now, and written by :meth:`write_back`
    :param parameters: those that the flat vector consists of, in this order
    """

    @classmethod
    def of(cls, optimizer: th.optim.Optimizer, parameters: list[th.nn.Parameter]) -> "FlatAdam | None":
        """
        :return: None if the optimiser is not a ``torch.optim.Adam`` with one parameter group, no hooks or special options,
            moments of the parameters' shapes, and the same step count for all parameters
        """
        if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or "step" in optimizer.__dict__:
            return None
        if not _is_torchs(th.optim.Adam.step) or not has_fused_adam(parameters[0].device):
            return None
        group, states = optimizer.param_groups[0], [optimizer.state.get(parameter, {}) for parameter in parameters]
        its_own = {id(parameter) for parameter in group["params"]}
        foreign = any(id(parameter) not in its_own for parameter in parameters)
        special = any(group.get(option) for option in ("amsgrad", "maximize", "differentiable", "decoupled_weight_decay"))
        hooked = any(
            (
                optimizer._optimizer_step_pre_hooks,
                optimizer._optimizer_step_post_hooks,
                optimizer_module._global_optimizer_pre_hooks,
                optimizer_module._global_optimizer_post_hooks,
            )
        )
        steps = {float(state.get("step", 0.0)) for state in states}
        # Of another shape, they would make a shorter vector, beyond whose end the kernel would write.
        misshapen = any(
            state.get(name, parameter).shape != parameter.shape
            for state, parameter in zip(states, parameters, strict=True)
            for name in ("exp_avg", "exp_avg_sq")
        )
        return None if foreign or special or hooked or misshapen or len(steps) > 1 else cls(optimizer, parameters)

    def __init__(self, optimizer: th.optim.Adam, parameters: list[th.nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        states = [optimizer.state.get(parameter, {}) for parameter in parameters]
        zeros = [th.zeros_like(parameter) for parameter in parameters]
        moments = [
            flatten([state.get(name, zero) for state, zero in zip(states, zeros, strict=True)])
            for name in ("exp_avg", "exp_avg_sq")
        ]
        self._mean, self._square = moments
        self._n_steps = th.tensor(float(states[0].get("step", 0.0)), device=self._mean.device)
        group = optimizer.param_groups[0]
        self._lr, self._betas = float(group["lr"]), tuple(map(float, group["betas"]))
        self._weight_decay, self._eps = float(group["weight_decay"]), float(group["eps"])

    @property
    def state(self) -> tuple[th.Tensor, th.Tensor]:
        """The running means of the gradient and of its square, flat."""
        return self._mean, self._square

    def step(self, vector: th.Tensor, gradient: th.Tensor) -> None:
        """
        Take one step.

        :param vector: flat parameters, changed in place
        :param gradient: of the same shape
        """
        self._n_steps += 1
        # The kernel of torch.optim.Adam(fused=True), without that class, which takes four times as long.
        th._fused_adam_(
            [vector],
            [gradient],
            [self._mean],
            [self._square],
            [],
            [self._n_steps],
            lr=self._lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self._weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )

    def write_back(self) -> None:
        """Write the state back into ``optimizer.state``, parameter by parameter."""
        group = self._optimizer.param_groups[0]
        # Adam keeps the step count on the CPU, unless it is fused or capturable.
        n_steps = self._n_steps if group.get("fused") or group.get("capturable") else self._n_steps.cpu()
        pieces = (unflatten(vector, self._parameters) for vector in (self._mean, self._square))
        for parameter, mean, square in zip(self._parameters, *pieces, strict=True):
            self._optimizer.state[parameter] = {
                "step": n_steps.clone(), "exp_avg": mean.clone(), "exp_avg_sq": square.clone(),
            }  # fmt: skip
