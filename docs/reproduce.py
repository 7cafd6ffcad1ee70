"""Write docs/reproduce.md from the reports of finished workdirs.

    python docs/reproduce.py runs/digits runs/mnist

What the page needs of their reports is copied into docs/results, a folder a workdir: the page is
made of all that are there, so that they can have been made at different times and places. Its
numbers are read from CSV files; the words around them hold none. What is not there is left out, and
both the page and the command say so.
"""

import argparse
import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FACTS = (
    "data set", "images", "zoo", "with LWLN, used as of", "samples", "seed", "hardware", "software",
)  # fmt: skip
SMALL = (
    "Digits with 200 members, by an earlier commit: "
    "[results/digits-small.md](results/digits-small.md)."
)
# "@file: columns" is the table of that CSV file ("accuracy_*": one for each target), with columns
# whose titles match, and rows "where x=a,b" or "where nonzero": not everything is zero.
PAGE = """# Reproducing the figures

Every table and figure of the paper, and the audits beyond it. Numbers are those of the reports' CSV
files, to which the reports add pictures, intervals and tests. Mean ± standard deviation is over the
models of one population, of one seed. `python docs/reproduce.py` writes this page.

@runs

The commands are those of the commits that stand below the tables. What was trained before commit
58ac2de has the autoencoder that scale `large` had then, the one of `small`, of which step 0 was
the best: principal components alone. Today's train.py gives it by the five settings of
`--config.autoencoder` that the command of `digits10k` has, without that of its rounds; its zoo
was trained at commit 904c4ce. In `digits4k` the zoo was trained at commit ea85ed0. In `mnist2k`
zoo and autoencoder were trained at commit f48098f, the denoiser at 72aee7b. `../shared/data` is
the folder of the image files, `data` by default.

Any experiment runs alone, `--experiments=tab2`; what earlier calls have drawn and trained is read.
The paper's zoos have more members, epochs and images, and other initial weights. Its figures, where
there are some for a data set, stand beside ours for scale, not as the same experiment.

## `fig2`: reconstruction
Weights through the autoencoder and back; R² is against the mean of the train members. Components
keep what lies in their span, of train members too, once there are more of these than latents. A
graph keeps more.
@reconstruction: members|accuracy|before|R²

## `fig3`: robustness and smoothness
Noise on the latents of held-out members, by its length relative to theirs; then lines between
latents, beside lines between aligned weights. Lines of latents have the lower barrier: their ends
are poorer, as reconstructions are, and their middles are better than means of aligned members.
@noise: noise|accuracy|R² where noise=0,0.1,0.3,1
@lines: lines|start|middle|end|barrier

## `fig4`: all samplers as decoded
S_ are samples of the main autoencoder, B_ of the one without LWLN, the others are baselines in
weight space; B_T is trained from scratch. `kde_anchor`, which is the published code, replays train
models; `kde`, which is the paper's text, gives new and poor ones; `joint` lies between. `neigh` and
`gan`, where they were drawn, depend on rounding: on another CPU they move by points, others do not.
@accuracy: population|models|test accuracy|from|to|disagreement|novelty

## `tab1`: fine-tuning
The same populations, fine-tuned with the zoo's hyper-parameters. After an epoch all are above
training from scratch, the aligned mean and uniform latents too: that alone proves little. What the
paper calls KDE30 is called `kde_anchor30` here.
@accuracy: population|models|epoch

## `fig5`: ensembles
Mean probabilities of random ensembles; B_T after the last epoch that the autoencoder sees, the rest
as decoded. Poor, different models gain most. Nothing does much better than trained models.
@ensembles: population|one model|of (2|5|15)[ ]

## `fig6`: do reconstructions become their originals?
Held-out members, their reconstructions, and originals with noise as large as the reconstruction's
error, by epoch of fine-tuning. In accuracy reconstructions nearly do. In weights they do not: the
noisy ones return, reconstructions stay other networks.
@finetuning: population|epoch|test|distance|cosine where epoch=0,1,5,25

## `tab2`: transfer, with figure 7
Fine-tuned on another data set with its hyper-parameters. B_F are members of the source zoo, B_T are
trained on the target. After one epoch and five, samples are ahead of B_T, as members are; of which
sampler they are hardly matters. Of the paper's pairs none was run, for want of images of SVHN and
STL-10.
@accuracy_*: population|epoch (0|1|5|25|50)[ ]

## `tab3`: unseen zoos
Models of another zoo through the autoencoder, on their own images. Below them stands a control that
the paper lacks: the autoencoder's own models on those images. What is decoded from unseen models is
no better than that.
@conditioning: models|number|one|best|ensemble|R²

## `tab4`: unseen architectures
Weights of the zoo's CNN as the start of 3-conv + res-skip, 4-conv and 4-conv + id.-skip. `shuffled`
keeps their scale alone; `refill` fills parameters in order. After an epoch generated weights
are ahead of both; with a res-skip, within the spread.
@res_skip: initial|epoch
@four_conv: initial|epoch
@four_conv_skip: initial|epoch

## `figD`: geometry of latents
Norms, angles between members' latents, and the nearest train latent of another member.
@geometry: latents|number|norm|cosine|effective

## `vae`: a variational autoencoder
V_ are samples of a VAE. It reconstructs about as well as the autoencoder; V_prior is like `kde`.
@reconstruction: members|accuracy|disagreement|R²
@latents: members|KL|inactive|variance|loss|recon
@populations: population|models|test|disagreement|novelty

## `novelty`: generalise or memorise?
After Zeng et al. (arXiv 2506.07998): accuracy above the frontier of noise on train members and
averages of them at the same novelty, with its interval; by novelty in weights, then in behaviour.
Held-out members, what a perfect sampler would give, lie beyond it; the last column says what else
does. Then shares of samples that replay a train model, or are as near to an average, where any
do. In `digits4k_1` and `fashion2k`, which are older, `subsample:` was compared with baselines
that nothing was chosen from, which is too high a margin, and frontiers are of 9 strengths of
noise in place of 13.
@weights: population|kind|test|novelty|margin|from|to|frontier.$
@behaviour: population|novelty|margin|from|to|frontier.$
@copies: population|replay|interpolate where nonzero

## `denoiser`: what it knows of unseen networks
Errors of the denoiser of weights on held-out and on train members, as a share of the linear-optimal
(Wiener) denoiser's, whose covariance is shrunk. Before commit 72aee7b it was shrunk by a third of
what it should be, since snapshots counted as members: errors of these Wiener denoisers are too
large and ratios to them too small, with few members by far, in `scaling` as well (`python
benchmarks/shrinkage.py runs/mnist2k`).
@errors: noise|held-out|train
@facts: fact|number

## `scaling`: what more train members give
Subsets of the train members of one zoo, each with a denoiser of its own, all of equally many steps.
Errors are of a weight of held-out members, at noise of one layer standard deviation, in its square.
Where the best step is the last one, more steps would have given more.
@scaling: train members|seed|best|error|ratio|components R|diffusion|novelty|repaired

## What limits the samples
- Not where sampling begins: `polish:kde30` starts from much poorer networks than
  `polish:diffusion`, and ends where that does, on Fashion-MNIST a point below (`fig4`).
- Not the repair: held-out members that are repaired lose less than a point (`novelty`).
- Members, on MNIST: the best step of its denoiser is 4,000 of 5,000, and held-out members cost it
  more than train members at every noise (`denoiser`).
- Steps, on digits: from 1,200 members on the last step is the best (`scaling`), and in digits4k,
  with eight times as many, error and accuracy are far better than those of as many members there.
  Its best step is 7,750 of 8,000, of a learning rate that ends at zero. What more steps give in
  turn was not tried, nor a larger network.

## `probes`: what a linear map reads
Ridge regression on train members, judged on test members. By R², layer statistics predict best, and
latents say less than the aligned weights that they come from.
@summary: features|R²|τ

## `cost`: when sampling pays
Seconds of every stage, on this machine with whatever else it was doing; then after how many models
zoo and autoencoder are paid for. By then there are the trained members of the zoo as well.
@stages: stage|models|seconds|how|ms|of product
@payoff: population|epochs|test|pays

## What is no report
- The spread between seeds: train and evaluate `tab1` with `--config.seed=1` and so on, each in its
  folder, then `python benchmarks/seeds.py runs/digits runs/digits_1`. On digits, means of most
  populations move less between seeds than their models differ.
- Longer fine-tuning: `evaluate.py --experiments=tab1 '--config.evaluation.epochs=(0,1,5,25)'`,
  which replaces `tab1` in that report.
- Samplers that choose by validation images: `--samplers=subsample:joint30`.
- LWLN at several sizes, with and without the linear path: `python benchmarks/lwln.py`.
- Not run: SVHN and STL-10, whose images were not at hand; scales `full` and `paper`.

The paper's figures that the reports compare with are in `hyperjax/paper/tab1.py` to `tab4.py`.
"""


