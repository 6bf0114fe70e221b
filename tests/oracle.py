"""Every method in float64 NumPy, written from its paper; no code is shared with the package.

SoftAdapt is Algorithm 1 of its paper and the design's extensions: slopes come from
`numpy.polyfit`, one component and one step at a time, from the whole list of recorded losses.
"""

import itertools

import numpy as np
import scipy.optimize


def softadapt_weights(
    trajectory: np.ndarray,
    *,
    present: np.ndarray | None = None,
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
    """The weights after each step of a trajectory of losses, both of shape [steps, K].

    A loss is what its own list of records says, in which only steps with data leave something;
    before it is seen it gets the mean of the others' weights.
    """
    trajectory = np.asarray(trajectory, dtype=np.float64)
    steps, num_losses = trajectory.shape
    present = np.ones(trajectory.shape, dtype=bool) if present is None else present
    factors = np.ones(num_losses) if priorities is None else np.asarray(priorities, np.float64)
    records: list[list[float]] = [[] for _ in range(num_losses)]
    period: list[list[float]] = [[] for _ in range(num_losses)]
    weights_of_steps = []
    for step in range(steps):
        is_first = [
            present[step, k] and not records[k] and not period[k] for k in range(num_losses)
        ]
        for k in np.flatnonzero(present[step]):
            period[k].append(trajectory[step, k])
        is_due = (step + 1) % every == 0
        if is_due or any(is_first):  # a loss without a record is looked at ahead of it
            pairs = zip(records, period, strict=True)
            seen = [[*r, np.mean(p)] if p and (is_due or not r) else r for r, p in pairs]
            options = (beta, history, order, rate, normalized, loss_weighted, eps)
            alpha = weights_of_records(seen, *options) * factors
            weights = alpha / alpha.sum() * weight_sum
        if is_due:
            records, period = seen, [[] for _ in range(num_losses)]
        weights_of_steps.append(np.where(present[step], weights, 0.0))
    return np.array(weights_of_steps)


def weights_of_records(records, beta, history, order, rate, normalized, loss_weighted, eps):
    known = np.array([len(values) > 0 for values in records])
    slopes = np.array([slope_of(values, history, order, rate, eps) for values in records])
    if normalized:
        slopes = slopes / (np.sum(np.abs(slopes)) + eps)
    alpha = np.exp(beta * slopes - (beta * slopes).max())
    if loss_weighted:
        means = [abs(np.mean(values[-history:])) if values else 0.0 for values in records]
        alpha = alpha * np.array(means)
    if not known.any():
        return np.ones(len(records))
    return np.where(known, alpha, alpha[known].mean() if known.any() else 1.0)


def slope_of(values, history, order, rate, eps):
    """At the newest of the records; 0 as long as there are fewer than the window takes."""
    if len(values) < history:
        return 0.0
    window = np.array(values[-history:])
    time = np.arange(history) - (history - 1.0)  # 0 is now
    polynomial = np.polyfit(time, window, history - 1 if order is None else order)
    slope = np.polyval(np.polyder(polynomial), 0.0)
    return slope / (abs(window[-2]) + eps) if rate == "relative" else slope


# The other methods. Where a method minimises something, its slopes are differences of the
# objective as the paper writes it, not a derivative worked out by hand.


def slopes_of(objective, point: np.ndarray, width: float = 1e-6) -> np.ndarray:
    """The gradient of a function by central differences."""
    steps = width * np.eye(len(point))
    return np.array([objective(point + s) - objective(point - s) for s in steps]) / (2 * width)


def initial_loss_weights(trajectory: np.ndarray, steps: int) -> np.ndarray:
    """The weights after each step of a trajectory of losses, both of shape [steps, K]."""
    means = [trajectory[: min(t + 1, steps)].mean(axis=0) for t in range(len(trajectory))]
    return 1 / np.abs(np.array(means))


def uncertainty_weights(trajectory: np.ndarray, rate: float, penalty: str) -> np.ndarray:
    """The same, for gradient descent on s = log sigma^2."""
    s, half = np.zeros(trajectory.shape[1]), 1.0 if penalty == "imtl_l" else 0.5
    weights_of_steps = []
    for losses in trajectory:

        def objective(s, losses=losses):
            variances = np.exp(s)
            penalties = np.log(1 + variances) if penalty == "log1p" else np.log(np.sqrt(variances))
            return half * 2 * np.sum(losses / (2 * variances) + penalties)

        weights_of_steps.append(half / np.exp(s))
        s = s - rate * slopes_of(objective, s)
    return np.array(weights_of_steps)


def learned_weights(
    trajectory: np.ndarray, rate: float, temperature: float, maximize: bool, priorities: np.ndarray
) -> np.ndarray:
    """The same, for gradient descent on logits z relative to the priorities q."""
    prior = priorities / priorities.sum()

    def simplex(z):
        return prior * np.exp(z) / np.sum(prior * np.exp(z))

    z = np.zeros(trajectory.shape[1])
    weights_of_steps = []
    for losses in trajectory:

        def objective(z, losses=losses):
            alpha = simplex(z)
            divergence = np.sum(alpha * np.log(alpha / prior))
            return (-1 if maximize else 1) * alpha @ losses + temperature * divergence

        weights_of_steps.append(simplex(z))
        z = z - rate * slopes_of(objective, z)
    return np.array(weights_of_steps)


def inverse_training_rates(losses: np.ndarray, initial_losses: np.ndarray) -> np.ndarray:
    left = losses / initial_losses
    return left / left.mean()


def gradnorm_weights(
    trajectory: np.ndarray, gradients: np.ndarray, rate: float, alpha: float
) -> np.ndarray:
    """The same, for gradient descent on w; ``gradients`` have shape [steps, K, parameters]."""
    num_losses = trajectory.shape[1]
    w = np.ones(num_losses)
    weights_of_steps = []
    for losses, vectors in zip(trajectory, gradients, strict=True):
        weights_of_steps.append(w)

        def weighted_norms(w, vectors=vectors):
            return np.array(
                [np.linalg.norm(w_k * g_k) for w_k, g_k in zip(w, vectors, strict=True)]
            )

        targets = weighted_norms(w).mean() * inverse_training_rates(losses, trajectory[0]) ** alpha
        slopes = slopes_of(lambda w, t=targets: np.abs(weighted_norms(w) - t).sum(), w)
        w = w - rate * slopes
        w = w * num_losses / w.sum()
    return np.array(weights_of_steps)


def projected_gradients(gradients: np.ndarray, orders) -> np.ndarray:
    """PCGrad's projected gradients, shape [K, parameters], on the vectors themselves."""
    projected = []
    for i, order in enumerate(orders):
        vector = gradients[i].copy()
        for j in order:
            other = gradients[j]
            if j != i and other @ other > 0 and vector @ other < 0:
                vector = vector - (vector @ other) / (other @ other) * other
        projected.append(vector)
    return np.array(projected)


def projected_sums(gradients: np.ndarray) -> np.ndarray:
    """The sums of the projected gradients for every choice of orders, [choices, parameters]."""
    others = [[j for j in range(len(gradients)) if j != i] for i in range(len(gradients))]
    choices = itertools.product(*(itertools.permutations(row) for row in others))
    return np.array([projected_gradients(gradients, orders).sum(axis=0) for orders in choices])


def min_norm_point(gradients: np.ndarray) -> np.ndarray:
    """The point of smallest norm in the hull of the rows: the best over all their subsets.

    The optimum lies in the relative interior of some affinely independent subset, where it is
    the projection of the origin onto the subset's affine hull.
    """
    best = gradients[np.argmin((gradients**2).sum(axis=1))]
    for size in range(2, len(gradients) + 1):
        for subset in itertools.combinations(range(len(gradients)), size):
            first, others = gradients[subset[0]], gradients[list(subset[1:])]
            edges = (others - first).T
            shares, *_ = np.linalg.lstsq(edges, -first, rcond=None)
            point = first + edges @ shares
            is_inside = np.all(shares >= 0) and shares.sum() <= 1
            if is_inside and point @ point < best @ best:
                best = point
    return best


def min_norm_point_of_many(gradients: np.ndarray) -> np.ndarray:
    """The same for many rows, by SciPy's active-set solver for non-negative least squares."""
    scale = max(np.linalg.norm(gradients, axis=1).max(), 1e-300)
    rows = np.vstack([gradients.T / scale, np.ones(len(gradients))])
    shares, _ = scipy.optimize.nnls(rows, np.append(np.zeros(gradients.shape[1]), 1.0))
    return shares @ gradients / shares.sum()


# Methods that look at ratios of losses. Trajectories are of shape [steps, K], all present.


def dwa_weights(trajectory, temperature=2.0, window=1):
    """Liu et al. 2019, Eq. 7: K softmax of the mean loss over the one before, over T."""
    trajectory, weights = np.asarray(trajectory, np.float64), []
    num_losses = trajectory.shape[1]
    for step in range(1, len(trajectory) + 1):
        if step < 2 * window:
            weights.append(np.ones(num_losses))
            continue
        last = trajectory[:step]
        ratios = last[-window:].mean(axis=0) / last[-2 * window : -window].mean(axis=0)
        exponentials = np.exp(ratios / temperature)
        weights.append(num_losses * exponentials / exponentials.sum())
    return np.array(weights)


def gls_weights(losses):
    """The derivative of the geometric mean by each loss."""
    losses = np.asarray(losses, np.float64)
    num_losses = losses.shape[-1]
    roots = np.prod(losses ** (1 / num_losses), axis=-1, keepdims=True)
    return roots / (num_losses * losses)


def causal_weights(losses, epsilon):
    losses = np.asarray(losses, np.float64)
    return np.array([np.exp(-epsilon * losses[:k].sum()) for k in range(len(losses))])


def cov_weights(trajectory, decay=None):
    """Groenendijk et al. 2021: Welford's means and deviations; weights from those before."""
    trajectory = np.asarray(trajectory, np.float64)
    steps, num_losses = trajectory.shape
    mean_loss, mean_ratio, squares = (np.zeros(num_losses) for _ in range(3))
    weights = []
    for t in range(steps):
        losses = trajectory[t]
        ratios = np.ones(num_losses) if t == 0 else losses / mean_loss
        if t <= 1:
            weights.append(np.full(num_losses, 1 / num_losses))
        else:
            coefficients = np.sqrt(squares / t + 1e-8) / mean_ratio
            weights.append(coefficients / coefficients.sum())
        kept = 0.0 if t == 0 else (1 - 1 / (t + 1) if decay is None else decay)
        new_mean = kept * mean_ratio + (1 - kept) * ratios
        if t > 0:
            squares = squares + (ratios - mean_ratio) * (ratios - new_mean)
        mean_ratio = new_mean
        mean_loss = kept * mean_loss + (1 - kept) * losses
    return np.array(weights)


def relobralo_weights(trajectory, stays, alpha, temperature):
    """Bischof and Kraus 2021, Eq. 11, with the draws of rho given, one for each step."""
    trajectory = np.asarray(trajectory, np.float64)
    num_losses = trajectory.shape[1]

    def balanced(losses, reference):
        ratios = losses / reference / temperature
        exponentials = np.exp(ratios - ratios.max())
        return num_losses * exponentials / exponentials.sum()

    weights = [np.ones(num_losses)]
    for t in range(1, len(trajectory)):
        past = weights[-1] if stays[t] else balanced(trajectory[t], trajectory[0])
        now = balanced(trajectory[t], trajectory[t - 1])
        weights.append(alpha * past + (1 - alpha) * now)
    return np.array(weights)


def stch_weights(trajectory, mu):
    """Lin et al. 2024 in their code: of the logarithms of losses over the first."""
    trajectory = np.asarray(trajectory, np.float64)
    exponentials = (trajectory / trajectory[0]) ** (1 / mu)
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    return trajectory.shape[1] * shares / trajectory


# Projections onto cones of gradients.


def cone_weights(gramian, lower, ridge=0.0):
    """The v >= lower that minimises v^T (G + ridge diag G) v, by nonnegative least squares.

    In units of the norms, or the small gradients would drown in the rounding of the large.
    """
    gramian = np.asarray(gramian, np.float64)
    norms = np.sqrt(np.diag(gramian))
    cosines = gramian / np.outer(norms, norms) + ridge * np.eye(len(norms))
    values, vectors = np.linalg.eigh(cosines)
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    z, _ = scipy.optimize.nnls(root, -root @ (lower * norms), maxiter=10_000)
    return lower + z / norms


def upgrad_weights(gramian, ridge=0.0):
    """Quinton and Rey 2024, Eq. 3 and Proposition 1, with equal preferences."""
    size = len(gramian)
    return sum(cone_weights(gramian, row, ridge) for row in np.eye(size) / size)


def dual_proj_weights(gramian, ridge=0.0):
    return cone_weights(gramian, np.full(len(gramian), 1 / len(gramian)), ridge)


# Sizes of gradients beside that of a reference.


def lr_annealing_weights(gradients, reference, alpha=0.9, statistic="max"):
    """Wang, Teng and Perdikaris 2021, Algorithm 1, one loss at a time; [steps, K, parameters]."""
    top = {"max": max, "mean": np.mean, "norm": np.linalg.norm}[statistic]
    bottom = np.linalg.norm if statistic == "norm" else np.mean
    rows, weights = [], np.ones(np.shape(gradients)[1])
    for vectors in np.abs(np.asarray(gradients, np.float64)):
        for k, vector in enumerate(vectors):
            if k != reference:
                ratio = top(vectors[reference]) / bottom(vector)
                weights[k] = (1 - alpha) * weights[k] + alpha * ratio
        rows.append(weights.copy())
    return np.array(rows)


# Neural tangent kernels.


def jacobian_of(function, point):
    """By central differences, [entries of the value, entries of the point]."""
    rows = [np.ravel(function(point + s) - function(point - s)) for s in 1e-6 * np.eye(len(point))]
    return np.array(rows).T / 2e-6


def ntk_trace(function, point):
    """The trace of the kernel itself, which is formed."""
    jacobian = jacobian_of(function, point)
    return np.trace(jacobian @ jacobian.T)


def ntk_weights(traces):
    """Wang, Yu and Perdikaris 2022, Algorithm 1, lines 3 and 4: of K block traces."""
    return [sum(traces) / trace for trace in traces]


# Falls of logarithms.


def famo_weights(before, after, rate, decay, is_adam=True):
    """Liu et al. 2023, Algorithm 1: of losses before and after each step, on the same batch."""
    before, after = (np.asarray(losses, np.float64) for losses in (before, after))

    def softmax(xi):
        return np.exp(xi) / np.exp(xi).sum()

    xi, first, second = np.zeros((3, before.shape[1]))
    rows = []
    for t, (old, new) in enumerate(zip(before, after, strict=True)):
        weights = softmax(xi) / old
        rows.append(weights / weights.sum())
        falls = np.log(old / new)
        gradient = slopes_of(lambda xi, d=falls: softmax(xi) @ d, xi) + decay * xi
        if is_adam:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            corrected = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
            gradient = corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        xi = xi - rate * gradient
    return np.array(rows)


# Gradients of one norm.


def db_mtl_direction(losses, gradients):
    """Lin et al. 2023, Algorithm 1 with beta = 0: of the gradients of the logarithms."""
    vectors = np.asarray(gradients, np.float64) / np.asarray(losses, np.float64)[:, None]
    norms = [np.linalg.norm(vector) for vector in vectors]
    return max(norms) * sum(v / n for v, n in zip(vectors, norms, strict=True))


def jaxpi_weights(gradients, momentum):
    """Means of norms over norms, averaged over the records; [records, K, parameters]."""
    rows = []
    for vectors in np.asarray(gradients, np.float64):
        norms = np.linalg.norm(vectors, axis=1)
        new = norms.mean() / norms
        rows.append(momentum * rows[-1] + (1 - momentum) * new if rows else new)
    return np.array(rows)


# Methods that choose a direction by one equation or program in the Gramian.


def ridged(gramian, ridge):
    gramian = np.asarray(gramian, np.float64)
    return gramian + ridge * np.diag(np.diag(gramian))


def cagrad_weights(gramian, c, ridge=0.0):
    """Liu et al. 2021, Eq. 3: a bisection for the least product, over least squares.

    Where x >= 0 minimises ||J^T (1 + x)||^2 / 2 - tau e^T x, in units of the norms, the length of
    J^T x grows with tau, which is what has to be c times that of the sum of the gradients.
    """
    gramian = ridged(gramian, ridge)
    norms = np.sqrt(np.diag(gramian))
    values, vectors = np.linalg.eigh(gramian / np.outer(norms, norms))
    root = np.sqrt(np.maximum(values, 1e-18))[:, None] * vectors.T
    sizes, units = norms / norms.max(), norms.min() / norms
    inverse = vectors.T / np.sqrt(np.maximum(values, 1e-18))[:, None]
    radius = c * np.linalg.norm(root @ sizes)

    def solution(tau):
        target = inverse @ (tau * units) - root @ sizes
        return scipy.optimize.nnls(root, target, maxiter=10_000)[0]

    excess = lambda tau: np.linalg.norm(root @ solution(tau)) - radius
    low = np.min((root.T @ root @ sizes) / units)
    high = low + (width := radius / units.max())
    while excess(high) < 0:
        high += (width := 2 * width)
    tau = scipy.optimize.brentq(excess, low, high, xtol=1e-300, rtol=1e-15, maxiter=1000)
    return (1 + solution(tau) / sizes) / len(norms)


def fairgrad_weights(gramian, fairness, ridge=0.0):
    """Ban and Ji 2024, Eq. 4: Newton's method for the convex function that it is stationary at.

    In units of the weights that each loss would have alone. Steps are shortened until all weights
    are positive and the function falls. What conflicting gradients gain is the small rest of large
    terms, of which float64 leaves no digit where norms are far apart: slopes and values are sums of
    long doubles, steps are solved for in float64.
    """
    gramian, power = ridged(gramian, ridge).astype(np.longdouble), 1 / fairness
    alone = np.diag(gramian) ** (-1 / (1 + power))
    gramian, factors = gramian * np.outer(alone, alone), alone ** (1 - power)
    x = np.ones(len(alone))

    def objective(x):
        utility = np.log(x) if power == 1 else (x ** (1 - power) - 1) / (1 - power)
        return x @ gramian @ x / 2 - factors @ utility

    for _ in range(1000):
        slope = gramian @ x - factors * x**-power
        hessian = gramian + np.diag(power * factors * x ** (-power - 1))
        scale = 1 / np.sqrt(np.diag(hessian))
        matrix = (hessian * np.outer(scale, scale)).astype(float)
        step = -scale * np.linalg.solve(matrix, (scale * slope).astype(float))
        if np.max(np.abs(step / x)) < 1e-3:  # where it is quadratic
            for _ in range(4):
                slope = gramian @ x - factors * x**-power
                x = x - scale * np.linalg.solve(matrix, (scale * slope).astype(float))
            if np.max(np.abs((gramian @ x) * x**power / factors - 1)) < 1e-6:
                return (x * alone).astype(float)
        length = min(1.0, 0.99 / max(np.max(-step / x), 1e-300))
        while objective(x + length * step) > objective(x) + 1e-4 * length * (slope @ step):
            length /= 2
        x = x + length * step
    raise ArithmeticError("no convergence")


# Directions of signed weights.


def unit_solution(gramian, ridge=0.0):
    """The a of (C + ridge I) a = 1, C the cosines; 0 for gradients of zero. And their norms."""
    norms = np.sqrt(np.diag(np.asarray(gramian, np.float64)))
    kept = np.flatnonzero(norms)
    cosines = gramian[np.ix_(kept, kept)] / np.outer(norms[kept], norms[kept])
    a = np.zeros(len(norms))
    a[kept] = np.linalg.solve(cosines + ridge * np.eye(len(kept)), np.ones(len(kept)))
    return a, norms


def imtl_g_weights(gramian, ridge=0.0):
    """Liu et al. 2021, Eq. 1, over the size of their sum, which counts for 1e-3 of their sizes."""
    a, norms = unit_solution(gramian, ridge)
    alpha = np.divide(a, norms, out=np.zeros_like(a), where=norms > 0)
    if not norms.any():
        return alpha
    return alpha / max(abs(alpha.sum()), 1e-3 * np.abs(alpha).sum())


def conflict_free_weights(gramian, ridge=0.0):
    """Liu et al. 2025, Eq. 2, where C a = 1: then the projections' sum is that of the norms."""
    a, norms = unit_solution(gramian, ridge)
    alpha = np.divide(a, norms, out=np.zeros_like(a), where=norms > 0)
    return alpha * norms.sum() / a.sum() if norms.any() else alpha


def conflict_free_direction(gradients):
    """Liu et al. 2025, Eq. 2, on the gradients themselves, by the pseudo-inverse."""
    units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    x = np.linalg.pinv(units) @ np.ones(len(units))
    return np.sum(gradients @ x) * x / (x @ x)


def aligned_weights(gramian, scale="min"):
    """Senushkin et al. 2023, Algorithm 1, by NumPy's eigensolver, with the limit of float32."""
    size = len(gramian)
    values, vectors = np.linalg.eigh(np.asarray(gramian, np.float64))
    is_kept = values > values.max() * size * np.finfo(np.float32).eps
    if not is_kept.any():
        return np.zeros(size)
    kept, basis = np.sort(values[is_kept]), vectors[:, is_kept]
    chosen = {"min": kept[0], "median": kept[(len(kept) - 1) // 2], "rmse": kept.mean()}[scale]
    return basis @ (np.sqrt(chosen / values[is_kept]) * (basis.T @ np.full(size, 1 / size)))


def vaccinated_gradients(gradients, orders, targets, beta):
    """Wang et al. 2021 on the vectors themselves: the turned gradients, and the next targets."""
    turned, targets = [], targets.copy()
    for i, order in enumerate(orders):
        vector = gradients[i].copy()
        for j in order:
            other = gradients[j]
            lengths = np.linalg.norm(vector), np.linalg.norm(other)
            least = np.sqrt(np.finfo(np.float32).eps) * np.linalg.norm(gradients[i])
            if j == i or lengths[0] <= least or lengths[1] == 0:
                continue
            cosine = vector @ other / lengths[0] / lengths[1]
            target = np.clip(targets[i, j], -0.9999, 0.9999)
            if cosine < target:
                angles = np.arccos(np.clip([cosine, target], -1, 1))
                vector = vector + lengths[0] / lengths[1] * other * (
                    np.sin(angles[0] - angles[1]) / np.sin(angles[1])
                )
            targets[i, j] = (1 - beta) * targets[i, j] + beta * cosine
        turned.append(vector)
    return np.array(turned), targets
