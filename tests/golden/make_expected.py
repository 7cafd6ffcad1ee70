"""What a version of HyperJAX decodes and encodes with the hyper-representation of a workdir.

    python make_expected.py WORKDIR    # writes WORKDIR/expected.npz; see README.md

Runs with version 0.1, whose files it is about, and with the present one.
"""

import sys
from pathlib import Path

import numpy as np

from hyperjax import hyperrep

try:
    from hyperjax.store import hyperrep_file

    ALIGNED = {"aligned": True}
except ImportError:  # 0.1
    from hyperjax.io import hyperrep_file

    ALIGNED = {}


def main(folder: Path) -> None:
    model, _ = hyperrep_file.read(folder / "hyperrep" / "lwln.safetensors")
    latents = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 2)).astype(np.float32)
    np.savez_compressed(
        folder / "expected.npz",
        latents=latents,
        decoded=hyperrep.decode(model, latents),
        encoded=hyperrep.encode(model, np.asarray(model.reference)[None], **ALIGNED),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