def number(text: str, column: str) -> str:
    """One decimal for percent and points, else three digits or so; words stay."""
    if not re.fullmatch(r"-?\d+\.\d+(e.*)?", text):
        return "" if text == "nan" else text
    size = abs(float(text))
    digits = 1 if re.search("%|points", column) or 10 <= size < 100 else 2 * (size < 10)
    return f"{float(text):z.{digits}f}"


def cell(row: dict[str, str], column: str) -> str:
    mean, std = (number(row.get(name) or "", column) for name in (column, f"{column} std"))
    return f"{mean} ± {std}" if std else mean


def grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows_of(folder: Path, pattern: str, info: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Rows of a report's file, or files, with the workdir in front."""
    own, targets = folder.parent.name, re.findall(r"--targets=(\S+)", info["run"]["command"])
    target = Path(re.split("[,:]", targets[0])[0]).stem if targets else own
    for path in sorted(folder.glob(f"{pattern}.csv")):
        name = f"{own} on {target}" if folder.name == "tab4" else own
        if "*" in pattern:
            name = f"{own} to {path.stem.removeprefix(pattern[:-1])}"
        with open(path, newline="") as file:
            yield from ({"run": name} | row for row in csv.DictReader(file))


def table(line: str, folders: dict[Path, dict[str, Any]]) -> str:
    """What stands for a line "@file: columns where ..."; nothing, if no report has it."""
    pattern, wanted, where = re.fullmatch(r"@(\S+): (.*?)(?: where (.*))?\n", line).groups()
    rows = [row for folder, info in folders.items() for row in rows_of(folder, pattern, info)]
    titles = dict.fromkeys(title for row in rows for title in row if not title.endswith(" std"))
    _, first, *others = (t for t in titles or ("", "") if re.match(f"run$|{wanted}|$", t))
    if where == "nonzero":
        rows = [row for row in rows if any(float(row[title] or 0) for title in others)]
    elif where:
        column, _, values = where.partition("=")
        rows = [row for row in rows if row[column] in values.split(",")]
    cells = [[row["run"], row[first], *(cell(row, title) for title in others)] for row in rows]
    return grid(["run", first, *(title.strip() for title in others)], cells) if rows else ""


def about(folder: Path) -> dict[str, Any]:
    """What a section of a report was made with; empty if it is not there."""
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.exists() else {}


def shell(command: str) -> str:
    """A recorded command as it can be typed."""
    words = [f'"{word}"' if "(" in word else word for word in re.split(r" (?=--)", command)]
    words[0] = f"python {words[0]}" if words[0].endswith(".py") else words[0]
    return (" " if len(" ".join(words)) < 100 else " \\\n    ").join(words) + "\n"


def runs(results: list[Path], keys: list[str]) -> str:
    """The last training of each workdir, which makes everything in an empty folder; the evaluations
    that are reported; and on what they ran."""
    trained, evaluated, rows = [], [], []
    for result in results:
        trained.append(json.loads((result / "train.json").read_text())["command"])
        found = [info for key in keys if (info := about(result / key))]
        evaluated += [info["run"]["command"] for info in found]
        facts = max(found, key=lambda info: info["run"]["time"])["facts"]
        rows.append([result.name, *(facts.get(name, "") for name in FACTS)])
    commands = "".join(map(shell, dict.fromkeys(trained + evaluated)))
    return f"```sh\n{commands}```\n" + grid(["run", *FACTS], rows)


def section(key: str, text: str, results: list[Path]) -> str:
    """A section of the page, with its tables and what they are made from."""
    there = {result / key: info for result in results if (info := about(result / key))}
    lacking = [result.name for result in results if result / key not in there]
    if not there:  # conclusions without numbers would have nothing to stand on
        print(f"{key:8} lacks all")
        return f"None of these runs has it. {SMALL}\n"
    text = re.sub(r"^@.*\n", lambda line: table(line[0], there), text, flags=re.M)
    files = sorted({name for info in there.values() for name in info["pictures"]})
    text += f"\nPictures in `report/{key}/`: {', '.join(files)}.\n" if files else "\n"
    for folder in there:
        if (folder.parent / f"{key}.svg").exists():
            text += f"\n![{key}, {folder.parent.name}](results/{folder.parent.name}/{key}.svg)\n"
    for folder, info in there.items():
        run, commit = info["run"], info["run"].get("commit") or "not known"
        text += f"{folder.parent.name}: made {run['time'][:10]}, commit {commit}.\n"
    print(f"{key:8} {'lacks ' + ', '.join(lacking) if lacking else 'complete'}")
    return text + (f"Not there yet: {', '.join(lacking)}.\n" if lacking else "")


def collect(workdir: Path, target: Path, patterns: dict[str, list[str]]) -> None:
    """Copy what the page needs of a workdir's report; sections that it lacks stay as they are."""
    entries = json.loads((workdir / "manifest.json").read_text())
    *_, trained = (e for e in entries if "train" in e["command"].split(" --")[0])
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "train.json", trained)
    for key, names in patterns.items():
        source, copy = workdir / "report" / key, target / key
        if not (info := about(source)):
            continue
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        pictures = sorted(p.name for p in source.iterdir() if p.suffix in (".svg", ".png"))
        write_json(copy / "run.json", info | {"pictures": pictures})
        for path in (path for name in names for path in source.glob(f"{name}.csv")):
            shutil.copyfile(path, copy / path.name)
    picture = workdir / "report" / "novelty" / "weights.svg"
    if picture.exists():
        shutil.copyfile(picture, target / "novelty.svg")


def write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="*", type=Path, help="whose reports are new")
    parser.add_argument("--out", default=Path(__file__).parent, type=Path, help="default: docs/")
    arguments = parser.parse_args()
    out, parts = arguments.out, PAGE.split("\n## ")
    patterns = {
        key[1]: re.findall(r"^@(\S+): ", part, flags=re.M)
        for part in parts
        if (key := re.match(r"`(\w+)`", part))
    }
    for workdir in arguments.workdirs:
        if not any(about(workdir / "report" / key) for key in patterns):
            sys.exit(f"{workdir}: there is no report; evaluate.py --workdir={workdir} makes one")
        collect(workdir, out / "results" / workdir.name, patterns)
    results = sorted(path.parent for path in out.glob("results/*/train.json"))
    if not results:
        sys.exit("there are no results; python docs/reproduce.py runs/digits copies those of a run")
    page = [parts[0].replace("@runs\n", runs(results, list(patterns)))]
    for part in parts[1:]:
        title, _, text = part.partition("\n")
        key = re.match(r"`(\w+)`", title)
        page.append(f"## {title}\n\n{section(key[1], text, results) if key else text}")
    (out / "reproduce.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
