"""Take the disk away from commands at random moments, start them again until they are done, and
compare every product with that of a run that nobody disturbed.

    python tests/faults.py --workdir=/tmp/faults --times=20
    python tests/faults.py --workdir=/tmp/faults --stage=import --fault=full --times=3 --seed=1

Each command writes to a file system in memory of its own, which

    full      another program fills, but for nothing, a page or 64 kB
    readonly  turns read-only, as a disk does that reports errors
    gone      is unmounted, and mounted again before the next start

The command has to end with 0, or with 2 and a line that names a path (and, on a full disk, the
bytes it needs; evaluate says a line of each experiment); what was whole before has to be so after
it. Needs Linux, and the right to mount: the script moves into a mount namespace of its own, and
nothing that it mounts is seen outside. What is compared is what `tests/chaos.py` compares. Exits
with 1 if anything is wrong.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import chaos

FAULTS = ("full", "readonly", "gone")
SIZE = "512m"  # of the file system: more than a command asks for before it starts
ROOMS = (0, 4096, 65536)  # bytes that are left on a full one
MOST = 3  # faults in a life
AFTER = 60.0  # seconds a command may go on without its disk
NO_ROOM = r"/life.*: (No space left on device; it|this) needs (about )?[\d.e-]+ \w?B"
INSIDE = "HYPERJAX_FAULTS_NAMESPACE"  # set where mounts are the script's own


class Fault(NamedTuple):
    hit: bool  # the command was there when it happened
    code: int
    wrong: str  # "": it ended as it should


class Life(NamedTuple):
    fault: str
    faults: int
    refused: int  # of them, those that ended the command
    wrong: list[str]


def shell(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr.strip()}")


def enter_namespace() -> None:
    """Start the script again where mounts are its own."""
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    command = ["unshare", flags, sys.executable, *sys.argv]
    os.execvpe("unshare", command, os.environ | {INSIDE: "1"})


def fill(disk: Path, room: int) -> None:
    """Take all of a file system but `room` bytes."""
    block = bytes(2**20)
    with open(disk / ".hog", "wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            file.truncate(max(0, file.tell() - room))


def strike(fault: str, disk: Path, room: int) -> bool:
    """Make the fault happen; whether it could: a file system with a file that is being written
    cannot turn read-only."""
    if fault == "full":
        fill(disk, room)
    elif fault == "gone":
        shell("umount", "--lazy", disk)
    else:
        return not subprocess.run(
            ["mount", "-o", "remount,bind,ro", disk], capture_output=True
        ).returncode
    return True


def undo(fault: str, disk: Path, store: Path) -> None:
    if fault == "full":
        (disk / ".hog").unlink()
    elif fault == "gone":
        shutil.rmtree(disk)  # what the command may have written in its place
        disk.mkdir()
        shell("mount", "--bind", store, disk)
    else:
        shell("mount", "-o", "remount,bind,rw", disk)


def attempt(
    stage: chaos.Stage, folder: Path, store: Path, fault: str, rng: random.Random, work: float
) -> Fault:
    """Start the command, and let the fault happen while it holds its folder."""
    hit, moment, room = False, rng.random() * work, rng.choice(ROOMS)
    processes = chaos.start(stage, folder)
    try:
        first = processes[0]
        ended = lambda: any(p.poll() is not None for p in processes)  # noqa: E731
        chaos.wait(lambda: ended() or chaos.holds(stage, folder, first), chaos.LIMIT)
        chaos.wait(ended, moment)
        while not ended() and not hit:
            hit = strike(fault, folder, room)
            time.sleep(0 if hit else 0.02)
        limit = chaos.LIMIT if fault != "gone" or not hit else AFTER
        done = chaos.wait(lambda: all(p.poll() is not None for p in processes), limit)
        code, text = first.poll(), chaos.text_of(first)
        wrong = judge(fault, folder, code, text) if hit or code else ""
        wrong = wrong if done else f"goes on {AFTER:.0f} s without its disk"
        return Fault(hit, -999 if code is None else code, wrong)
    finally:
        chaos.end(processes)
        if hit:
            undo(fault, folder, store)


def judge(fault: str, disk: Path, code: int | None, text: str) -> str:
    """What is wrong with how a command ended."""
    if code == 0:
        return ""
    lines = text.strip().splitlines()  # evaluate says it of each experiment
    problem = "" if code == 2 else f"ended with {code}; "
    said = NO_ROOM if fault == "full" else re.escape(str(disk))
    if not text.startswith("error: ") or not all(re.search(said, line) for line in lines):
        return f"{problem}said {text[-2000:]!r}"
    return problem


def verified(folder: Path) -> str:
    """What `hyperjax verify` finds damaged."""
    found = [path for path in folder.rglob("*.safetensors") if not path.name.startswith(".")]
    if not found:
        return ""
    command = [sys.executable, "-m", "hyperjax", "verify", *map(str, found)]
    done = subprocess.run(command, cwd=chaos.ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def live(name: str, scratch: Path, fault: str, rng: random.Random, most: int) -> Life:
    stage, (expected, timing) = chaos.STAGES[name], chaos.reference(name, scratch)
    store, folder, begun = scratch / "store", scratch / "life", scratch / "begun"
    for path in (store, folder):
        path.mkdir(exist_ok=True)
    shell("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", store)
    shell("mount", "--bind", store, folder)
    try:
        shutil.rmtree(begun, ignore_errors=True)
        stage.begins(scratch, begun)
        shutil.copytree(begun, folder, dirs_exist_ok=True)
        wrong, faults, refused = [], 0, 0
        for _ in range(min(most, rng.randint(1, MOST))):
            happened = attempt(stage, folder, store, fault, rng, timing.work)
            faults += happened.hit
            refused += happened.hit and happened.code != 0
            damage = verified(folder)
            wrong += [f"{name}: {fault}: {text}" for text in (happened.wrong, damage) if text]
            if not happened.hit or happened.code == 0:
                break
        chaos.finish(stage, folder)
        differences, strays = chaos.compare(expected, folder)
        wrong += [f"{name}: {fault}: differs: {x}" for x in differences]
        wrong += [f"{name}: {fault}: left over: {x}" for x in strays]
        return Life(fault, faults, refused, wrong)
    finally:
        shell("umount", "--lazy", folder)
        shell("umount", "--lazy", store)


def run(name: str, scratch: Path, fault: str, times: int, seed: int) -> list[Life]:
    rng, lives = random.Random(f"{seed}/{name}/{fault}"), []
    while (left := times - sum(life.faults for life in lives)) > 0:
        lives.append(live(name, scratch, fault, rng, left))
        print(f"{name}: {fault}, {times - left + lives[-1].faults} of {times}", flush=True)
        for line in lives[-1].wrong:
            print(line, flush=True)
    return lives


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="for all that is made; kept")
    parser.add_argument("--stage", choices=chaos.STAGES, action="append", help="default: all")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="default: all")
    parser.add_argument("--times", type=int, default=20, help="of each stage and fault")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if INSIDE not in os.environ:
        enter_namespace()
    scratch = given.workdir.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    stages, faults = given.stage or list(chaos.STAGES), given.fault or FAULTS
    found = {
        (name, fault): run(name, scratch, fault, given.times, given.seed)
        for name in stages
        for fault in faults
    }
    print("stage     fault     lives  faults  refused  wrong")
    for (name, fault), lives in found.items():
        faults, refused = (sum(life[i] for life in lives) for i in (1, 2))
        wrong = sum(len(life.wrong) for life in lives)
        print(f"{name:9} {fault:9} {len(lives):5}  {faults:6}  {refused:7}  {wrong:5}")
    return int(any(life.wrong for lives in found.values() for life in lives))


if __name__ == "__main__":
    sys.exit(main())
