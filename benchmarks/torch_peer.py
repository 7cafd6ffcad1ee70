"""The same work in PyTorch: a process that the benchmarks start and time. Imports torch alone.

Reads a JSON request a line from standard input and answers it with a line on standard output:
{"work": "train", "net": "cnn", "form": "compile", "members": 1, "batch": 32, "images": 2048,
 "precision": "bfloat16"}
with {"seconds": ...}. The first request of a kind builds and compiles, and is not timed.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch_denoiser
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

POPULATION_FORMS = ("eager", "channels_last", "compile", "vmap", "vmap_compile")
RATE, DECAY = 3e-4, 1e-4


def make_net(name: str) -> nn.Sequential:
    """An architecture of hyperjax.models.architectures; pooling comes before the nonlinearity."""
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
            nn.Linear(64, 10),
        )  # fmt: skip
    if name == "cnn3":
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.Tanh(),
            nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.Tanh(),
            nn.Conv2d(32, 15, 3), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(),
            nn.Linear(60, 20), nn.Tanh(), nn.Linear(20, 10),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.Tanh(),
        nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), nn.Tanh(),
        nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 10),
    )  # fmt: skip


def data(name: str, images: int, channels_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images in float32, ready to be gathered: the best case."""
    x = torch.randn(images, *((3, 32, 32) if name == "cnn3" else (1, 28, 28)))
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    return x, torch.randint(0, 10, (images,))


