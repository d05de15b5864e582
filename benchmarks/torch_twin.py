"""A masked diffusion language model (MDLM) in plain PyTorch.

The twin has the parameter names and order of the published model, its loss, its
moving average of the weights and its samplers, so that tests convert its
weights and benchmarks compare its speed. Masked Diffusion Language Models,
arXiv 2406.07524; remasking, ReMDM, arXiv 2503.00307.
"""

import dataclasses
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

_TIME_EPS = 1e-3  # keeps the diffusion time away from 0 and the mask from 1


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the network; `vocab_size` counts the mask."""

  vocab_size: int
  width: int
  depth: int
  heads: int
  mask_id: int
  cond_dim: int = 128
  dropout: float = 0.1


class Embedding(nn.Module):
  """A table of rows, with MDLM's parameter name."""

  def __init__(self, vocab_size, width):
    super().__init__()
    self.embedding = nn.Parameter(torch.empty(vocab_size, width))
    nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

  def forward(self, tokens):
    return F.embedding(tokens, self.embedding)


class SigmaMap(nn.Module):
  """Maps the noise level to the vector that conditions every block."""

  def __init__(self, cond_dim):
    super().__init__()
    self.mlp = nn.Sequential(
      nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
    )

  def forward(self, sigma):
    freq = torch.exp(
      -math.log(1e4) * torch.arange(128, device=sigma.device) / 128
    )
    angle = sigma[:, None].float() * freq
    return F.silu(self.mlp(torch.cat([angle.cos(), angle.sin()], -1)))


class Rotary(nn.Module):
  """Rotary position encoding over the two halves of a head."""

  def __init__(self, head_dim):
    super().__init__()
    power = torch.arange(0, head_dim, 2).float() / head_dim
    self.register_buffer("inv_freq", 1.0 / 10000**power)

  def forward(self, length):
    position = torch.arange(length, device=self.inv_freq.device).float()
    angle = torch.outer(position, self.inv_freq)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
  """Rotates [B, H, L, head_dim] by the angles of [L, head_dim / 2]."""
  x1, x2 = x.chunk(2, -1)
  return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


class Norm(nn.Module):
  """Layer norm in float32 with a scale and no shift."""

  def __init__(self, width):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(width))

  def forward(self, x):
    return F.layer_norm(x.float(), self.weight.shape, self.weight, eps=1e-5)


def _zero_linear(inputs, outputs):
  layer = nn.Linear(inputs, outputs)
  nn.init.zeros_(layer.weight)
  nn.init.zeros_(layer.bias)
  return layer


class Block(nn.Module):
  """A bidirectional transformer block with adaptive layer norm."""

  def __init__(self, cfg):
    super().__init__()
    width = cfg.width
    self.heads, self.dropout = cfg.heads, cfg.dropout
    self.norm1 = Norm(width)
    self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
    self.attn_out = nn.Linear(width, width, bias=False)
    self.norm2 = Norm(width)
    self.mlp = nn.Sequential(
      nn.Linear(width, 4 * width),
      nn.GELU(approximate="tanh"),
      nn.Linear(4 * width, width),
    )
    self.adaLN_modulation = _zero_linear(cfg.cond_dim, 6 * width)

  def forward(self, x, cond, cos, sin):
    modulation = self.adaLN_modulation(cond)[:, None].chunk(6, -1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
    y = self._attend(self.norm1(x) * (1 + scale_a) + shift_a, cos, sin)
    x = x + gate_a * F.dropout(y, self.dropout, self.training)
    y = self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)
    return x + gate_m * F.dropout(y, self.dropout, self.training)

  def _attend(self, x, cos, sin):
    qkv = self.attn_qkv(x).unflatten(-1, (3, self.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(
      rotate(q, cos, sin), rotate(k, cos, sin), v
    )
    return self.attn_out(y.transpose(1, 2).flatten(-2))


class FinalLayer(nn.Module):
  """The last modulated norm and the head."""

  def __init__(self, cfg):
    super().__init__()
    self.norm_final = Norm(cfg.width)
    self.linear = _zero_linear(cfg.width, cfg.vocab_size)
    self.adaLN_modulation = _zero_linear(cfg.cond_dim, 2 * cfg.width)

  def forward(self, x, cond):
    shift, scale = self.adaLN_modulation(cond)[:, None].chunk(2, -1)
    return self.linear(self.norm_final(x) * (1 + scale) + shift)


class Backbone(nn.Module):
  """The diffusion transformer; time-unconditional, so sigma is always 0."""

  def __init__(self, cfg):
    super().__init__()
    self.vocab_embed = Embedding(cfg.vocab_size, cfg.width)
    self.sigma_map = SigmaMap(cfg.cond_dim)
    self.rotary_emb = Rotary(cfg.width // cfg.heads)
    self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.depth)])
    self.output_layer = FinalLayer(cfg)

  def forward(self, tokens):
    return self.trunk(self.vocab_embed(tokens))

  def trunk(self, x):
    """Logits from input embeddings."""
    cond = self.sigma_map(torch.zeros(1, device=x.device))
    cos, sin = self.rotary_emb(x.shape[1])
    for block in self.blocks:
      x = block(x, cond, cos, sin)
    return self.output_layer(x, cond)


