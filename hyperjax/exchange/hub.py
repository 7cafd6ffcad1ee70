"""Folders as model hubs have them: config.json, model.safetensors, and a README.md with a card.

    hj.save_pretrained(run.hyperreps["lwln"], "folder", datasets=["mnist"], license="mit")
    hyperrep = hj.from_pretrained("folder")             # or "user/repository" of a hub

`model.safetensors` is the file that HyperJAX itself reads and writes, and holds everything;
config.json says the same in words that other tools can read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import hyperjax
from hyperjax import weights
from hyperjax.config import to_dict
from hyperjax.diffusion import Denoiser
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep
from hyperjax.store import denoiser_file, hyperrep_file, zoo_file
from hyperjax.store.files import atomic_write, to_jsonable
from hyperjax.zoo import Zoo

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_KINDS = {HyperRep: "hyper-representation", Denoiser: "denoiser", Zoo: "zoo"}
_NEEDED = "to reach a hub, huggingface_hub is needed: pip install 'hyperjax[hub]'"
_USES = {
    "hyper-representation": "latents = hj.encode(found, networks)",
    "denoiser": "clean = hj.denoise(found, networks, 0.5)",
    "zoo": "networks = found.select(epoch=int(found.epochs[-1])).weights",
}


def save_pretrained(
    thing: HyperRep | Denoiser | Zoo,
    folder: str | Path,
    *,
    title: str = "",
    license: str = "",
    datasets: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    text: str = "",
) -> Path:
    """Write a hyper-representation, a denoiser, or a zoo or population as a folder of a hub.

    Args:
      folder: made if it is not there; files of these names are replaced.
      title: of the card; default: what it is.
      license: its identifier, as the hub has it ("mit"); "": none is stated.
      datasets: names of the images that the networks were trained on.
      metrics: figures for the card, by name.
      text: more words for the card, in Markdown.

    Returns the folder. Raises HyperJaxError for anything else, or if the system refuses.

    >>> hj.save_pretrained(zoo, "folder", datasets=["digits"]).name
    'folder'
    """
    kind = next((name for cls, name in _KINDS.items() if isinstance(thing, cls)), None)
    if kind is None:
        known = "HyperRep, Denoiser or Zoo"
        raise HyperJaxError(f"save_pretrained: got a {type(thing).__name__}; expected {known}")
    folder, info = Path(folder), {"metrics": dict(metrics or {}), "datasets": list(datasets)}
    if kind == "zoo":
        zoo_file.write(folder / MODEL, thing)
    else:
        store = hyperrep_file if kind == "hyper-representation" else denoiser_file
        store.write(folder / MODEL, thing, info)
    config = {
        "library_name": "hyperjax",
        "library_version": hyperjax.__version__,
        "model_type": kind,
        "architecture": json.loads(weights.to_json(thing.spec)),
        "config": thing.info if kind == "zoo" else to_dict(thing.config),
        "metrics": info["metrics"],
    }
    text_of = json.dumps(to_jsonable(config), indent=1, sort_keys=True)
    atomic_write(folder / CONFIG, f"{text_of}\n".encode())
    card = _card(
        kind, thing, title or f"{kind.capitalize()} of neural networks", license, info, text
    )
    atomic_write(folder / CARD, card.encode())
    return folder


def _card(kind: str, thing: Any, title: str, license: str, info: dict[str, Any], text: str) -> str:
    """A model card: front matter (JSON values are YAML), what it is, how it is used."""
    spec, matter = thing.spec, {"library_name": "hyperjax"}
    matter["tags"] = ["hyperjax", "weight-space-learning", kind]
    matter |= {"license": license} if license else {}
    matter |= {name: info[name] for name in ("datasets",) if info[name]}
    matter |= {"metrics": list(info["metrics"])} if info["metrics"] else {}
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in matter.items()), "---"]
    lines += ["", f"# {title}", ""]
    what = f"A {kind} of networks with {spec.num_params} weights, {spec.activation} activations: "
    lines.append(
        what + ", ".join(f"{x.name} {'x'.join(map(str, x.shape))}" for x in spec.layers) + "."
    )
    if kind == "zoo":
        lines.append(
            f"\n{len(thing.members)} members, snapshots of epochs "
            f"{', '.join(map(str, thing.epochs.tolist()))}."
        )
    lines += [f"\n{text}"] if text else []
    if info["metrics"]:
        lines += ["", "| metric | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4g} |" for name, value in info["metrics"].items()]
    lines += ["", "```python", "import hyperjax as hj", "", 'found = hj.from_pretrained("FOLDER")']
    return "\n".join([*lines, _USES[kind], "```", ""])


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> HyperRep | Denoiser | Zoo:
    """Read what `save_pretrained` has written: of a folder, or, if there is none of that name, of a
    repository "user/name" of the hub, which needs huggingface_hub and is downloaded.

    Raises HyperJaxError if it is not there, or no file of ours.

    >>> folder = hj.save_pretrained(zoo, "folder")
    >>> hj.from_pretrained(folder).weights.shape
    (4, 3, 2464)
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), revision=revision, token=token, cache_dir=cache_dir)
    path = folder / MODEL
    readers = {
        zoo_file.FORMAT: zoo_file.read,
        hyperrep_file.FORMAT: lambda path: hyperrep_file.read(path)[0],
        denoiser_file.FORMAT: lambda path: denoiser_file.read(path)[0],
    }
    form = _format(path)
    if form not in readers:
        raise HyperJaxError(f"{path}: no file of HyperJAX, but {form or 'of another library'}")
    return readers[form](path)


def _format(path: Path) -> str:
    if not path.is_file():
        raise HyperJaxError(f"{path}: there is no such file; expected a folder of save_pretrained")
    try:
        with safe_open(path, "numpy") as file:
            meta = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise HyperJaxError(f"{path}: no safetensors file: {error}") from error
    fields = meta.get("hyperjax", "{}")  # files with equal bytes have one field alone
    return meta.get("format") or json.loads(fields).get("format", "")


def _download(name: str, **settings: Any) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise HyperJaxError(f"{name}: no such folder; {_NEEDED}") from error
    try:
        files = [MODEL, CONFIG, CARD]
        return Path(snapshot_download(name, allow_patterns=files, **settings))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise HyperJaxError(f"{name}: no such folder, nor repository: {error}") from error


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload with HyperJAX",
    create_pr: bool = False,
) -> str:
    """Upload a folder of `save_pretrained` to "user/name" of the hub, made if it is not there.

    Needs huggingface_hub (an extra, `hub`) and a token. Returns the address of the commit.

    >>> hj.push_to_hub("folder", "me/zoo")  # doctest: +SKIP
    """
    if not (Path(folder) / MODEL).is_file():
        raise HyperJaxError(f"{folder}: nothing to upload; expected a folder of save_pretrained")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise HyperJaxError(_NEEDED) from error
    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, folder_path=folder, revision=revision,
        commit_message=commit_message, create_pr=create_pr,
        allow_patterns=[MODEL, CONFIG, CARD],
    )  # fmt: skip
    return str(done)
