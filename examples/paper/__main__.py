"""All experiments, one after the other: `python -m examples.paper --help`."""

from examples.paper import common, introvae, learned_coefficients, rosenbrock, sparse_autoencoder

EXPERIMENTS = (
    rosenbrock.EXPERIMENT,
    sparse_autoencoder.EXPERIMENT,
    introvae.EXPERIMENT,
    learned_coefficients.EXPERIMENT,
)

if __name__ == "__main__":
    common.main(EXPERIMENTS)