class MDLM(nn.Module):
  """The network with MDLM's prefix; returns raw logits [B, L, V]."""

  def __init__(self, cfg):
    super().__init__()
    self.cfg = cfg
    self.backbone = Backbone(cfg)

  def forward(self, tokens):
    return self.backbone(tokens)

  def log_probs(self, tokens):
    """Log-probabilities with the mask excluded, for hidden positions."""
    logits = self(tokens)
    logits[..., self.cfg.mask_id] = -torch.inf
    return logits.log_softmax(-1)


class EMA:
  """Exponential average of the parameters, as in MDLM's checkpoints."""

  def __init__(self, model, decay=0.9999):
    self.decay, self.num_updates = decay, 0
    self.params = [p for p in model.parameters() if p.requires_grad]
    self.shadow_params = [p.detach().clone() for p in self.params]

  @torch.no_grad()
  def update(self):
    self.num_updates += 1
    n = self.num_updates
    decay = min(self.decay, (1 + n) / (10 + n))
    torch._foreach_lerp_(self.shadow_params, self.params, 1 - decay)

  def state_dict(self):
    keys = ("decay", "num_updates", "shadow_params")
    return {key: getattr(self, key) for key in keys}


def loss(model, tokens, generator=None):
  """Weighted masked cross-entropy, a bound on the nats per token.

  The times are stratified over the batch; at time t a token is masked with
  probability (1 - eps) t and its cross-entropy weighs 1/t.
  """
  batch, mask_id = tokens.shape[0], model.cfg.mask_id
  device = tokens.device
  uniform_B = torch.rand(batch, generator=generator, device=device)
  time = (uniform_B + torch.arange(batch, device=device)) / batch
  time = ((1 - _TIME_EPS) * time + _TIME_EPS)[:, None]
  uniform_BL = torch.rand(tokens.shape, generator=generator, device=device)
  masked = uniform_BL < (1 - _TIME_EPS) * time
  logits = model(torch.where(masked, mask_id, tokens))
  logits[..., mask_id] = -torch.inf
  nats = F.cross_entropy(
    logits.flatten(0, 1), tokens.flatten(), reduction="none"
  )
  return (nats.view_as(tokens) * masked / time).mean()


def make_optimizer(model, learning_rate=3e-4):
  """AdamW with MDLM's settings."""
  return torch.optim.AdamW(
    model.parameters(),
    lr=learning_rate,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
  )


def train_step(model, optimizer, ema, tokens, generator=None, loss_fn=loss):
  """Updates model and average on one batch; returns the detached loss."""
  optimizer.zero_grad(set_to_none=True)
  value = loss_fn(model, tokens, generator)
  value.backward()
  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  optimizer.step()
  ema.update()
  return value.detach()


def _nucleus(probs, top_p):
  """Keeps the sorted prefix of mass at most top_p, and always the first."""
  values, order = probs.sort(-1, descending=True)
  keep = values.cumsum(-1) <= top_p
  keep[..., 0] = True
  kept = torch.zeros_like(probs).scatter(-1, order, values * keep)
  return kept / kept.sum(-1, keepdim=True)


def _gumbel_draw(probs, generator):
  """Draws from unnormalised probabilities with exponential noise."""
  noise = torch.empty_like(probs).exponential_(generator=generator)
  return (probs / noise).argmax(-1)


@torch.no_grad()
def sample(model, batch, length, steps, *, eta=0.0, top_p=1.0, generator=None):
  """Draws sequences by ancestral sampling with remasking (ReMDM-cap).

  At each step a visible token is masked with probability
  min(eta, (1 - alpha_s) / alpha_t); eta = 0 is MDLM's own sampler. All draws
  are made in float64.
  """
  mask_id = model.cfg.mask_id
  device = next(model.parameters()).device
  tokens = torch.full((batch, length), mask_id, device=device)
  grid = torch.linspace(1, 1e-5, steps + 1, dtype=torch.float64).tolist()
  for time, following in itertools.pairwise(grid):
    alpha, alpha_next = 1 - time, 1 - following
    sigma = min(eta, following / alpha) if alpha > 0 else eta
    reveal = (alpha_next - (1 - sigma) * alpha) / time
    masked = tokens == mask_id
    probs = model.log_probs(tokens).double().exp()
    if top_p < 1:
      probs = _nucleus(probs, top_p)
    probs = torch.where(
      masked[..., None],
      probs * reveal,
      F.one_hot(tokens, probs.shape[-1]) * (1 - sigma),
    )
    probs[..., mask_id] = torch.where(masked, 1 - reveal, sigma)
    tokens = _gumbel_draw(probs, generator)
  return torch.where(
    tokens == mask_id, model.log_probs(tokens).argmax(-1), tokens
  )
