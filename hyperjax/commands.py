"""The commands `hyperjax train|sample|evaluate|import|export|verify`, and scripts named like the
first three: flags, then one call. Nothing heavy is imported before a flag is read."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from hyperjax.app import cli, stop
from hyperjax.config import EvaluationConfig, SamplersConfig, to_dict
from hyperjax.errors import HyperJaxError

_SETTINGS = {"samplers": SamplersConfig, "evaluation": EvaluationConfig}


def main() -> None:
    """The installed command `hyperjax`."""
    commands = {
        "train": train, "sample": sample, "evaluate": evaluate, "import": import_zoo,
        "export": export, "verify": verify,
    }  # fmt: skip
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        asked = sys.argv[1:] in (["--help"], ["-h"])
        print(_usage(commands), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    cli.find_configs()
    sys.argv = [f"{sys.argv[0]} {sys.argv[1]}", *sys.argv[2:]]
    commands[sys.argv[0].split()[-1]]()


def _usage(commands: dict[str, Callable[[], None]]) -> str:
    lines = [f"  {name:10}{of.__doc__.splitlines()[0]}" for name, of in commands.items()]
    return "\n".join([f"usage: hyperjax {'|'.join(commands)} --help", "", *lines])


def train() -> None:
    """Train a model zoo, its hyper-representation, and a denoiser where the scale has one.

        {program} --config=configs/digits.py --workdir=runs/digits
        {program} --config=configs/mnist.py:small --workdir=runs/mnist --config.data_dir=data

    The part after the colon is the scale: smoke (a minute), small (minutes on two CPU cores; also
    a twin of the hyper-representation without LWLN), large (hours there; thousands of members and a
    denoiser), full (accelerators) or paper (the paper's settings). The file says which it has.
    Any field can be overridden, e.g. --config.zoo.num_members=500. The same command on the same
    workdir resumes; on a finished one it says so.
    """
    config = config_flags.DEFINE_config_file("config", None, "Configuration file, see above.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
    wait = _wait("workdir")
    flags.mark_flags_as_required(["config", "workdir"])

    def task() -> None:
        from hyperjax.app import train
        from hyperjax.config import from_dict

        train.run(from_dict(config.value.to_dict()), Path(workdir.value), wait=wait.value)

    _run(task, train)


def sample() -> None:
    """Draw new models from a trained workdir.

        {program} --workdir=runs/digits --sampler=kde30 --num_samples=100

    Writes a safetensors file of flat weight vectors, with the models' loss and accuracy, which
    evaluate.py reads. `--list` describes the samplers; --config.samplers.x=... sets them.
    """
    settings = _settings("samplers")
    workdir = flags.DEFINE_string("workdir", None, "Folder that train.py has finished.")
    sampler = flags.DEFINE_string("sampler", None, "Name of the sampler; --list names them.")
    count = flags.DEFINE_integer("num_samples", 100, "Number of models to draw.")
    name = flags.DEFINE_string(
        "hyperrep",
        "",
        "Hyper-representation: lwln, no_lwln or, where train.py has made it, vae; default: the "
        "configuration's own.",
    )
    seed = flags.DEFINE_integer("seed", None, "Seed of the draws; default: the configuration's.")
    output = flags.DEFINE_string("output", None, "File to write; default: WORKDIR/samples/...")
    data_dir = flags.DEFINE_string("data_dir", "", "Folder of images, if it has moved since.")
    wait = _wait("workdir")
    listed = flags.DEFINE_bool("list", False, "List the samplers and exit.")

    def task() -> None:
        if listed.value:
            from hyperjax import samplers

            return _list(samplers.describe())
        if workdir.value is None or sampler.value is None:
            raise HyperJaxError("--workdir and --sampler are needed; --list names the samplers")
        from hyperjax.app import sample

        sample.run(
            Path(workdir.value),
            sampler.value,
            count.value,
            name=name.value,
            seed=seed.value,
            output=Path(output.value) if output.value else None,
            data_dir=data_dir.value,
            overrides=_overrides(settings),
            wait=wait.value,
        )

    _run(task, sample)


def evaluate() -> None:
    """Evaluate a trained workdir and write its report (HTML, CSV, JSON).

        {program} --workdir=runs/digits
        {program} --workdir=runs/digits --experiments=fig2,tab1
        {program} --workdir=runs/digits --experiments=tab2 --targets=configs/mnist.py:small
        {program} --workdir=runs/digits --experiments=novelty --populations=mine.safetensors
        {program} --list

    Populations that were made before are read, not made again; a killed run goes on. The report
    keeps the experiments of earlier calls. --config.evaluation.x=... and --config.samplers.x=...
    change settings for this call.
    """
    settings = _settings("samplers", "evaluation")
    workdir = flags.DEFINE_string("workdir", None, "Folder that train.py has finished.")
    chosen = flags.DEFINE_list(
        "experiments",
        [],
        "Which to run; see --list. Default: all that the workdir has all for, but "
        "those that take hours.",
    )
    samplers = flags.DEFINE_list("samplers", [], "Use these samplers; default: the config's.")
    targets = flags.DEFINE_list(
        "targets", [], "Data sets to transfer to: finished workdirs, or configs/x.py[:scale]."
    )
    files = flags.DEFINE_list(
        "populations", [], "Population files to evaluate too, of sample.py or of any other origin."
    )
    count = flags.DEFINE_integer("num_samples", None, "Models a population; default: the config's.")
    data_dir = flags.DEFINE_string("data_dir", "", "Folder of images, if it has moved since.")
    wait = _wait("workdir")
    listed = flags.DEFINE_bool("list", False, "List the experiments and exit.")

    def task() -> None:
        from hyperjax import paper

        if listed.value:
            return _list(paper.DESCRIPTIONS)
        if workdir.value is None:
            raise HyperJaxError("--workdir is needed: a folder that train.py has finished")
        from hyperjax.app import evaluate
        from hyperjax.app.evaluate import Request

        request = Request(
            tuple(chosen.value),
            samplers=tuple(samplers.value),
            targets=tuple(targets.value),
            populations=tuple(Path(path) for path in files.value),
            num_samples=count.value,
            data_dir=data_dir.value,
            overrides=_overrides(settings),
        )
        evaluate.run(Path(workdir.value), paper, request, wait=wait.value)

    _run(task, evaluate)


def import_zoo() -> None:
    """Bring networks of others into one zoo file.

        {program} --source=networks --output=zoo.safetensors --activation=relu
        {program} --source='tune_zoo_mnist_uniform' --output=mnist.safetensors --activation=tanh \\
            --epochs=21,22,23,24,25

    The source is a folder or pattern of PyTorch or safetensors state dicts (a file a member, or a
    folder a member), a ray-tune zoo, a Small CNN Zoo, a .npz or HDF5 file, or a dataset.pt. Nothing
    in it is executed. A killed import goes on where it was.
    """
    source = flags.DEFINE_string("source", None, "Folder, file or pattern, see above.")
    output = flags.DEFINE_string("output", None, "Zoo file to write.")
    activation = flags.DEFINE_string("activation", None, "Nonlinearity of the networks.")
    size = flags.DEFINE_list("image_size", [], "Height, width of their images; default: found out.")
    model = flags.DEFINE_string(
        "model",
        "",
        "Architecture: cnn, cnn3, unterthiner, mlp, module:function; default: inferred.",
    )
    epochs = flags.DEFINE_list("epochs", [], "Snapshots to take; default: all.")
    dataset = flags.DEFINE_string("dataset", "", "Images that they were trained on, as a note.")
    moments = flags.DEFINE_bool("moments", False, "Take Adam's second moments along.")
    strict = flags.DEFINE_bool("strict", False, "Refuse what would be left out.")
    wait = _wait("output")
    flags.mark_flags_as_required(["source", "output", "activation"])

    def task() -> None:
        from hyperjax.app import import_zoo

        sides = _integers("image_size", size.value)
        import_zoo.import_zoo(
            source.value,
            output.value,
            activation=activation.value,
            image_size=(sides[0], sides[-1]) if sides else None,
            model=model.value,
            epochs=_integers("epochs", epochs.value),
            dataset=dataset.value,
            moments=moments.value,
            strict=strict.value,
            verbose=True,
            wait=wait.value,
        )

    _run(task, import_zoo)


def export() -> None:
    """Write networks of a zoo or population file in a form that others read.

        {program} --source=runs/digits/zoo/zoo.safetensors --output=exported
        {program} --source=samples.safetensors --output=exported --form=flax

    The networks are those of the last snapshot; ray and small_cnn_zoo hold all. `--list` describes
    the forms.
    """
    source = flags.DEFINE_string("source", None, "Zoo or population file.")
    output = flags.DEFINE_string("output", None, "Folder to write; made if it is not there.")
    form = flags.DEFINE_string("form", "torch", "Form; --list describes them.")
    members = flags.DEFINE_list("members", [], "Rows of the members to write; default: all.")
    listed = flags.DEFINE_bool("list", False, "List the forms and exit.")

    def task() -> None:
        from hyperjax.exchange import export as exporting

        if listed.value:
            return _list(exporting.FORMATS)
        if source.value is None or output.value is None:
            raise HyperJaxError("--source and --output are needed; --list describes the forms")
        from hyperjax.store import zoo_file

        models = zoo_file.read(source.value)
        rows = _integers("members", members.value)
        if any(not 0 <= row < len(models.members) for row in rows):
            raise HyperJaxError(f"--members: the file has rows 0 to {len(models.members) - 1}")
        paths = exporting.export(models.select(rows) if rows else models, output.value, form.value)
        print(f"{len(paths)} files in {output.value}")

    _run(task, export)


def verify() -> None:
    """Check that files are as they were written.

        {program} runs/digits
        {program} runs/digits/zoo/zoo.safetensors mine.safetensors

    All bytes of zoos, populations, samples, hyper-representations, denoisers and moments are
    compared with their checksums: of files, or of all below a folder. Damage is named by file,
    tensor and rows of members, and the exit code is then 1. train.py --config.zoo.repair=True
    trains damaged members of a workdir's zoo again.
    """

    def task(*paths: str) -> None:
        from hyperjax.app import integrity

        if not paths:
            raise HyperJaxError("verify: name files or folders")
        if not integrity.verify([Path(path) for path in paths]):
            sys.exit(1)

    _run(task, verify, files=True)


def _wait(what: str) -> flags.FlagHolder:
    return flags.DEFINE_float(
        "wait",
        0.0,
        f"Seconds to wait for another command that has the {what}; inf: as long as it takes.",
        lower_bound=0,
    )


def _integers(flag: str, values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(map(int, values))
    except ValueError as error:
        raise HyperJaxError(f"--{flag}={','.join(values)}: expected numbers") from error


def _settings(*parts: str) -> flags.FlagHolder:
    """`--config.samplers.x=...`: fields that may be set over the workdir's."""
    tree = ConfigDict({part: to_dict(_SETTINGS[part]()) for part in parts}, convert_dict=True)
    lines = [f"--config.{name}={value}" for name, value in _leaves(tree)]
    about = "\n".join(["Settings over the workdir's, here with the fields' defaults:", *lines])
    try:  # ml_collections looks at the command line now
        holder = config_flags.DEFINE_config_dict("config", tree, about)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cli.refuse(f"--config has fields of {' and '.join(parts)} here: {error.args[0]}")
    flags.FLAGS[holder.name].default_as_str = None  # the same again, as YAML
    return holder


def _leaves(tree: ConfigDict, path: str = "") -> Iterator[tuple[str, str]]:
    """Fields and their values, as they are given on a command line."""
    for name, value in tree.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value).replace(" ", "")