def halved(precision: str) -> torch.autocast:
    """Within it products and convolutions have operands of bfloat16, if that is the precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def train_alone(
    name: str, form: str, batch: int, images: int, precision: str = "float32"
) -> Callable[[], None]:
    """One epoch of one model."""
    x, y = data(name, images, form == "channels_last")
    net = make_net(name)
    if form == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(net.parameters(), lr=RATE, weight_decay=DECAY, fused=True)

    def loss_fn(x, y):
        with halved(precision):
            return F.cross_entropy(net(x), y)

    if form == "compile":
        loss_fn = torch.compile(loss_fn, mode="max-autotune-no-cudagraphs")

    def epoch():
        order = torch.randperm(images)
        for index in order[: images // batch * batch].view(-1, batch):
            adam.zero_grad(set_to_none=True)
            loss_fn(x[index], y[index]).backward()
            adam.step()

    return epoch


def train_together(
    name: str, form: str, members: int, batch: int, images: int, precision: str = "float32"
) -> Callable[[], None]:
    """One epoch of a population through `torch.func`, Adam on the stacked weights."""
    nets = [make_net(name) for _ in range(members)]
    params, _ = stack_module_state(nets)
    params = {name: value.detach() for name, value in params.items()}
    first, second = ({k: torch.zeros_like(v) for k, v in params.items()} for _ in range(2))
    x, y = data(name, images)

    def loss_fn(params, x, y):
        with halved(precision):
            return F.cross_entropy(functional_call(nets[0], params, (x,)), y)

    gradient = vmap(grad_and_value(loss_fn))

    def step(x, y, count):
        grads, _ = gradient(params, x, y)
        for name, value in params.items():
            grad = grads[name] + DECAY * value
            first[name].lerp_(grad, 0.1)
            second[name].mul_(0.999).addcmul_(grad, grad, value=0.001)
            scale = (second[name] / (1 - 0.999**count)).sqrt_().add_(1e-8)
            value.addcdiv_(first[name] * (-RATE / (1 - 0.9**count)), scale)

    if form == "vmap_compile":
        step = torch.compile(step, dynamic=False)

    def epoch():
        order = torch.stack([torch.randperm(images) for _ in range(members)])
        for i in range(images // batch):
            index = order[:, i * batch : (i + 1) * batch]
            step(x[index], y[index], torch.tensor(i + 1.0))

    return epoch


def evaluate(
    name: str, form: str, members: int, batch: int, images: int, precision: str = "float32"
) -> Callable[[], None]:
    """Predictions of `members` models for all images."""
    nets = [make_net(name) for _ in range(members)]
    x, y = data(name, images, form == "channels_last")
    if form in ("vmap", "vmap_compile"):
        params, _ = stack_module_state(nets)
        predict = vmap(lambda p, x: functional_call(nets[0], p, (x,)), in_dims=(0, None))
        predict = torch.compile(predict, dynamic=False) if form == "vmap_compile" else predict

        def run():
            with torch.inference_mode(), halved(precision):
                for part, labels in zip(x.split(batch), y.split(batch), strict=True):
                    (predict(params, part).argmax(-1) == labels).sum(1)

        return run
    if form == "channels_last":
        nets = [net.to(memory_format=torch.channels_last) for net in nets]
    template = nets[0]
    call = torch.compile(template, mode="max-autotune-no-cudagraphs") if form == "compile" else None

    def run_one(net):
        if call is not None:  # one compilation; the others' weights are copied in
            template.load_state_dict(net.state_dict())
        for part, labels in zip(x.split(batch), y.split(batch), strict=True):
            ((call or net)(part).argmax(-1) == labels).sum()

    def run():
        with torch.inference_mode(), halved(precision):
            for net in nets:
                run_one(net)

    return run


# --- the autoencoder ----------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm transformer block, with PyTorch's fused attention."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp_in, self.mlp_out = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training)

    def forward(self, x):
        batch, tokens, dim = x.shape
        parts = self.qkv(self.norm_attention(x)).view(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, tokens, dim)))
        hidden = self.drop(F.relu(self.mlp_in(self.norm_mlp(x))))
        return x + self.drop(self.mlp_out(hidden))


class Autoencoder(nn.Module):
    """hyperjax/models/autoencoder.py without its linear path."""

    def __init__(self, c: dict, layers: list[list[int]]):
        super().__init__()
        self.c, self.layers = c, layers  # (neurons, values of a token) of each layer
        tokens, dim = sum(n for n, _ in layers), c["dim"]
        self.embed = nn.ModuleList(nn.Linear(size, dim) for _, size in layers)
        self.unembed = nn.ModuleList(nn.Linear(dim, size) for _, size in layers)
        extra = int(c["compression"] == "token")
        self.token = nn.Parameter(torch.randn(1, extra, dim))
        self.positions_in = nn.Parameter(torch.randn(1, tokens + extra, dim))
        self.positions_out = nn.Parameter(torch.randn(1, tokens, dim))
        sizes = (dim, c["heads"], c["mlp_dim"], c["dropout"])
        self.encoder = nn.Sequential(*(Block(*sizes) for _ in range(c["blocks"])))
        self.decoder = nn.Sequential(*(Block(*sizes) for _ in range(c["blocks"])))
        pooled = tokens * dim if c["compression"] == "linear" else dim
        self.bottleneck = nn.Linear(pooled, c["latent"])
        self.expand = nn.Linear(c["latent"], tokens * dim)
        width, head = c["latent"], []
        for _ in range(c["projection_layers"]):
            hidden = c["projection_hidden"]
            head += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()]
            width = hidden
        self.head = nn.Sequential(*head, nn.Linear(width, c["projection_dim"]))

    def forward(self, x):
        blocks = x.split([n * size for n, size in self.layers], -1)
        tokens = [
            embed(block.view(-1, n, size))
            for embed, block, (n, size) in zip(self.embed, blocks, self.layers, strict=True)
        ]
        h = torch.cat([self.token.expand(len(x), -1, -1), *tokens], 1) + self.positions_in
        h = self.encoder(h)
        pooled = h[:, 0] if self.c["compression"] == "token" else h.flatten(1)
        z = torch.tanh(self.bottleneck(pooled))
        h = self.expand(z).view(len(x), -1, self.c["dim"]) + self.positions_out
        parts = self.decoder(h).split([n for n, _ in self.layers], 1)
        out = [un(part).flatten(1) for un, part in zip(self.unembed, parts, strict=True)]
        return torch.cat(out, 1), self.head(z)


def corrupt(x, noise: float, erase: float):
    """Gaussian noise, and one erased block in a share `erase` of the rows; no Python loop."""
    if noise:
        x = x + noise * torch.randn_like(x)
    if erase:
        size = x.shape[1]
        length = (size * (0.02 + 0.31 * torch.rand(len(x), 1))).floor()
        start = (torch.rand(len(x), 1) * (size - length + 1)).floor()
        place = torch.arange(size)
        hit = (place >= start) & (place < start + length) & (torch.rand(len(x), 1) < erase)
        x = x.masked_fill(hit, 0.0)
    return x


def nt_xent(z, temperature: float):
    z = F.normalize(z)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    half = len(z) // 2
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(half))


def autoencoder(form: str, c: dict, layers: list[list[int]], steps: int) -> Callable[[], None]:
    """`steps` training steps: two views, reconstruction and contrast, AdamW, clipped gradient."""
    net = Autoencoder(c, layers).train()
    size = sum(n * width for n, width in layers)
    vectors, scale = torch.randn(700, size), torch.rand(size) + 0.5
    adam = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=1e-9, fused=True)

    def loss_fn(batch):
        clean = torch.cat([batch, batch])
        with halved(c["precision"]):
            outputs, projections = net(corrupt(clean, c["noise"], c["erase"]))
        outputs, projections = outputs.float(), projections.float()
        reconstruction = (((outputs - clean) / scale) ** 2).mean()
        return c["beta"] * reconstruction + (1 - c["beta"]) * nt_xent(projections, 0.1)

    if form == "compile":
        loss_fn = torch.compile(loss_fn)

    def run():
        for _ in range(steps):
            index = torch.randint(0, len(vectors), (c["batch_size"],))
            adam.zero_grad(set_to_none=True)
            loss_fn(vectors[index]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
            adam.step()

    return run


# --- the process ----------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def build(text: str) -> Callable[[], None]:
    request = json.loads(text)
    torch.manual_seed(0)
    torch._dynamo.reset()
    work, form = request["work"], request["form"]
    if work == "denoiser":
        return torch_denoiser.train(form, request)
    if work == "autoencoder":
        return autoencoder(form, request["config"], request["layers"], request["steps"])
    sizes = {"name": request["net"], "batch": request["batch"], "images": request["images"]}
    sizes["precision"] = request.get("precision", "float32")
    if work == "evaluate":
        return evaluate(form=form, members=request["members"], **sizes)
    if form in ("vmap", "vmap_compile"):
        return train_together(form=form, members=request["members"], **sizes)
    return train_alone(form=form, **sizes)


def main() -> None:
    cores = [int(core) for core in sys.argv[1].split(",")]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    known = ""
    for line in sys.stdin:
        run = build(line)
        if line != known:
            run()  # compiles and warms up
            run()
            known = line
        start = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
