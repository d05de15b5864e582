"""Converted weights against the PyTorch model they come from."""

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from benchmarks import torch_dsl, torch_twin
from dsl_jax import convert
from dsl_jax.convert import __main__ as command
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import build
from dsl_jax.runtime import config as config_lib

GPT2 = torch_twin.Config(41, 32, 3, 4, mask_id=40, cond_dim=16)
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
    ema = torch_twin.EMA(average)
    state = {
      name.replace("backbone.", "backbone._orig_mod."): tensor
      for name, tensor in raw.state_dict().items()
    }
    content = {"epoch": 3, "state_dict": state, "ema": ema.state_dict()}
    content |= {"hyper_parameters": {"config": Hyper()}, "optimizer_states": []}
    torch.save(content, path)
    return path
  if kind == "bin":
    torch.save(average.state_dict(), directory / "pytorch_model.bin")
  else:
    path = directory / "model.safetensors"
    safetensors.torch.save_file(average.state_dict(), path)
  cfg = raw.cfg
  (directory / "config.json").write_text(
    f'{{"vocab_size": {cfg.vocab_size}, "hidden_dim": {cfg.width}, "n_heads": '
    f'{cfg.heads}, "n_blocks": {cfg.depth}, "time_conditioning": false}}'
  )
  return directory


def old_ids(cfg):
  """MDLM's id of each of ours, the mask last."""
  ids = [i for i in range(cfg.vocab_size) if i != cfg.mask_id]
  return np.array([*ids, cfg.mask_id])


def logits_of(params, cfg, tokens):
  """The logits of the masked model inside a DSL model."""
  net = denoiser_lib.make_denoiser(cfg)
  h_BLM = jax.jit(net.hidden_tokens)(params, tokens)
  head_VM, bias_V = net.head(params)
  return np.asarray(h_BLM) @ np.asarray(head_VM).T + np.asarray(bias_V)


def assert_same_logits(params, cfg, twin):
  generator = np.random.default_rng(0)
  ours = generator.integers(0, cfg.vocab_size + 1, (3, 20))
  order = old_ids(twin.cfg)
  with torch.no_grad():
    want = twin(torch.from_numpy(order[ours])).numpy()[..., order[:-1]]
  got = logits_of(params, cfg, ours)
  assert np.abs(want).max() > 0.5
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
  "kind, twin_cfg",
  [("ckpt", GPT2), ("ckpt", TEXT8), ("bin", TEXT8), ("safetensors", GPT2)],
  ids=["ckpt-gpt2", "ckpt-text8", "bin-text8", "safetensors-gpt2"],
)
def test_logits_are_the_twins(tmp_path, kind, twin_cfg):
  raw, average = random_twin(twin_cfg, 1), random_twin(twin_cfg, 2)
  path = write(tmp_path, kind, raw, average)
  params, cfg = convert.mdlm.load(path, sphere_dim=8)
  assert cfg.vocab_size == twin_cfg.vocab_size - 1
  assert (cfg.depth, cfg.heads) == (twin_cfg.depth, twin_cfg.heads)
  assert_same_logits(params, cfg, average)
  if kind == "ckpt":
    params, cfg = convert.mdlm.load(path, use_ema=False)
    assert_same_logits(params, cfg, raw)


def test_tree_is_the_networks_and_endpoints_are_mdlms(tmp_path):
  path = write(tmp_path, "bin", random_twin(GPT2, 1), random_twin(GPT2, 2))
  params, cfg = convert.mdlm.load(path, sphere_dim=8, seed=3)
  net = denoiser_lib.make_denoiser(cfg)
  like = jax.eval_shape(net.init, jax.random.key(0))
  form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype.name), tree)
  assert form(params) == form(like)
  fresh, V = params["converter"], cfg.vocab_size
  np.testing.assert_allclose(np.linalg.norm(fresh["table"], axis=1), 1, 1e-6)
  assert np.abs(np.asarray(fresh["table"]).mean(0)).max() < 0.3
  assert fresh["beta"] == 1
  assert not fresh["bias"].any()
  np.testing.assert_allclose(fresh["mask_bias"], np.log(99 * (V + 1)), 1e-6)
  other, _ = convert.mdlm.load(path, sphere_dim=8, seed=4)
  assert not np.allclose(other["converter"]["table"], fresh["table"])
  # A tenth of the tokens hidden, the others at a very large SNR.
  generator = np.random.default_rng(0)
  tokens = generator.integers(0, cfg.vocab_size, (2, 20))
  hidden = generator.random(tokens.shape) < 0.1
  table_VD = np.asarray(net.table(params))
  z_BLD = np.where(hidden[..., None], 0, 1e3 * table_VD[tokens])
  params["converter"]["mask_bias"] += 20.0  # q_M = 1 at z = 0
  h_BLM = jax.jit(net.hidden)(params, z_BLD.astype(np.float32))
  hard = np.where(hidden, cfg.vocab_size, tokens)
  want = jax.jit(net.hidden_tokens)(params, hard)
  np.testing.assert_allclose(h_BLM, want, atol=1e-4)


