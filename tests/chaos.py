"""Kill commands at random moments, start them again until they are done, and compare every product
with that of a run that nobody disturbed.

    python tests/chaos.py --workdir=/tmp/chaos --kills=50
    python tests/chaos.py --workdir=/tmp/chaos --stage=import --kills=6 --seed=1

A life is one product from its beginning to its end, under one signal: up to three kills, then a run
that is let finish. The seed decides the signals and the moments, as fractions of the time that an
undisturbed run takes. What is compared: the list of files, tensors and text to the bit, but for
times, commands and commits that a file notes. Exits with 1 if anything differs, if a file is left
over, or if SIGTERM or SIGINT does not end a command with 75 within its grace.
"""

import argparse
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
GRACE = 30.0  # seconds, the commands' own
MOST_KILLS = 3  # of a life
STARTUP_SHARE = 0.1  # of the kills: before the command holds its folder
LIMIT = 1800.0  # seconds; a hang is a failure
MEMBERS = 3000  # of the zoo that is imported
CONFIG = "--config=configs/digits.py:smoke"
NOTED = (  # in text: when, by which command and commit
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?", r'"commit": "[^"]*"',
    r"at commit [0-9a-f+]*", r"hyperjax [0-9.]+ \([0-9a-f+]*\)",
    r'"seconds": [0-9.e+-]+', r'"stages": \{[^}]*\}',
)  # fmt: skip


class Stage(NamedTuple):
    """A command that is killed."""

    command: Callable[[Path], list[str]]  # given the folder it writes
    begins: Callable[[Path, Path], None]  # (scratch, folder): makes what is there before it
    lease: str  # that it holds in the folder while it works
    processes: int = 1


class End(NamedTuple):
    """How an attempt ended."""

    code: int  # of the process that was signalled, or of the first that failed
    hit: bool  # it was there to be signalled
    early: bool  # before it held its folder
    seconds: float  # from the signal to the end
    errors: str


class Timing(NamedTuple):
    """Of a run that nobody disturbed, in seconds."""

    start: float  # until it holds its folder
    work: float  # from there to the end


class Life(NamedTuple):
    number: signal.Signals
    kills: int
    differences: list[str]
    strays: list[str]
    wrong: list[str]  # exits


def train(*more: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        "train.py", CONFIG, f"--workdir={folder}", "--config.checkpoint_seconds=0",
        *more,
    ]  # fmt: skip


def sample(folder: Path) -> list[str]:
    return ["sample.py", f"--workdir={folder}", "--sampler=gan", "--num_samples=40"]


def evaluate(folder: Path) -> list[str]:
    return ["evaluate.py", f"--workdir={folder}", "--experiments=tab1,fig4",
            "--samplers=kde30,average", "--config.evaluation.epochs=(0,4)"]  # fmt: skip


def bring_in(folder: Path) -> list[str]:
    return ["-m", "hyperjax", "import", f"--source={folder.parent / 'networks'}/*.pt",
            f"--output={folder / 'zoo.safetensors'}", "--activation=tanh"]  # fmt: skip


def nothing(scratch: Path, folder: Path) -> None:
    folder.mkdir()


def trained(scratch: Path, folder: Path) -> None:
    shutil.copytree(reference("train", scratch)[0], folder)


def networks(scratch: Path, folder: Path) -> None:
    """Some of them are damaged, and will be left out."""
    folder.mkdir()
    source = scratch / "networks"
    if source.exists():
        return
    import numpy as np

    from hyperjax.exchange.export import export
    from hyperjax.models.architectures import zoo_cnn_spec
    from hyperjax.zoo import Zoo

    spec = zoo_cnn_spec(1, "tanh")
    vectors = np.random.default_rng(0).standard_normal((MEMBERS, 1, spec.num_params))
    vectors[::100, :, 5] = np.nan
    zoo = Zoo(spec, np.float32(vectors), np.zeros(1, np.int32), np.arange(MEMBERS), {}, {})
    with tempfile.TemporaryDirectory(dir=scratch) as partial:
        export(zoo, Path(partial) / "networks", "torch")
        (Path(partial) / "networks").rename(source)


STAGES = {
    "train": Stage(train("--config.denoiser.training.steps=6"), nothing, ".lease"),
    "sample": Stage(sample, trained, ".lease"),
    "evaluate": Stage(evaluate, trained, ".lease"),
    "import": Stage(bring_in, networks, ".zoo.safetensors.lease"),
    "two": Stage(train("--config.autoencoder.variants=('no_lwln',)"), nothing, ".lease", 2),
}


def start(stage: Stage, folder: Path) -> list[subprocess.Popen]:
    """The command's processes. Each writes its errors to a file that has no name."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "compiled"))
    command, clusters = [sys.executable, *stage.command(folder)], [{}]
    if stage.processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_CPU_DEVICES": "1",
                  "JAX_NUM_PROCESSES": str(stage.processes)}  # fmt: skip
        clusters = [shared | {"JAX_PROCESS_ID": str(i)} for i in range(stage.processes)]
        command.append("--multihost")
    processes = []
    for cluster in clusters:
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 read when the process has ended
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=env | cluster, stdout=subprocess.DEVNULL, stderr=errors
            )
        )
        processes[-1].errors = errors
    return processes


def text_of(process: subprocess.Popen) -> str:
    process.errors.seek(0)
    return process.errors.read()


def holds(stage: Stage, folder: Path, process: subprocess.Popen) -> bool:
    try:
        return json.loads((folder / stage.lease).read_text())["pid"] == process.pid
    except (OSError, ValueError, KeyError):
        return False


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def finish(stage: Stage, folder: Path) -> Timing:
    """Let the command finish."""
    begun, processes = time.monotonic(), start(stage, folder)
    try:
        first = processes[0]
        wait(lambda: holds(stage, folder, first) or first.poll() is not None, LIMIT)
        held = time.monotonic()
        ended = wait(lambda: all(p.poll() is not None for p in processes), LIMIT)
        codes = [process.returncode for process in processes]
        if not ended or any(codes):
            raise SystemExit(f"{stage.command(folder)} ended with {codes}:\n{text_of(first)}")
        return Timing(held - begun, time.monotonic() - held)
    finally:
        end(processes)


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def attempt(
    stage: Stage, folder: Path, number: signal.Signals, rng: random.Random, timing: Timing
) -> End:
    """Start the command and signal one of its processes."""
    early, fraction = rng.random() < STARTUP_SHARE, rng.random()
    processes = start(stage, folder)
    try:
        first, victim = processes[0], rng.choice(processes)
        gone = lambda: victim.poll() is not None or first.poll() is not None  # noqa: E731
        if not early:
            wait(lambda: gone() or holds(stage, folder, first), LIMIT)
        wait(gone, fraction * (timing.start if early else timing.work))
        hit = not gone()
        if hit:
            victim.send_signal(number)
        begun = time.monotonic()
        wait(lambda: victim.poll() is not None, GRACE + 10 if hit else LIMIT)
        seconds = time.monotonic() - begun
        others = lambda: all(p.poll() is not None for p in processes)  # noqa: E731
        # what a scheduler does with the processes that a dead one leaves behind
        wait(others, GRACE if number != signal.SIGKILL or not hit else 2.0)
        code = victim.poll()
        return End(-999 if code is None else code, hit, early, seconds, text_of(victim))
    finally:
        end(processes)


def is_wrong(ended: End, number: signal.Signals) -> bool:
    """Before the command has its handlers a signal ends it as any other program."""
    if not ended.hit or number == signal.SIGKILL:
        return ended.code not in (0, -number)
    allowed = (0, 75, -number) if ended.early else (0, 75)
    return ended.code not in allowed or ended.seconds > GRACE + 5


@functools.cache
def reference(name: str, scratch: Path) -> tuple[Path, Timing]:
    """The products of a run that nobody disturbed. How long a second one takes, whose programs
    are compiled already, and whether it gives the same, which is a test of the comparison."""
    stage, folder = STAGES[name], scratch / f"reference-{name}"
    if not folder.exists():
        first = scratch / f"first-{name}"
        shutil.rmtree(first, ignore_errors=True)
        stage.begins(scratch, first)
        print(f"{name}: first run ...", flush=True)
        finish(stage, first)
        first.rename(folder)
    again = scratch / f"again-{name}"
    shutil.rmtree(again, ignore_errors=True)
    stage.begins(scratch, again)
    print(f"{name}: second run ...", flush=True)
    timing = finish(stage, again)
    differences, strays = compare(folder, again)
    if differences or strays:
        raise SystemExit(f"{name}: two undisturbed runs differ: {differences} {strays}")
    shutil.rmtree(again)
    print(f"{name}: {timing.start:.1f} s to start, {timing.work:.1f} s to work", flush=True)
    return folder, timing


def compare(expected: Path, found: Path) -> tuple[list[str], list[str]]:
    """Files that differ or are missing, and files that are left over."""
    ours, theirs = (
        {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        for folder in (found, expected)
    )
    differing = [
        name
        for name in sorted(ours & theirs)
        if (found / name).is_file() and content(found, name) != content(expected, name)
    ]
    return sorted(theirs - ours) + differing, sorted(ours - theirs)


def content(folder: Path, name: str) -> Any:
    """What must be the same in a file."""
    data = (folder / name).read_bytes()
    if name == "manifest.json":
        return json.loads(data)[-1]["status"]
    if name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        fields, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        about = {key: noted(text, folder) for key, text in fields.pop("__metadata__").items()}
        tensors = {
            key: (field["dtype"], field["shape"], body[slice(*field["data_offsets"])])
            for key, field in fields.items()
        }
        return about, tensors
    return noted(data.decode(), folder) if name.endswith((".json", ".jsonl", ".html")) else data


def noted(text: str, folder: Path) -> str:
    """Without what tells one run from another that does the same."""
    text = re.sub(rf"{re.escape(str(folder.parent))}/[\w-]+", "", text)  # this folder or its like
    for pattern in NOTED:
        text = re.sub(pattern, "", text)
    return text


def live(name: str, scratch: Path, number: signal.Signals, rng: random.Random, most: int) -> Life:
    stage, (expected, timing) = STAGES[name], reference(name, scratch)
    folder, wrong, kills = scratch / f"life-{name}", [], 0
    shutil.rmtree(folder, ignore_errors=True)
    stage.begins(scratch, folder)
    for _ in range(min(most, rng.randint(1, MOST_KILLS))):
        ended = attempt(stage, folder, number, rng, timing)
        kills += ended.hit
        if is_wrong(ended, number):
            wrong.append(f"{name}: {number.name}: {ended}")
        if not ended.hit:
            break
    finish(stage, folder)
    differences, strays = compare(expected, folder)
    if differences or strays:  # to be looked at
        kept = scratch / f"differs-{name}-{number.name}-{time.time_ns()}"
        folder.rename(kept)
        print(f"{kept}: differ {differences}, left over {strays}", flush=True)
    return Life(number, kills, differences, strays, wrong)


def run(name: str, scratch: Path, kills: int, seed: int) -> list[Life]:
    """Lives, the signals in turn, until there were so many kills."""
    rng, lives = random.Random(f"{seed}/{name}"), []
    while (left := kills - sum(life.kills for life in lives)) > 0:
        number = SIGNALS[len(lives) % len(SIGNALS)]
        lives.append(live(name, scratch, number, rng, left))
        print(f"{name}: {number.name}, {kills - left + lives[-1].kills} of {kills}", flush=True)
        for line in lives[-1].wrong:
            print(line, flush=True)
    return lives


def table(found: dict[str, list[Life]]) -> str:
    lines = ["stage     signal   lives  kills  differences  left over  wrong exits"]
    for name, lives in found.items():
        for number in SIGNALS:
            mine = [life for life in lives if life.number == number]
            counts = [sum(map(len, (life[i] for life in mine))) for i in (2, 3, 4)]
            kills = sum(life.kills for life in mine)
            lines.append(
                f"{name:9} {number.name:8} {len(mine):5}  {kills:5}  {counts[0]:11}  "
                f"{counts[1]:9}  {counts[2]:11}"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="for all that is made; kept")
    parser.add_argument("--stage", choices=STAGES, action="append", help="default: all")
    parser.add_argument("--kills", type=int, default=50, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    scratch = given.workdir.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    stages = given.stage or list(STAGES)
    found = {name: run(name, scratch, given.kills, given.seed) for name in stages}
    print(table(found))
    bad = any(life[i] for lives in found.values() for life in lives for i in (2, 3, 4))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
