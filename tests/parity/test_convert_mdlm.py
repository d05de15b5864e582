"""Converted weights against MDLM in PyTorch."""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from benchmarks import torch_dsl, torch_twin
from dsl_jax import convert
from dsl_jax.convert import __main__ as command
from dsl_jax.nets import denoiser as denoiser_lib

GPT2 = torch_twin.Config(50258, 8, 2, 2, mask_id=50257, cond_dim=6)
SMALL = torch_twin.Config(41, 32, 3, 4, mask_id=40, cond_dim=16)
TEXT8 = torch_twin.Config(35, 24, 2, 2, mask_id=4, cond_dim=12)

torch.set_num_threads(1)  # tiny products only wait for each other


class Hyper:
  """Stands for the configuration and tokenizer a checkpoint also pickles."""

  def __reduce__(self):
    return (pytest.fail, ("a name of the file was called",))


def random_twin(cfg, seed):
  """A twin in which every weight matters."""
  generator = torch.Generator().manual_seed(seed)
  model = torch_twin.MDLM(cfg).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.2 * torch.randn(p.shape, generator=generator))
  return model


def write(directory, kind, raw, average):
  """Writes a twin as the containers that MDLM's weights come in."""
  if kind == "ckpt":
    path = directory / "last.ckpt"
    state = {
      name.replace("backbone.", "backbone._orig_mod."): tensor
      for name, tensor in raw.state_dict().items()
    }
    content = {"epoch": 3, "state_dict": state, "optimizer_states": [{0: 1}]}
    content["ema"] = torch_twin.EMA(average).state_dict()
    content["hyper_parameters"] = {"config": Hyper()}
    torch.save(content, path)
    return path
  state, cfg = average.state_dict(), raw.cfg
  if kind == "bin":
    del state["backbone.rotary_emb.inv_freq"]  # config.json tells the heads
    torch.save(state, directory / "pytorch_model.bin")
  else:
    safetensors.torch.save_file(state, directory / "model.safetensors")
  config = {"vocab_size": cfg.vocab_size, "hidden_dim": cfg.width}
  config |= {"n_heads": cfg.heads, "n_blocks": cfg.depth}
  (directory / "config.json").write_text(json.dumps(config))
  return directory


