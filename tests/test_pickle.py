"""Transformations and weightings in other processes, as joblib's and ray's workers get them."""

import subprocess
import sys

import pytest

# In a process of its own: the tests' import hook wraps functions in what cannot be pickled.
CODE = """
import copy
import sys

sys.path.insert(0, {tests!r})
import cloudpickle, jax, jax.numpy as jnp, joblib, numpy as np, optax
import softadapt_optax as sa
from helpers import all_factories, quadratic_losses, quadratic_params


def weights_after_a_step(tx):
    params = quadratic_params()
    state = tx.init(params)

    @jax.jit
    def step(state):
        _, grads = sa.value_and_component_grads(quadratic_losses)(params)
        return tx.update(grads, state, params)[1]

    for _ in range(2):
        state = step(state)
    return np.asarray(sa.loss_weights(state))


for name, make in all_factories().items():
    tx = make()
    wanted = tx.init(None)  # it leaves in the transformation what it finds out about its method
    for again in (cloudpickle.loads(cloudpickle.dumps(tx)), copy.deepcopy(tx)):
        jax.tree.map(np.testing.assert_array_equal, again.init(None), wanted)
weighting = sa.Weighting(lambda k: (), lambda components, state: (components.losses, state))
cloudpickle.loads(cloudpickle.dumps(weighting)), copy.deepcopy(weighting)
txs = [sa.softadapt(3), sa.mgda(["far", "near", "small"])]
rows = joblib.Parallel(n_jobs=2)(joblib.delayed(weights_after_a_step)(tx) for tx in txs)
np.testing.assert_allclose(rows, [weights_after_a_step(tx) for tx in txs], rtol=1e-6)
"""


@pytest.mark.slow
def test_cloudpickle_deepcopy_and_joblib(request):
    code = CODE.format(tests=str(request.config.rootpath / "tests"))
    subprocess.run([sys.executable, "-c", code], check=True)
