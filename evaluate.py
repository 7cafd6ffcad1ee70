"""Evaluate a trained workdir and write its report (HTML, CSV, JSON).

    python evaluate.py --workdir=runs/digits
    python evaluate.py --workdir=runs/digits --experiments=fig2,tab1
    python evaluate.py --list

Populations that were made before are read, not made again; a killed run goes on.
"""

from pathlib import Path

from absl import app, flags

from hyperjax.tasks import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that train.py has finished.")
_EXPERIMENTS = flags.DEFINE_list("experiments", [], "Which to run; default: all. See --list.")
_SAMPLERS = flags.DEFINE_list("samplers", [], "Restrict tab1 to these; default: the config's.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Models a population; default: the config's."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of images, if it has moved since.")
_LIST = flags.DEFINE_bool("list", False, "List the experiments and exit.")


def main(argv: list[str]) -> None:
    def task():
        from hyperjax.errors import HyperJaxError
        from hyperjax.tasks import evaluate

        cli.refuse_arguments(argv)
        if _LIST.value:
            for name, description in evaluate.describe().items():
                print(f"{name:14} {description}")
            return
        if _WORKDIR.value is None:
            raise HyperJaxError("--workdir is needed: a folder that train.py has finished")
        evaluate.run(
            Path(_WORKDIR.value),
            tuple(_EXPERIMENTS.value),
            samplers=tuple(_SAMPLERS.value),
            num_samples=_NUM_SAMPLES.value,
            data_dir=_DATA_DIR.value,
        )

    cli.run(task)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
