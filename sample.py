"""Draw new models from a trained workdir in one forward pass.

    python sample.py --workdir=runs/digits --sampler=kde30 --num_samples=100

Writes a safetensors file of flat weight vectors, with the models' loss and accuracy.
`--list` describes the samplers.
"""

from pathlib import Path

from absl import app, flags

from hyperjax.app import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that train.py has finished.")
_SAMPLER = flags.DEFINE_string("sampler", None, "Name of the sampler; --list names them.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 100, "Number of models to draw.")
_HYPERREP = flags.DEFINE_string(
    "hyperrep",
    "",
    "Hyper-representation: lwln, no_lwln or, once evaluate.py has run experiment vae, vae; "
    "default: the configuration's own.",
)
_SEED = flags.DEFINE_integer("seed", None, "Seed of the draws; default: the configuration's.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write; default: WORKDIR/samples/...")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of images, if it has moved since.")
_LIST = flags.DEFINE_bool("list", False, "List the samplers and exit.")


def main(argv: list[str]) -> None:
    def task():
        from hyperjax import samplers
        from hyperjax.errors import HyperJaxError

        cli.refuse_arguments(argv)
        if _LIST.value:
            for name, description in samplers.describe().items():
                print(f"{name:14} {description}")
            return
        if _WORKDIR.value is None or _SAMPLER.value is None:
            raise HyperJaxError("--workdir and --sampler are needed; --list names the samplers")
        from hyperjax.app import sample

        sample.run(
            Path(_WORKDIR.value),
            _SAMPLER.value,
            _NUM_SAMPLES.value,
            name=_HYPERREP.value,
            seed=_SEED.value,
            output=Path(_OUTPUT.value) if _OUTPUT.value else None,
            data_dir=_DATA_DIR.value,
        )

    cli.run(task)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
