"""The study scores the masked model inside as PyTorch would."""

import jax
import numpy as np
import torch

from benchmarks import torch_twin
from dsl_jax import convert, likelihood
from dsl_jax.nets import denoiser as denoiser_lib
from studies.small import model


def test_masked_score_is_the_twins(tmp_path):
  cfg = torch_twin.Config(35, 16, 1, 2, mask_id=4, cond_dim=6)
  torch.manual_seed(0)
  twin = torch_twin.MDLM(cfg).eval()
  with torch.no_grad():
    for p in twin.parameters():
      p.add_(0.3 * torch.randn_like(p))
  torch.save(twin.state_dict(), tmp_path / "pytorch_model.bin")
  params, net_cfg = convert.mdlm.load(tmp_path, sphere_dim=8)
  net = model.masked_only(denoiser_lib.make_denoiser(net_cfg))

  seen_z = []

  def hidden(params, z_BLD, *, key=None):
    jax.debug.callback(lambda z: seen_z.append(np.asarray(z)), z_BLD)
    return net.hidden(params, z_BLD)

  key, shape = jax.random.key(3), (4, 10)
  tokens_BL = np.random.default_rng(0).integers(0, 34, shape).astype(np.int32)
  nats_B, _ = likelihood.endpoint_nats(
    params,
    key,
    tokens_BL,
    denoiser=net._replace(hidden=hidden),
    clean_snr=100.0,
  )
  jax.effects_barrier()

  hidden_BL = (seen_z[0] == 0).all(-1)
  assert len(seen_z) == 1 and 0 < hidden_BL.mean() < 1
  theirs = tokens_BL + (tokens_BL >= cfg.mask_id)  # the mask's id is skipped
  seen = np.where(hidden_BL, cfg.mask_id, theirs)
  with torch.no_grad():
    log_probs = twin.log_probs(torch.from_numpy(seen)).numpy()
  nll_BL = -np.take_along_axis(log_probs, theirs[..., None], -1)[..., 0]
  want_B = shape[1] * (nll_BL * hidden_BL).sum(1) / hidden_BL.sum(1)
  np.testing.assert_allclose(nats_B, want_B, rtol=1e-5)