@pytest.mark.parametrize("twin_cfg", [GPT2, TEXT8], ids=["gpt2", "text8"])
def test_round_trip_is_bitwise(tmp_path, twin_cfg):
  twin = random_twin(twin_cfg, 1)
  head = twin.backbone.output_layer.linear
  with torch.no_grad():  # what the loss of MDLM leaves there
    head.weight[twin_cfg.mask_id] = 0
    head.bias[twin_cfg.mask_id] = 0
  path = write(tmp_path, "safetensors", twin, twin)
  params, cfg = convert.mdlm.load(path, sphere_dim=8)
  convert.mdlm.save(params, tmp_path / "out", cfg=cfg)

  back = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
  shared = {k: v for k, v in back.items() if not k.startswith("dsl.converter.")}
  for name, tensor in twin.state_dict().items():
    if name.endswith("inv_freq"):  # computed anew, on any machine
      torch.testing.assert_close(shared.pop(name), tensor, rtol=3e-7, atol=0)
    else:
      assert torch.equal(shared.pop(name), tensor), name
  assert not shared
  torch_twin.MDLM(twin_cfg).load_state_dict(
    {k: v for k, v in back.items() if k.startswith("backbone.")}
  )
  again, cfg_again = convert.mdlm.load(tmp_path / "out")
  assert cfg_again == cfg
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
  "kind, dtype",
  [
    ("ckpt", torch.float16),
    ("ckpt", torch.bfloat16),
    ("safetensors", torch.bfloat16),
  ],
)
def test_half_precision_is_read_exactly(tmp_path, kind, dtype):
  twin = random_twin(TEXT8, 1).to(dtype)
  half, _ = convert.mdlm.load(write(tmp_path, kind, twin, twin))
  twin = twin.float()
  twin.backbone.rotary_emb = torch_twin.Rotary(12)
  full, _ = convert.mdlm.load(write(tmp_path, kind, twin, twin))
  jax.tree.map(np.testing.assert_array_equal, half, full)


def test_command_converts_and_exports(tmp_path, capsys):
  raw, average = random_twin(TEXT8, 1), random_twin(TEXT8, 2)
  path = write(tmp_path, "ckpt", raw, average)
  out, out2 = str(tmp_path / "dsl"), str(tmp_path / "again")
  assert command.main(["mdlm", str(path), "--out", out, "--sphere_dim=8"]) == 0
  first = capsys.readouterr().out
  assert command.main(["export", out, "--out", out2]) == 0
  second = capsys.readouterr().out
  line = next(x for x in first.splitlines() if x.startswith("fingerprint"))
  assert line in second
  params, cfg = convert.mdlm.load(out2)
  assert cfg.sphere_dim == 8
  assert str(convert.fingerprint.compute(params, cfg)) in line
  raw_params, raw_cfg = convert.mdlm.load(path, use_ema=False)
  assert str(convert.fingerprint.compute(raw_params, raw_cfg)) not in line
  assert "backbone" in (tmp_path / "again" / "README.md").read_text()

  assert command.main(["mdlm", str(tmp_path / "no"), "--out", out]) == 2
  assert capsys.readouterr().err.count("\n") == 1


def test_the_twin_with_a_converter_is_our_network(tmp_path):
  twin = random_twin(GPT2, 1)
  params, cfg = convert.mdlm.load(write(tmp_path, "bin", twin, twin))
  torch.manual_seed(0)
  whole = torch_dsl.DSL(GPT2, cfg.sphere_dim)
  with torch.no_grad():
    whole.bias.add_(torch.randn(whole.bias.shape))
    whole.beta.add_(0.3)
  whole.backbone = twin.backbone
  *bias, mask_bias = whole.bias.detach().numpy()
  table, beta = whole.table.detach().numpy(), whole.beta.detach().numpy()
  params["converter"] = {
    "table": table,
    "beta": beta,
    "bias": np.array(bias),
    "mask_bias": mask_bias,
  }
  net = denoiser_lib.make_denoiser(cfg)
  z = 4 * np.random.default_rng(0).standard_normal((2, 9, cfg.sphere_dim))
  z = z.astype(np.float32)
  head_VM, bias_V = net.head(params)
  got = jax.jit(net.hidden)(params, z) @ head_VM.T + bias_V[None, None]
  want = whole(torch.from_numpy(z)).detach().numpy()[..., :-1]
  assert np.abs(want).max() > 0.5
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_twin_sees_the_snrs_of_our_law():
  cfg = config_lib.Config("toy", config_lib.NetConfig(7, 8, 1, 2, 4))
  tokens = torch.zeros(4000, 8, dtype=torch.int64)
  torch.manual_seed(0)
  theirs = torch_dsl.draw_snr(tokens, cfg.law, cfg.clean_snr).numpy()
  ours = build.law(cfg)(jax.random.key(0), tuple(tokens.shape))
  share = np.linspace(0.05, 0.95, 19)
  np.testing.assert_allclose(
    *(np.quantile(np.log(snr), share) for snr in (theirs, ours)), atol=0.2
  )


def test_twin_learns_and_samples():
  cfg = torch_twin.Config(6, 16, 1, 2, mask_id=5, cond_dim=8, dropout=0.0)
  torch.manual_seed(0)
  model, generator = torch_twin.MDLM(cfg), torch.Generator().manual_seed(0)
  optimizer = torch_twin.make_optimizer(model, 1e-2)
  ema = torch_twin.EMA(model)
  tokens = torch.arange(4).repeat(16)[:, None].repeat(1, 8)  # constant rows
  start = torch_twin.loss(model, tokens, generator).item()
  assert start == pytest.approx(np.log(5), rel=0.4)  # an even guess at first
  for _ in range(150):
    torch_twin.train_step(model, optimizer, ema, tokens, generator)
  model.eval()
  for eta in (0.0, 0.2):
    drawn = torch_twin.sample(model, 32, 8, 32, eta=eta, generator=generator)
    assert drawn.min() >= 0 and drawn.max() < 4
    assert (drawn == drawn.mode(1, keepdim=True)[0]).float().mean() > 0.9
