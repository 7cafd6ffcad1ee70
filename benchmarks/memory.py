"""Memory of train.py's stages: what was announced and what was taken at most, as a ratio.

    python benchmarks/memory.py
    python benchmarks/memory.py --case=large

Each case is run twice, each time in a process of its own: with an empty compilation cache, then
with a full one. What is taken is the process's anonymous memory, looked at every 20 ms; pages of
mapped files, which the system can take back, do not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = ("--config.zoo.epochs=3", "--config.autoencoder.data.epochs_seen=(2,3)",
         "--config.autoencoder.training.steps=20",
         "--config.denoiser.training.steps=20")  # fmt: skip
CASES = {
    "smoke": ("--config=configs/digits.py:smoke", "--config.denoiser.training.steps=20"),
    "small": ("--config=configs/digits.py:small", *SHORT),
    "large": ("--config=configs/digits.py:large", "--config.zoo.num_members=2000",
              "--config.num_train=200", "--config.zoo.snapshots=()",
              "--config.zoo.epochs=6", "--config.autoencoder.data.epochs_seen=(2,3,4,5,6)",
              *SHORT[2:]),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    for case in parser.parse_args().case or CASES:
        with tempfile.TemporaryDirectory() as scratch:
            for cache in ("cold", "warm"):
                entry = trained(CASES[case], Path(scratch), cache)
                for stage, most in entry["memory"].items():
                    announced = entry["announced"][stage]
                    print(
                        f"{case:6} {cache}  {stage:17} announced {announced / 1e6:6.0f} MB, "
                        f"taken {most / 1e6:6.0f} MB, ratio {announced / most:.2f}",
                        flush=True,
                    )


def trained(flags: tuple[str, ...], scratch: Path, name: str) -> dict:
    """The manifest's entry of a training."""
    folder = scratch / name
    command = [sys.executable, "train.py", *flags, f"--workdir={folder}"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")}
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "manifest.json").read_text())[-1]


if __name__ == "__main__":
    main()
