"""The 1,797 handwritten digits inside scikit-learn: the whole pipeline in minutes, no download.

    python train.py --config=configs/digits.py --workdir=runs/digits

Scales: small (the default), demo, large, paper, smoke. `demo` has 440 members and a small denoiser:
8 minutes on two cores with products of bfloat16, what `make demo` trains. `large` has 4,000
members, an autoencoder on graphs, and a denoiser of 14,000 steps: 25 minutes for the zoo, 15 for
the autoencoder and 41 for 8,000 of these steps on two Zen 4 cores, both in bfloat16 (digits4k in
docs/reproduce.md). The paper has no digits: `paper` is its autoencoder on
this zoo, whose optimiser settings are its own. With those of the published zoos its members would
never forget their initial weights, and there would be nothing to learn from them.

Expected of `small`, on two cores: 3 minutes; members of 96.7 ± 0.7 % test accuracy, held-out
members reconstructed at 78.5 ± 7.0 %. `paper` was not run: it is work for an accelerator.
"""

import dataclasses

from configs import common
from hyperjax.config import Config, DiffusionConfig, EvaluationConfig, SamplersConfig

SMALL = Config(
    dataset="digits",
    num_train=0,
    num_val=200,
    zoo=common.small_zoo(200, "tanh"),
    autoencoder=common.SMALL_AUTOENCODER,
    evaluation=EvaluationConfig(num_samples=40, epochs=(0, 1, 5), pairs=100, unseen_models=15),
)
LARGE = common.large(SMALL, 4000)
# Ten minutes for everything, `make demo`: 15 epochs, after which members lack half a point, and
# products in bfloat16.
DEMO = dataclasses.replace(
    SMALL,
    matmul_precision="bfloat16",
    zoo=dataclasses.replace(
        LARGE.zoo, num_members=440, epochs=15, split=(0.91, 0.045, 0.045),
        snapshots=(0, 1, 5, 11, 12, 13, 14, 15),
    ),
    autoencoder=dataclasses.replace(
        SMALL.autoencoder,
        data=dataclasses.replace(SMALL.autoencoder.data, epochs_seen=(11, 12, 13, 14, 15)),
        training=dataclasses.replace(SMALL.autoencoder.training, steps=50),
        variants=(),
    ),
    denoiser=dataclasses.replace(
        common.SMALL_DENOISER,
        training=dataclasses.replace(common.SMALL_DENOISER.training, steps=1000),
    ),
    samplers=SamplersConfig(diffusion=DiffusionConfig(temperature=0.5)),
    evaluation=EvaluationConfig(num_samples=80, epochs=(0, 1)),
)  # fmt: skip
PAPER = dataclasses.replace(SMALL, autoencoder=common.PAPER_AUTOENCODER)


def get_config(scale: str = "small"):
    return common.at_scale(scale, {"small": SMALL, "demo": DEMO, "large": LARGE, "paper": PAPER})
