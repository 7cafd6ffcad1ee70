"""What the commands share: devices, processes, errors, interruption."""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from absl import flags, logging

from hyperjax.app import peers, stop
from hyperjax.errors import HyperJaxError

_LEAST_COMPILE_SECONDS = 0.1  # what compiles faster is hardly faster to load
_MOST_COMPILED_BYTES = 2**31  # kept; the least recently used go
_MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "Run as one of several processes, found through the cluster (Slurm, TPU pods, Open MPI, "
    "Kubernetes) or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; see "
    "docs/clusters.md.",
)
_GRACE = flags.DEFINE_float(
    "grace",
    stop.GRACE,
    "Seconds from SIGTERM or Ctrl-C to the end, with exit code 75: at the next safe point, with a "
    "checkpoint, or where that takes longer from the last one.",
    lower_bound=0,
)


def configure_jax() -> None:
    """One virtual CPU device per core, on which populations are spread; full float32 precision;
    compiled programs are kept.

    XLA runs the many small operations of a zoo CNN on one core each. JAX_NUM_CPU_DEVICES and
    JAX_DEFAULT_MATMUL_PRECISION, where set, come first; the precision is also a field of the
    configuration, which is not known yet. Call before JAX starts its backend.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if "JAX_DEFAULT_MATMUL_PRECISION" not in os.environ:  # float32 means float32 on GPU as well
        jax.config.update("jax_default_matmul_precision", "float32")
    _keep_compiled(jax)


def _keep_compiled(jax: ModuleType) -> None:
    """Let the next run load what XLA compiles in this one.

    JAX's own keys hold the program, the version, the devices and the CPU's features, so that
    unlike machines may share a home. JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_...,
    where set, come first; JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_COMPILE_SECONDS)
    chosen = jax.config.jax_compilation_cache_dir is not None
    # jax before 0.10.2 takes a CPU's own code for another machine's, and says so at length
    if chosen or not jax.config.jax_enable_compilation_cache or jax.__version_info__ < (0, 10, 2):
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hyperjax/jax"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it will be executed
    except (OSError, RuntimeError):  # not writable, or there is no home
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _forget_oldest(folder)


def _forget_oldest(folder: Path) -> None:
    """Remove what was used longest ago, until there is no more than is kept. (JAX can do so too,
    but then writes no more into a folder where it once has not.)"""
    total, files = 0, []
    with contextlib.suppress(OSError):  # another command may remove them too
        files = [(max(s.st_atime, s.st_mtime), s.st_size, path)
                 for path in folder.iterdir() if path.is_file()  # on GPUs XLA has a folder there
                 for s in [path.stat()]]  # fmt: skip
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > _MOST_COMPILED_BYTES:
            with contextlib.suppress(OSError):  # another user's, perhaps
                path.unlink()


def run(task: Callable[[], Any]) -> None:
    """Run a task; print a mistake of the user's as one message and exit with 2, or, where it was
    told to stop and can go on, with `stop.EXIT_CODE`. Of several processes all end."""
    parsed = flags.FLAGS.is_parsed()
    stop.install(_GRACE.value if parsed else stop.GRACE)
    logging.set_verbosity(logging.FATAL)  # Orbax narrates, and logs errors that it raises as well
    # what it leaves behind where a disk is full
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)
    try:
        with stop.deferred():  # C++ that is interrupted while it is loaded may abort
            configure_jax()
        if parsed and _MULTIHOST.value:
            peers.join()
            stop.install(_GRACE.value)  # in place of JAX's own
        task()
        peers.leave()
    except stop.Terminated:
        peers.wait_if_ending()
        _end(stop.EXIT_CODE, stop.TOLD)
    except Exception as error:
        peers.wait_if_ending()
        if stop.interrupted():
            _end(stop.EXIT_CODE, stop.TOLD)
        peers.end_with_another()
        reason = _mistake(error)
        if reason is not None:
            _end(2, f"error: {reason}")
        if peers.joined():
            traceback.print_exc()
            _end(1, f"{type(error).__name__}: {error}")
        raise


def _unraisable(say: Callable[[Any], None], problem: Any) -> None:
    """Pass over what TensorStore's threads have to tell an event loop that an error has closed."""
    if str(problem.exc_value) != "Event loop is closed":
        say(problem)


def _end(code: int, text: str) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # the log may be on the disk that is full
        print(text, file=sys.stderr)
    if peers.joined():
        stop.ignore()  # a scheduler may signal the others when the first one has gone
        peers.end(code, text)
    sys.exit(code)


def _mistake(error: Exception) -> object:
    """What to say of an error that is no fault of the program's; None: it is one."""
    if isinstance(error, HyperJaxError | OSError):
        return error
    first = (str(error) or "no more to be had").splitlines()[0]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"out of memory: {first}. Where this is a training, the same command goes on from its "
            "last checkpoint; fewer at once need less: config fields denoiser.micro_batch, "
            "autoencoder.micro_batch (of one that draws nothing itself), and zoo.chunk_size for a "
            "zoo that begins"
        )
    if peers.joined():
        from hyperjax import distributed  # JAX, which is there by now

        if distributed.is_of_transport(error):
            return f"another process of this run was lost; start all of them again ({first})"
    return None


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; a mistake in a flag or a configuration is one message, not a traceback."""
    try:
        return flags.FLAGS([argv[0], *map(_packaged, argv[1:])])
    except flags.Error as error:
        refuse(f"{error}; --help shows the flags")
    except (HyperJaxError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        refuse(error.args[0] if isinstance(error, KeyError) and error.args else error)


def refuse(reason: object) -> NoReturn:
    """Say what is wrong with the command, and end it."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def _packaged(argument: str) -> str:
    """`--config=digits:small` for a configuration that comes with the package, where there is no
    such file."""
    flag, equals, value = argument.partition("=")
    name, colon, scale = value.partition(":")
    if flag.lstrip("-") != "config" or not equals or Path(name).exists():
        return argument
    packaged = importlib.util.find_spec("hyperjax.configs")
    if packaged is None or not name.isidentifier():
        return argument
    path = Path(packaged.submodule_search_locations[0]) / f"{name}.py"
    return f"{flag}={path}{colon}{scale}" if path.is_file() else argument


def find_configs() -> None:
    """Let configurations import `configs.common` where there is no repository around them."""
    if importlib.util.find_spec("configs") is None:
        sys.modules["configs"] = importlib.import_module("hyperjax.configs")


def refuse_arguments(argv: list[str]) -> None:
    """A forgotten `--` is a mistake, not something to pass over."""
    if len(argv) > 1:
        raise HyperJaxError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
