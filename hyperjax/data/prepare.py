"""Download an image data set once and prepare it with tensorflow-datasets.

The only command of this package that downloads anything, and the only one that needs
TensorFlow: pip install -e '.[prepare]', in the repository. What it writes is read without either.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from hyperjax.data.image_files import prepared_versions
from hyperjax.data.images import DATASETS, dataset_info
from hyperjax.errors import HyperJaxError


def prepare(name: str, data_dir: str | Path) -> Path:
    """Download and convert a data set to array_record files; return their folder.

    What is already prepared is left as it is. Raises HyperJaxError if TensorFlow is not
    installed, the download fails, or the folder holds the data set in another format.
    """
    info = dataset_info(name)
    if not info.tfds:
        raise HyperJaxError(f"{name} needs no preparation: it ships with scikit-learn")
    folder = Path(os.path.expanduser(data_dir)) / info.tfds
    for version, file_format in prepared_versions(folder).items():
        if file_format == "array_record":
            return version
        raise HyperJaxError(
            f"{version}: already prepared, but as {file_format}, which cannot be read without "
            "TensorFlow; remove it or choose another --data_dir"
        )
    if any(importlib.util.find_spec(m) is None for m in ("tensorflow", "tensorflow_datasets")):
        raise HyperJaxError(
            "preparing a data set needs TensorFlow: pip install -e '.[prepare]' in the repository"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(info.tfds, data_dir=folder.parent, file_format="array_record")
        builder.download_and_prepare()
    except OSError as error:  # no network, no space, no permission
        raise HyperJaxError(f"{name} could not be prepared in {folder.parent}: {error}") from error
    return Path(builder.data_dir)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, or 2 after a message to the user."""
    parser = argparse.ArgumentParser(
        prog="python -m hyperjax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "example: python -m hyperjax.data.prepare --dataset=mnist --data_dir=data\n\n"
            "Afterwards any run with the same dataset and data_dir finds it. The original files\n"
            "(see the message of a run that does not find them) do as well and need no\n"
            "preparation; digits needs no files at all."
        ),
    )
    names = [name for name, info in DATASETS.items() if info.tfds]
    parser.add_argument("--dataset", required=True, choices=names, help="what to download")
    parser.add_argument(
        "--data_dir",
        default="data",
        help="where to put it, and the downloads (in downloads/); default: %(default)s",
    )
    arguments = parser.parse_args(argv)
    try:
        folder = prepare(arguments.dataset, arguments.data_dir)
    except HyperJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.dataset} is prepared in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
