"""The weight denoiser's training step in PyTorch, for torch_peer.py. Imports torch alone.

    python benchmarks/torch_denoiser.py FILE

prints what the network and its gradient are for the parameters and inputs in a JSON file, for
`denoiser.py --check`.

The network is that of hyperjax/models/graph.py with hidden neurons' positions, its modules and
parameters named alike. It has three layouts:

    layers   one tensor of edges for each layer, as there
    joined   one tensor [B, edges, d]: norms and products are one call for all layers, and messages
             go by views of each layer
    gather   the same, with messages by index_select and index_add
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

FREQUENCIES = 8
UNKNOWN = -1.0
LAYOUTS = ("layers", "joined", "gather")


class Layer:
    """One layer of the networks: sizes, and the nodes that its edges join."""

    def __init__(self, name: str, neurons: int, inputs: int, block: int, first: int):
        self.name, self.neurons, self.inputs, self.block = name, neurons, inputs, block
        self.edges, self.num_weights = neurons * inputs, neurons * inputs * block
        self.ends, self.starts = slice(first, first + neurons), slice(first - inputs, first)


def layers_of(layers: list) -> list[Layer]:
    found, first = [], 1
    for name, neurons, inputs, block in layers:
        found.append(Layer(name, neurons, inputs, block, first))
        first += neurons
    return found


def indices(layers: list[Layer]) -> dict[str, torch.Tensor]:
    """Of every edge: its two nodes, and what its share is in the mean at either [edges, 1]."""
    ends, starts, of_end, of_start = [], [], [], []
    for layer in layers:
        nodes = torch.arange(layer.ends.start, layer.ends.stop)
        ends.append(nodes.repeat_interleave(layer.inputs))
        starts.append(torch.arange(layer.starts.start, layer.starts.stop).repeat(layer.neurons))
        of_end.append(torch.full((layer.edges, 1), 1 / layer.inputs))
        of_start.append(torch.full((layer.edges, 1), 1 / layer.neurons))
    names = ("ends_of_edges", "starts_of_edges", "share_of_end", "share_of_start")
    return dict(zip(names, map(torch.cat, (ends, starts, of_end, of_start)), strict=True))


def norm(size: int, bias: bool = False) -> nn.LayerNorm:
    return nn.LayerNorm(size, eps=1e-6, bias=bias)


def gelu(x):
    return F.gelu(x, approximate="tanh")


class Embed(nn.Module):
    def __init__(self, c: dict, layers: list[Layer]):
        super().__init__()
        self.c, self.layers = c, layers
        nodes = layers[-1].ends.stop
        self.positions = nn.Parameter(0.5 * torch.randn(nodes, c["node_dim"]))
        for layer in layers:
            setattr(self, f"edge_{layer.name}", nn.Linear(2 * layer.block, c["edge_dim"]))
            setattr(self, f"node_{layer.name}", nn.Linear(2, c["node_dim"]))
            position = 0.5 * torch.randn(layer.neurons, layer.inputs, c["edge_dim"])
            setattr(self, f"position_{layer.name}", nn.Parameter(position))

    def forward(self, vectors):
        """[B, 2, D] -> edges of each layer [B, neurons * inputs, d], and nodes."""
        batch = len(vectors)
        sizes = [size for layer in self.layers for size in (layer.num_weights, layer.neurons)]
        parts = vectors.split(sizes, -1)
        edges, nodes = [], [vectors.new_zeros(batch, 1, self.c["node_dim"])]
        for layer, kernel, bias in zip(self.layers, parts[::2], parts[1::2], strict=True):
            kernel = kernel.view(batch, 2, layer.edges, layer.block).transpose(1, 2).flatten(2)
            position = getattr(self, f"position_{layer.name}").flatten(0, 1)
            edges.append(getattr(self, f"edge_{layer.name}")(kernel) + position)
            nodes.append(getattr(self, f"node_{layer.name}")(bias.transpose(1, 2)))
        return edges, torch.cat(nodes, 1) + self.positions


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        batch, nodes, dim = x.shape
        q, k, v = self.qkv(x).view(batch, nodes, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, nodes, dim))


class Round(nn.Module):
    def __init__(self, c: dict, layers: list[Layer], layout: str):
        super().__init__()
        edge, hidden, node = c["edge_dim"], c["edge_hidden"], c["node_dim"]
        self.layers, self.layout = layers, layout
        for name, values in indices(layers).items():
            self.register_buffer(name, values, persistent=False)
        self.edge_condition = nn.Linear(c["condition_dim"], hidden)
        self.node_condition = nn.Linear(c["condition_dim"], c["node_hidden"])
        self.norm_ends, self.norm_attention, self.norm_mlp = norm(node), norm(node), norm(node)
        self.norm_edges = norm(edge)
        self.ends = nn.Linear(node, 2 * hidden, bias=False)
        self.edge_in = nn.Linear(edge, hidden, bias=False)
        self.edge_out = nn.Linear(hidden, edge, bias=False)
        self.messages = nn.Linear(2 * hidden, node)
        self.attention = Attention(node, c["heads"])
        self.node_in = nn.Linear(node, c["node_hidden"], bias=False)
        self.node_out = nn.Linear(c["node_hidden"], node)

    def spread(self, to, source):
        """Of each layer, sums of its two ends' features [B, neurons * inputs, h]."""
        return [
            (to[:, layer.ends, None] + source[:, None, layer.starts]).flatten(1, 2)
            for layer in self.layers
        ]

    def collect(self, hidden):
        """Means over each neuron's incoming and its outgoing edges [B, nodes, 2h]."""
        parts = zip(hidden, self.layers, strict=True)
        hidden = [x.unflatten(1, (layer.neurons, layer.inputs)) for x, layer in parts]
        incoming, outgoing = [x.mean(2) for x in hidden], [x.mean(1) for x in hidden]
        first, last = torch.zeros_like(outgoing[0]), torch.zeros_like(incoming[-1])
        return torch.cat([torch.cat([first, *incoming], 1), torch.cat([*outgoing, last], 1)], -1)

    def messages_by_layers(self, edges, to, source):
        parts = zip(edges, self.spread(to, source), strict=True)
        hidden = [gelu(self.edge_in(self.norm_edges(e)) + x) for e, x in parts]
        edges = [e + self.edge_out(h) for e, h in zip(edges, hidden, strict=True)]
        return edges, self.collect(hidden)

    def messages_joined(self, edges, to, source):
        sums = torch.cat(self.spread(to, source), 1)
        hidden = gelu(self.edge_in(self.norm_edges(edges)) + sums)
        parts = hidden.split([layer.edges for layer in self.layers], 1)
        return edges + self.edge_out(hidden), self.collect(parts)

    def messages_by_index(self, edges, to, source):
        ends, starts = self.ends_of_edges, self.starts_of_edges
        sums = to.index_select(1, ends) + source.index_select(1, starts)
        hidden = gelu(self.edge_in(self.norm_edges(edges)) + sums)
        to_end, to_start = hidden * self.share_of_end, hidden * self.share_of_start
        nothing = to_end.new_zeros(to.shape)
        incoming = nothing.index_add(1, ends, to_end)
        outgoing = nothing.index_add(1, starts, to_start)
        return edges + self.edge_out(hidden), torch.cat([incoming, outgoing], -1)

    def forward(self, edges, nodes, condition):
        shift = self.edge_condition(condition)[:, None]
        to, source = self.ends(self.norm_ends(nodes)).chunk(2, -1)
        messages = {
            "layers": self.messages_by_layers,
            "joined": self.messages_joined,
            "gather": self.messages_by_index,
        }[self.layout]
        edges, collected = messages(edges, to + shift, source)
        nodes = nodes + self.messages(collected)
        nodes = nodes + self.attention(self.norm_attention(nodes))
        h = self.node_in(self.norm_mlp(nodes)) + self.node_condition(condition)[:, None]
        return edges, nodes + self.node_out(gelu(h))


