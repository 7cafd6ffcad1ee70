"""Evaluate a trained workdir and write its report (HTML, CSV, JSON).

    python evaluate.py --workdir=runs/digits
    python evaluate.py --workdir=runs/digits --experiments=fig2,tab1
    python evaluate.py --workdir=runs/digits --experiments=tab2 --targets=configs/mnist.py:small
    python evaluate.py --list

Populations that were made before are read, not made again; a killed run goes on. The report holds
the experiments of the last call.
"""

from pathlib import Path

from absl import app, flags

from hyperjax.app import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that train.py has finished.")
_EXPERIMENTS = flags.DEFINE_list("experiments", [], "Which to run; default: all. See --list.")
_SAMPLERS = flags.DEFINE_list("samplers", [], "Use these samplers; default: the config's.")
_TARGETS = flags.DEFINE_list(
    "targets", [], "Data sets to transfer to: finished workdirs, or configs/x.py[:scale]."
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Models a population; default: the config's."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of images, if it has moved since.")
_LIST = flags.DEFINE_bool("list", False, "List the experiments and exit.")


def main(argv: list[str]) -> None:
    def task():
        from hyperjax import paper
        from hyperjax.app import evaluate
        from hyperjax.errors import HyperJaxError

        cli.refuse_arguments(argv)
        if _LIST.value:
            for name, description in paper.DESCRIPTIONS.items():
                print(f"{name:14} {description}")
            return
        if _WORKDIR.value is None:
            raise HyperJaxError("--workdir is needed: a folder that train.py has finished")
        evaluate.run(
            Path(_WORKDIR.value),
            paper,
            tuple(_EXPERIMENTS.value),
            samplers=tuple(_SAMPLERS.value),
            targets=tuple(_TARGETS.value),
            num_samples=_NUM_SAMPLES.value,
            data_dir=_DATA_DIR.value,
        )

    cli.run(task)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