def reference(state, tokens, heads):
  """MDLM's logits [B, L, rows] in float64; shares nothing with the twin."""
  w = {k.removeprefix("backbone."): t.double() for k, t in state.items()}

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  def silu(x):
    return x / (1 + torch.exp(-x))

  def norm(x, name, shift, scale):
    x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)
    return x * w[name] * (1 + scale) + shift

  def rotate(x):
    half = x.shape[-1] // 2
    rate = 1e4 ** (-torch.arange(half).double() / half)
    angle = torch.arange(x.shape[1])[:, None, None] * rate
    rotated = torch.complex(x[..., :half], x[..., half:])
    rotated = rotated * torch.exp(1j * angle)
    return torch.cat([rotated.real, rotated.imag], -1)

  x = w["vocab_embed.embedding"][tokens]
  B, L, M = x.shape
  cond = torch.cat([torch.ones(128), torch.zeros(128)]).double()  # sigma = 0
  cond = silu(linear(silu(linear(cond, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
  for i in range(sum(name.endswith("norm1.weight") for name in w)):
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


def assert_same_logits(params, cfg, twin):
  mask_id, rows = twin.cfg.mask_id, twin.cfg.vocab_size
  mdlm_ids = np.array([*(i for i in range(rows) if i != mask_id), mask_id])
  ours = np.random.default_rng(0).integers(0, rows, (3, 20))
  ours[0, :3] = rows - 1
  theirs = torch.from_numpy(mdlm_ids[ours])
  with torch.no_grad():
    expected = twin(theirs).numpy()[..., mdlm_ids[:-1]]
  exact = reference(twin.state_dict(), theirs, twin.cfg.heads)
  net = denoiser_lib.make_denoiser(cfg)
  h_BLM = jax.jit(net.hidden_tokens)(params, ours)
  head_VM, bias_V = net.head(params)
  logits = np.asarray(h_BLM) @ np.asarray(head_VM).T + np.asarray(bias_V)
  scale = np.abs(expected).max()
  assert scale > 0.5
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)
  exact = exact[..., mdlm_ids[:-1]].numpy()
  np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  "kind, twin_cfg",
  [("ckpt", SMALL), ("ckpt", TEXT8), ("bin", TEXT8), ("safetensors", GPT2)],
  ids=["ckpt-small", "ckpt-text8", "bin-text8", "safetensors-gpt2"],
)
def test_logits_are_mdlms(tmp_path, kind, twin_cfg):
  raw, average = random_twin(twin_cfg, 1), random_twin(twin_cfg, 2)
  path = write(tmp_path, kind, raw, average)
  params, cfg = convert.mdlm.load(path, sphere_dim=8)
  assert cfg.vocab_size == twin_cfg.vocab_size - 1
  assert (cfg.depth, cfg.heads) == (twin_cfg.depth, twin_cfg.heads)
  assert_same_logits(params, cfg, average)
  if kind == "ckpt":
    params, cfg = convert.mdlm.load(path, use_ema=False)
    assert_same_logits(params, cfg, raw)


def test_fresh_converter_at_the_endpoints_is_mdlm(tmp_path):
  path = write(tmp_path, "bin", random_twin(SMALL, 1), random_twin(SMALL, 2))
  params, cfg = convert.mdlm.load(path, sphere_dim=8, seed=3)
  net = denoiser_lib.make_denoiser(cfg)
  like = jax.eval_shape(net.init, jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
  fresh, V = params["converter"], cfg.vocab_size
  np.testing.assert_allclose(np.linalg.norm(fresh["table"], axis=1), 1, 1e-6)
  assert fresh["beta"] == 1 and not fresh["bias"].any()
  np.testing.assert_allclose(fresh["mask_bias"], np.log(99 * (V + 1)), 1e-6)
  other, _ = convert.mdlm.load(path, sphere_dim=8, seed=4)
  assert not np.allclose(other["converter"]["table"], fresh["table"])
  # A tenth of the tokens masked, the others at a very large SNR.
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (2, 20))
  masked = rng.random(tokens.shape) < 0.1
  table_VD = np.asarray(net.table(params))
  z_BLD = np.where(masked[..., None], 0, 1e3 * table_VD[tokens])
  params["converter"]["mask_bias"] += 20.0  # q_M = 1 at z = 0
  h_BLM = jax.jit(net.hidden)(params, z_BLD.astype(np.float32))
  expected = jax.jit(net.hidden_tokens)(params, np.where(masked, V, tokens))
  np.testing.assert_allclose(h_BLM, expected, atol=1e-4)


@pytest.mark.parametrize("twin_cfg", [SMALL, TEXT8], ids=["small", "text8"])
def test_round_trip_is_bitwise(tmp_path, capsys, twin_cfg):
  twin = random_twin(twin_cfg, 1)
  head = twin.backbone.output_layer.linear
  with torch.no_grad():  # what MDLM's training leaves there
    head.weight[twin_cfg.mask_id] = 0
    head.bias[twin_cfg.mask_id] = 0
  path = write(tmp_path, "ckpt", random_twin(twin_cfg, 2), twin)
  out, again = str(tmp_path / "dsl"), tmp_path / "again"
  options = ["--out", out, "--sphere_dim=8"]
  assert command.main(["mdlm", str(path), *options]) == 0
  shown = capsys.readouterr().out.splitlines()
  (line,) = (x for x in shown if x.startswith("fingerprint"))
  assert command.main(["export", out, "--out", str(again)]) == 0
  assert line in capsys.readouterr().out
  raw, raw_cfg = convert.mdlm.load(path, use_ema=False)
  assert str(convert.mdlm.fingerprint(raw, raw_cfg)) not in line

  back = safetensors.torch.load_file(again / "model.safetensors")
  mdlm = {name: x for name, x in back.items() if name.startswith("backbone.")}
  torch_twin.MDLM(twin_cfg).load_state_dict(mdlm)
  for name, tensor in twin.state_dict().items():
    if name.endswith("inv_freq"):  # computed again, on any machine
      torch.testing.assert_close(mdlm[name], tensor, rtol=3e-7, atol=0)
    else:
      assert torch.equal(mdlm[name], tensor), name
  params, cfg = convert.mdlm.load(out)
  params_again, cfg_again = convert.mdlm.load(again)
  assert cfg_again == cfg and cfg.sphere_dim == 8
  jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize(
  "kind, dtype",
  [("ckpt", torch.float16), ("bin", torch.bfloat16), ("st", torch.bfloat16)],
)
def test_half_precision_is_read_exactly(tmp_path, kind, dtype):
  twin = random_twin(TEXT8, 1).to(dtype)
  half, _ = convert.mdlm.load(write(tmp_path, kind, twin, twin))
  twin = twin.float()
  twin.backbone.rotary_emb = torch_twin.Rotary(12)
  full, _ = convert.mdlm.load(write(tmp_path, kind, twin, twin))
  jax.tree.map(np.testing.assert_array_equal, half, full)


def test_the_twin_with_a_converter_is_our_network(tmp_path):
  twin = random_twin(SMALL, 1)
  params, cfg = convert.mdlm.load(write(tmp_path, "bin", twin, twin))
  torch.manual_seed(0)
  whole = torch_dsl.DSL(SMALL, cfg.sphere_dim)
  with torch.no_grad():
    whole.bias.add_(torch.randn(whole.bias.shape))
    whole.beta.add_(0.3)
  whole.backbone = twin.backbone
  bias = whole.bias.detach().numpy()
  params["converter"] = {
    "table": whole.table.detach().numpy(),
    "beta": whole.beta.detach().numpy(),
    "bias": bias[:-1],
    "mask_bias": bias[-1],
  }
  net = denoiser_lib.make_denoiser(cfg)
  z = 4 * np.random.default_rng(0).standard_normal((2, 9, cfg.sphere_dim))
  z = z.astype(np.float32)
  head_VM, bias_V = net.head(params)
  logits = jax.jit(net.hidden)(params, z) @ head_VM.T + bias_V[None, None]
  expected = whole(torch.from_numpy(z)).detach().numpy()[..., :-1]
  scale = np.abs(expected).max()
  assert scale > 0.5
  np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-5 * scale)


def test_the_twin_learns_and_samples():
  cfg = torch_twin.Config(6, 16, 1, 2, mask_id=5, cond_dim=8, dropout=0.0)
  torch.manual_seed(0)
  model, generator = torch_twin.MDLM(cfg), torch.Generator().manual_seed(0)
  optimizer, ema = torch_twin.make_optimizer(model, 1e-2), torch_twin.EMA(model)
  tokens = torch.arange(4).repeat(16)[:, None].repeat(1, 8)  # constant rows
  for _ in range(150):
    torch_twin.train_step(model, optimizer, ema, tokens, generator)
  for eta in (0.0, 0.2):
    drawn = torch_twin.sample(
      model.eval(), 32, 8, 32, eta=eta, generator=generator
    )
    assert drawn.min() >= 0 and drawn.max() < 4
    assert (drawn == drawn.mode(1, keepdim=True)[0]).float().mean() > 0.9