class Readout(nn.Module):
    def __init__(self, c: dict, layers: list[Layer]):
        super().__init__()
        self.layers = layers
        self.norm_edges, self.norm_nodes = norm(c["edge_dim"], True), norm(c["node_dim"], True)
        for layer in layers:
            setattr(self, f"edge_{layer.name}", nn.Linear(c["edge_dim"], layer.block))
            setattr(self, f"node_{layer.name}", nn.Linear(c["node_dim"], 1))

    def forward(self, edges, nodes):
        nodes = self.norm_nodes(nodes)
        if isinstance(edges, torch.Tensor):
            edges = self.norm_edges(edges).split([layer.edges for layer in self.layers], 1)
        else:
            edges = [self.norm_edges(e) for e in edges]
        parts = []
        for layer, e in zip(self.layers, edges, strict=True):
            parts.append(getattr(self, f"edge_{layer.name}")(e).flatten(1))
            parts.append(getattr(self, f"node_{layer.name}")(nodes[:, layer.ends]).flatten(1))
        return torch.cat(parts, 1)


class GraphDenoiser(nn.Module):
    def __init__(self, c: dict, layers: list, layout: str):
        super().__init__()
        self.layout, self.rounds, layers = layout, c["rounds"], layers_of(layers)
        self.register_buffer("rates", torch.linspace(0.5, 4, FREQUENCIES), persistent=False)
        self.condition = nn.Linear(3 + 4 * FREQUENCIES, c["condition_dim"])
        self.embed = Embed(c, layers)
        for i in range(self.rounds):
            setattr(self, f"round_{i}", Round(c, layers, layout))
        self.readout = Readout(c, layers)

    def known(self, log_sigma, quantile):
        """Embedding of the logarithms of noise levels, and of qualities, negative if unknown."""
        known, centred = (quantile >= 0).float()[:, None], 2 * quantile[:, None] - 1
        level, quality = log_sigma[:, None] * self.rates, centred * self.rates
        return torch.cat([
            log_sigma[:, None], level.sin(), level.cos(), known * quality.sin(),
            known * quality.cos(), known, known * centred,
        ], 1)  # fmt: skip

    def forward(self, vectors, log_sigma, quantile):
        condition = F.silu(self.condition(self.known(log_sigma, quantile)))
        edges, nodes = self.embed(vectors)
        edges = edges if self.layout == "layers" else torch.cat(edges, 1)
        for i in range(self.rounds):
            edges, nodes = getattr(self, f"round_{i}")(edges, nodes, condition)
        return self.readout(edges, nodes)


