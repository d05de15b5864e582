"""Converted weights against MDLM's forward pass, written out in float64.

Nothing is shared with the twin: the reference works on the state dict alone.
"""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from dsl_jax import convert
from dsl_jax.nets import denoiser as denoiser_lib

# rows, width, depth, heads, cond_dim, mask_id
GPT2 = (50258, 8, 2, 2, 6, 50257)
TEXT8 = (35, 24, 3, 3, 256, 4)


def random_state(sizes, seed, *, buffer=True):
  """A state dict in which every weight matters."""
  V, M, depth, heads, C, _ = sizes
  generator = torch.Generator().manual_seed(seed)
  draw = lambda *shape: (
    torch.randn(*shape, generator=generator)
    / math.sqrt(shape[-1] if len(shape) > 1 else 4)
  )
  state = {"vocab_embed.embedding": draw(V, M) * math.sqrt(M)}
  for i, width in ((0, 256), (2, C)):
    state[f"sigma_map.mlp.{i}.weight"] = draw(C, width)
    state[f"sigma_map.mlp.{i}.bias"] = draw(C)
  if buffer:
    power = torch.arange(0, M // heads, 2) / (M // heads)
    state["rotary_emb.inv_freq"] = 1 / 10000**power
  for i in range(depth):
    block = {
      "norm1.weight": 1 + draw(M),
      "attn_qkv.weight": draw(3 * M, M),
      "attn_out.weight": draw(M, M),
      "norm2.weight": 1 + draw(M),
      "mlp.0.weight": draw(4 * M, M),
      "mlp.0.bias": draw(4 * M),
      "mlp.2.weight": draw(M, 4 * M),
      "mlp.2.bias": draw(M),
      "adaLN_modulation.weight": draw(6 * M, C),
      "adaLN_modulation.bias": draw(6 * M),
    }
    state |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
  final = {
    "norm_final.weight": 1 + draw(M),
    "linear.weight": draw(V, M),
    "linear.bias": draw(V),
    "adaLN_modulation.weight": draw(2 * M, C),
    "adaLN_modulation.bias": draw(2 * M),
  }
  state |= {f"output_layer.{name}": tensor for name, tensor in final.items()}
  return {f"backbone.{name}": tensor for name, tensor in state.items()}


def reference(state, tokens, heads):
  """Logits [B, L, rows] in float64."""
  w = {k.removeprefix("backbone."): t.double() for k, t in state.items()}
  linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
  silu = lambda x: x / (1 + torch.exp(-x))

  def norm(x, name, shift, scale):
    x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)
    return x * w[name] * (1 + scale) + shift

  def rotate(x):
    half = x.shape[-1] // 2
    rate = 1e4 ** (-torch.arange(half).double() / half)
    angle = torch.arange(x.shape[1])[:, None, None] * rate
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], -1)

  x = w["vocab_embed.embedding"][tokens]
  B, L, M = x.shape
  sigma_0 = torch.cat([torch.ones(128), torch.zeros(128)]).double()
  cond = silu(
    linear(silu(linear(sigma_0, "sigma_map.mlp.0")), "sigma_map.mlp.2")
  )
  depth = sum(name.endswith("norm1.weight") for name in w)
  for i in range(depth):
    moves = linear(cond, f"blocks.{i}.adaLN_modulation").split(M)
    y = norm(x, f"blocks.{i}.norm1.weight", *moves[:2])
    qkv = (y @ w[f"blocks.{i}.attn_qkv.weight"].T).view(B, L, 3, heads, -1)
    q, k, v = rotate(qkv[:, :, 0]), rotate(qkv[:, :, 1]), qkv[:, :, 2]
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(M // heads)
    y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(B, L, M)
    x = x + moves[2] * (y @ w[f"blocks.{i}.attn_out.weight"].T)
    y = norm(x, f"blocks.{i}.norm2.weight", *moves[3:5])
    y = linear(y, f"blocks.{i}.mlp.0")
    y = y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
    x = x + moves[5] * linear(y, f"blocks.{i}.mlp.2")
  moves = linear(cond, "output_layer.adaLN_modulation").split(M)
  y = norm(x, "output_layer.norm_final.weight", *moves)
  return linear(y, "output_layer.linear")


def write(folder, kind, sizes, raw, average):
  """Writes the containers that weights come in; returns what to load."""
  V, M, depth, heads, C, _ = sizes
  if kind == "ckpt":
    state = {k.replace("bone.", "bone._orig_mod."): t for k, t in raw.items()}
    shadow = [t for k, t in average.items() if "inv_freq" not in k]
    ema = {"decay": 0.9999, "num_updates": 9, "shadow_params": shadow}
    torch.save({"state_dict": state, "ema": ema}, folder / "last.ckpt")
    return folder / "last.ckpt"
  if kind in ("archive", "stream"):
    path = folder / "pytorch_model.bin"
    torch.save(average, path, _use_new_zipfile_serialization=kind == "archive")
    return path
  safetensors.torch.save_file(average, folder / "model.safetensors")
  config = {"vocab_size": V, "hidden_dim": M, "n_blocks": depth}
  config |= {"n_heads": heads, "cond_dim": C, "time_conditioning": False}
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def assert_parity(params, cfg, state, sizes):
  rows, heads, mask_id = sizes[0], sizes[3], sizes[5]
  order = np.array([*(i for i in range(rows) if i != mask_id), mask_id])
  ours = np.random.default_rng(0).integers(0, rows, (2, 13))
  ours[0, :3] = rows - 1
  theirs = reference(state, torch.from_numpy(order[ours]), heads)
  want = theirs[..., order[:-1]].numpy()
  net = denoiser_lib.make_denoiser(cfg)
  h_BLM = np.asarray(jax.jit(net.hidden_tokens)(params, ours))
  head_VM, bias_V = (np.asarray(part) for part in net.head(params))
  np.testing.assert_allclose(
    h_BLM @ head_VM.T + bias_V, want, rtol=0, atol=2e-5
  )
  assert np.abs(want).max() > 1


@pytest.mark.parametrize(
  "kind, sizes, buffer",
  [
    ("ckpt", GPT2, True),
    ("ckpt", TEXT8, True),
    ("stream", TEXT8, True),
    ("archive", GPT2, True),
    ("folder", TEXT8, False),  # config.json tells the heads
  ],
)
def test_logits_are_mdlms(tmp_path, kind, sizes, buffer):
  raw, average = (random_state(sizes, n, buffer=buffer) for n in (1, 2))
  path = write(tmp_path, kind, sizes, raw, average)
  params, cfg = convert.mdlm.load(path, sphere_dim=4)
  assert_parity(params, cfg, average, sizes)
  if kind == "ckpt":
    params, cfg = convert.mdlm.load(path, use_ema=False, sphere_dim=4)
    assert_parity(params, cfg, raw, sizes)