def _overrides(settings: flags.FlagHolder) -> dict[str, Any]:
    """Those fields of the settings that were given on the command line, {"a.b": value}."""
    return dict(config_flags.get_override_values(flags.FLAGS[settings.name]))


def _list(lines: dict[str, str]) -> None:
    for name, description in lines.items():
        print(f"{name:14} {description}")


def _run(task: Callable[..., None], command: Callable[[], None], *, files: bool = False) -> None:
    """Parse the flags, then run the task, which takes the other arguments if they are `files`;
    --help shows the command's docstring and its flags."""
    program = sys.argv[0].rpartition("/")[2]
    program = program if program.startswith("hyperjax") else f"python {program}"
    lines = [line.removeprefix("    ") for line in command.__doc__.splitlines()]
    sys.modules["__main__"].__doc__ = "\n".join(lines).replace("{program}", program)
    for module in (__name__, cli.__name__):
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def checked(argv: list[str]) -> None:
        if files:
            return task(*argv[1:])
        cli.refuse_arguments(argv)
        task()

    stop.install()
    try:
        app.run(lambda argv: cli.run(lambda: checked(argv)), flags_parser=cli.parse_flags)
    except stop.Terminated:  # before the command has begun
        stop.exit_stopped()
    finally:
        stop.ignore()
