"""SoftAdapt in float64 NumPy, written from Algorithm 1 of the paper and the design's extensions.

It shares no code with the package: slopes come from `numpy.polyfit`, one component and one step
at a time, from the whole list of recorded losses.
"""

import numpy as np


def softadapt_weights(
    trajectory: np.ndarray,
    *,
    beta: float = 0.1,
    history: int = 5,
    order: int | None = 1,
    rate: str = "absolute",
    normalized: bool = False,
    loss_weighted: bool = False,
    weight_sum: float = 1.0,
    priorities: np.ndarray | None = None,
    every: int = 1,
    eps: float = 1e-8,
) -> np.ndarray:
    """The weights after each step of a trajectory of losses, both of shape [steps, K]."""
    trajectory = np.asarray(trajectory, dtype=np.float64)
    num_losses = trajectory.shape[1]
    factors = np.ones(num_losses) if priorities is None else np.asarray(priorities, np.float64)
    weights = factors / factors.sum() * weight_sum
    records: list[np.ndarray] = []
    weights_of_steps = []
    for step in range(len(trajectory)):
        if (step + 1) % every == 0:
            records.append(trajectory[step + 1 - every : step + 1].mean(axis=0))
            if len(records) >= history:
                window = np.array(records[-history:])
                weights = window_weights(
                    window, beta, order, rate, normalized, loss_weighted, factors, eps
                )
                weights = weights * weight_sum
        weights_of_steps.append(weights)
    return np.array(weights_of_steps)


def window_weights(window, beta, order, rate, normalized, loss_weighted, factors, eps):
    history, num_losses = window.shape
    time = np.arange(history) - (history - 1.0)  # 0 is now
    degree = history - 1 if order is None else order
    slopes = np.empty(num_losses)
    for k in range(num_losses):
        polynomial = np.polyfit(time, window[:, k], degree)
        slopes[k] = np.polyval(np.polyder(polynomial), 0.0)
        if rate == "relative":
            slopes[k] = slopes[k] / (abs(window[-2, k]) + eps)
    if normalized:
        slopes = slopes / (np.sum(np.abs(slopes)) + eps)
    scores = beta * slopes
    alpha = np.exp(scores - scores.max())
    alpha = alpha / alpha.sum()
    if loss_weighted:
        alpha = alpha * np.abs(window.mean(axis=0))
    alpha = alpha * factors
    return alpha / alpha.sum()
