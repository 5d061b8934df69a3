r"""
A deep equilibrium transformer on text, in bfloat16, compiled
=============================================================

One transformer block, applied to its own output until nothing changes: a language model of unlimited depth with the
weights of one layer. Mixed precision and ``torch.compile`` work around the layer as around any other: the solve and its
backward are loops in the graph.
"""

import pydoc_data.topics
import time

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchimplicit as ti

torch.manual_seed(0)
length, width, heads = 32, 48, 4

# %%
# The text
# --------
# Python's own language reference, which comes with Python: half a million characters.

text = "\n".join(pydoc_data.topics.topics.values())
symbols = sorted(set(text))
codes = {symbol: i for i, symbol in enumerate(symbols)}
tokens = torch.tensor([codes[symbol] for symbol in text])
train, test = tokens[:-40_000], tokens[-40_000:]
share = tokens.bincount() / len(tokens)
by_frequency = -(share * share.log()).sum().item()
print(f"{len(tokens):,} characters, {len(symbols)} symbols; guessing by frequency alone costs {by_frequency:.2f} nats")


def draw(source, number):
    rows = torch.randint(len(source) - length - 1, (number, 1)) + torch.arange(length + 1)
    return source[rows][:, :-1], source[rows][:, 1:]


# %%
# The model
# ---------
# Each text of the batch is a system that converges on its own. In bfloat16 a tolerance of a per cent is what can be
# had.


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.before, self.between, self.after = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, z, embedded):
        q, k, v = self.qkv(self.before(z)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        heard = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = embedded + self.out(heard.transpose(1, 2).flatten(2))
        return self.after(mixed + self.mlp(self.between(mixed)))


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(symbols), width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.layer = ti.nn.FixedPoint(Block(), rtol=1e-2, max_steps=40, batch_ndim=1)
        self.head = nn.Linear(width, len(symbols))

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens) + self.position))


def loss_of(model, inputs, targets, dtype=torch.float32):
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1).to(dtype), targets.flatten())


def loss_in_bfloat16(model, inputs, targets):
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, inputs, targets)


# %%
# Compiled, and the same
# ----------------------
# ``.compile()`` of the block compiles what the solver calls again and again; derivatives are taken of the block as it
# is written. (The whole model can be one graph as well, ``torch.compile(model, fullgraph=True)``, in which the solve
# and its backward are loops. Its first call takes minutes.) The gradient is that of plain code, up to what bfloat16
# rounds.

model, plain = LanguageModel(), LanguageModel()
plain.load_state_dict(model.state_dict())
model.layer.cell.compile()
batch = draw(train, 16)


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, *batch), list(model.parameters()))])


start = time.perf_counter()
compiled = gradient(model, loss_in_bfloat16)
print(f"first call: {time.perf_counter() - start:.0f} s")
print(model.layer.last_info)
for name, loss in (("bfloat16", loss_in_bfloat16), ("float32", loss_of)):
    cosine = torch.cosine_similarity(compiled, gradient(plain, loss), dim=0)
    print(f"cosine of the gradient to that of plain code in {name}: {cosine:.5f}")
    assert cosine > 0.99

# %%
# And it is the derivative: in float64, by differences along a random direction of all weights of the block.

exact = LanguageModel().double()
exact.layer.options["rtol"] = 1e-10
parameters = list(exact.layer.parameters())
direction = [torch.randn_like(parameter) for parameter in parameters]


def moved(h):
    with torch.no_grad():
        for parameter, d in zip(parameters, direction):
            parameter += h * d
        loss = loss_of(exact, *batch, torch.float64)
        for parameter, d in zip(parameters, direction):
            parameter -= h * d
    return loss


found = torch.autograd.grad(loss_of(exact, *batch, torch.float64), parameters)
along = sum((g * d).sum() for g, d in zip(found, direction))
difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
print(f"along a direction {along:.6f}, by differences {difference:.6f}")
torch.testing.assert_close(along, difference, rtol=1e-4, atol=1e-7)

# %%
# Training
# --------

optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
losses, steps = [], []
for _ in range(60):
    optimizer.zero_grad()
    loss = loss_in_bfloat16(model, *draw(train, 16))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
    steps.append(model.layer.last_info.steps.float().mean().item())

plain.load_state_dict(model.state_dict())
with torch.no_grad():
    tested = loss_in_bfloat16(plain, *draw(test, 64)).item()
print(f"{tested:.2f} nats a character on text that it has not seen")
assert tested < by_frequency - 0.3

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(losses)
left.axhline(by_frequency, color="k", ls=":", label="frequencies alone")
left.axhline(tested, color="C3", ls="--", label="on unseen text, at the end")
left.set(xlabel="step", ylabel="nats a character", title="Training, compiled, in bfloat16")
left.legend()
right.plot(steps)
right.set(xlabel="step", ylabel="loops", title="Depth: mean steps of the solver")
plt.show()
