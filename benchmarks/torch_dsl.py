"""DSL in plain PyTorch: the MDLM twin with the converter in front.

It has the parameters of our network and the same training step, with all
scores of converter and head in memory (arXiv 2605.12836).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import torch_twin


class DSL(torch_twin.MDLM):
  """MDLM with input embeddings that are a mean over rows, weighted by z.

  The mask is the last id; its key is zero.
  """

  def __init__(self, cfg, sphere_dim):
    super().__init__(cfg)
    self.table = nn.Parameter(torch.randn(cfg.mask_id, sphere_dim))
    self.beta = nn.Parameter(torch.ones(()))
    bias = torch.zeros(cfg.vocab_size)
    bias[-1] = math.log(99 * cfg.vocab_size)
    self.bias = nn.Parameter(bias)

  def points(self):
    """Unit vectors of the tokens."""
    return F.normalize(self.table, dim=-1)

  def forward(self, z):
    keys = F.pad(self.points(), (0, 0, 0, 1))
    scores = self.beta * z @ keys.T + self.bias
    rows = scores.softmax(-1) @ self.backbone.vocab_embed.embedding
    return self.backbone.trunk(rows)


def draw_snr(tokens, law, clean_snr, generator=None):
  """Draws the SNR of every token: log-normal or random-order sequences.

  Args:
    tokens: ids, [B, L].
    law: `config.TrainingLaw`, smooth and one SNR per sequence.
    clean_snr: of a visible token.
    generator: of random numbers.

  Returns:
    SNRs, [B, L].
  """
  B, L = tokens.shape
  options = {"generator": generator, "device": tokens.device}

  def uniform(*shape):
    return torch.rand(shape, **options)

  normal = torch.randn((B, 1), **options)
  visible = uniform(B, L).argsort(-1) < torch.floor(uniform(B, 1) * L)
  clean = clean_snr * (0.8 + 0.2 * uniform(B, L))
  endpoint = torch.where(visible, clean, uniform(B, L))
  continuous = torch.exp(law.mu + law.sigma * normal)
  is_endpoint = uniform(B, 1) < law.endpoint_share
  return torch.where(is_endpoint, endpoint, continuous)


def make_loss(law, clean_snr):
  """Returns the loss of `torch_twin.train_step`: mean cross-entropy."""

  def loss(model, tokens, generator=None):
    snr = draw_snr(tokens, law, clean_snr, generator)[..., None]
    x = model.points()[tokens]
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    logits = model(snr * x + snr.sqrt() * noise)
    logits[..., model.cfg.mask_id] = -torch.inf
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

  return loss