def loss_fn(net: nn.Module, clean, noisy, linear, sigma, quantile, bfloat16: bool = False):
    """Mean squared error of the network's output, in units of the targets' deviation."""
    scale = torch.rsqrt(1 + sigma**2)[:, None]
    target = (clean - linear) / (sigma[:, None] * scale)
    cast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
    with cast:
        output = net(torch.stack([noisy * scale, linear], 1), sigma.log(), quantile)
    return ((output.float() - target) ** 2).mean()


def train(form: str, request: dict) -> Callable[[], None]:
    """`steps` training steps of `part` examples at once: batch, noise, the Wiener denoiser's
    products, forward, backward, clipped gradient, AdamW, moving average."""
    c, steps, batch = request["config"], request["steps"], request["batch"]
    net = GraphDenoiser(c, request["layers"], request["layout"])
    size = sum(neurons * (inputs * block + 1) for _, neurons, inputs, block in request["layers"])
    members = torch.randn(request["folds"], request["members"], size)
    axes = torch.randn(request["folds"], size, size) / math.sqrt(size)
    mean, variances, rest = torch.zeros(size), torch.rand(size), 0.05
    quantiles = torch.rand(request["folds"], request["members"])
    low, high = math.log(c["sigma_min"]), math.log(c["sigma_max"])
    params = list(net.parameters())
    average = [p.detach().clone() for p in params]
    adam = torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2, fused=True)
    bfloat16 = c["dtype"] == "bfloat16"

    def loss_of(*batch):
        return loss_fn(net, *batch, bfloat16)

    if form == "compile":
        loss_of = torch.compile(loss_of, dynamic=False)

    def draw():
        fold = int(torch.randint(request["folds"], ()))
        rows = torch.randint(request["members"], (batch,))
        clean, sigma = members[fold, rows], torch.empty(batch).uniform_(low, high).exp_()
        noisy = clean + sigma[:, None] * torch.randn(batch, size)
        level, offset = sigma[:, None] ** 2, noisy - mean
        gain = rest / (rest + level)
        known = variances / (variances + level) - gain
        linear = mean + gain * offset + (offset @ axes[fold].T * known) @ axes[fold]
        quantile = quantiles[fold, rows].masked_fill(torch.rand(batch) < 0.2, UNKNOWN)
        return clean, noisy, linear, sigma, quantile

    def run():
        for _ in range(steps):
            with torch.no_grad():
                drawn = [x.split(request["part"]) for x in draw()]
            adam.zero_grad(set_to_none=True)
            for part in zip(*drawn, strict=True):
                (loss_of(*part) * (request["part"] / batch)).backward()
            nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            adam.step()
            torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)

    return run


def check(request: dict) -> dict[str, dict]:
    """Loss, output and gradient for given parameters and a given batch, of all layouts."""
    clean, noisy, linear, sigma, quantile = (torch.tensor(x) for x in request["batch"])
    params = {name: torch.tensor(x) for name, x in request["params"].items()}
    scale, found = torch.rsqrt(1 + sigma**2)[:, None], {}
    for layout in LAYOUTS:
        net = GraphDenoiser(request["config"], request["layers"], layout)
        net.load_state_dict(params)
        loss = loss_fn(net, clean, noisy, linear, sigma, quantile)
        loss.backward()
        output = net(torch.stack([noisy * scale, linear], 1), sigma.log(), quantile)
        grads = {name: p.grad.flatten().tolist() for name, p in net.named_parameters()}
        found[layout] = {"loss": loss.item(), "output": output.tolist(), "grads": grads}
    return found


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(json.dumps(check(json.load(file))))
