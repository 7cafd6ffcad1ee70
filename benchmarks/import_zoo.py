"""Reading a zoo of others: checkpoints a second and memory, of `hyperjax import`.

    python benchmarks/import_zoo.py --members=1000 --epochs=10

Writes members of the 2,464-weight CNN as a ray-tune zoo of PyTorch's files, then imports it in a
process of its own, whose anonymous memory is what it takes beyond the files that it maps.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write(folder: Path, members: int, epochs: int) -> None:
    from hyperjax.exchange import export
    from hyperjax.models.architectures import zoo_cnn_spec
    from hyperjax.zoo import METRICS, Zoo

    spec, rng = zoo_cnn_spec(1, "tanh"), np.random.default_rng(0)
    weights = rng.standard_normal((members, epochs, spec.num_params), np.float32)
    metrics = {name: rng.random((members, epochs), np.float32) for name in METRICS}
    zoo = Zoo(spec, weights, np.arange(epochs, dtype=np.int32), np.arange(members), metrics)
    export.export(zoo, folder, "ray")


def anonymous() -> float:
    """MB of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1e3


def measure(folder: Path) -> dict[str, float]:
    from hyperjax.app.import_zoo import import_zoo

    before, start = anonymous(), time.perf_counter()
    made = import_zoo(folder, folder.parent / "zoo.safetensors", activation="tanh")
    seconds, count = time.perf_counter() - start, made.weights[..., 0].size
    return {"seconds": seconds, "a second": count / seconds, "MB": anonymous(), "before": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(Path(arguments.folder))))
        return
    place = Path(tempfile.mkdtemp())
    try:
        write(place / "zoo", arguments.members, arguments.epochs)
        command = [sys.executable, __file__, f"--folder={place / 'zoo'}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{arguments.members} members x {arguments.epochs} epochs: {found['seconds']:.1f} s, "
            f"{found['a second']:.0f} checkpoints/s, anonymous memory {found['MB']:.0f} MB "
            f"({found['before']:.0f} MB before)"
        )
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
