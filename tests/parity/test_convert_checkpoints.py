"""Checkpoints as PyTorch writes them, and then damaged."""

import random
import re
import zipfile

import numpy as np
import pytest
import torch

from benchmarks import torch_twin
from dsl_jax import convert
from dsl_jax.convert import mdlm

CFG = torch_twin.Config(11, 8, 1, 2, mask_id=10, cond_dim=6)


def checkpoint():
  """A training checkpoint of a tiny twin."""
  torch.manual_seed(0)
  model = torch_twin.MDLM(CFG)
  ema = torch_twin.EMA(model).state_dict()
  ema["shadow_params"] = [p + torch.rand_like(p) for p in ema["shadow_params"]]
  return {"epoch": 1, "state_dict": model.state_dict(), "ema": ema}


class Node:
  """Pickles as the nodes of OmegaConf do."""

  def __init__(self, **state):
    self.__dict__ |= state


def omega(**values):
  nodes = {key: Node(_val=value, _parent=None) for key, value in values.items()}
  return Node(_content=nodes, _metadata=Node())


def others():
  """Yields hyper-parameters of other models and what the error must name."""
  yield {"parameterization": "sedd"}, "parameterization = 'sedd'"
  yield omega(time_conditioning=True), "time_conditioning = 'True'"
  yield omega(diffusion="uniform", T=0), "diffusion = 'uniform'"
  yield Node(algo=omega(name="duo")), "algo.name = 'duo'"


def mutations():
  """Yields wrong checkpoints and what the error must name."""
  names = [name for name, _ in torch_twin.MDLM(CFG).named_parameters()]
  for i, name in enumerate(names):
    bare, good = name.removeprefix("backbone."), checkpoint()
    shadow, state = good["ema"]["shadow_params"], good["state_dict"]
    average = shadow[i]
    for wrong, named in (
      ([], "19 averaged weights for 20 parameters"),
      ([average, average + 1], "21 averaged weights"),
      ([average[None]], bare),
      ([average.double()], bare),
      ([torch.full_like(average, torch.inf)], bare),
      ([[1.0]], f"ema {i} is not a"),
      ([shadow[i - 1]], "share numbers"),
    ):
      averages = shadow[:i] + wrong + shadow[i + 1 :]
      yield good | {"ema": {"shadow_params": averages}}, named
    yield good | {"state_dict": state | {name: state[name].int()}}, bare
    if average.ndim == 2:  # square ones, too
      yield good | {"state_dict": state | {name: state[name].t()}}, bare
    moved = {key: x for key, x in state.items() if key != name}
    yield good | {"state_dict": moved}, bare
    if name != names[-1]:
      yield good | {"state_dict": moved | {name: state[name]}}, "another order"


def test_every_wrong_checkpoint_is_named(tmp_path):
  path, cases = tmp_path / "last.ckpt", list(mutations())
  mdlm_s = omega(parameterization="subs", time_conditioning=False, T=0)
  torch.save(checkpoint() | {"hyper_parameters": {"config": mdlm_s}}, path)
  convert.mdlm.load(path)
  for config, named in others():
    content = checkpoint() | {"hyper_parameters": {"config": config}}
    cases.append((content, named))
  assert len(cases) > 150
  for content, named in cases:
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(named)):
      convert.mdlm.load(path)


@pytest.mark.parametrize(
  "content",
  [
    {"state_dict": 1},
    {**checkpoint(), "ema": None},
    {**checkpoint(), "ema": {"shadow_params": 1}},
    torch.ones(3),
    torch_twin.MDLM(CFG),
  ],
)
def test_other_contents_are_rejected(tmp_path, content):
  torch.save(content, tmp_path / "last.ckpt")
  with pytest.raises(ValueError, match=r"last.ckpt cannot be read \(.*\."):
    convert.mdlm.load(tmp_path / "last.ckpt")


def test_checkpoint_without_averages_gives_the_raw_weights(tmp_path):
  content = checkpoint()
  del content["ema"]
  torch.save(content, tmp_path / "last.ckpt")
  with pytest.raises(ValueError, match="use_ema=False, --raw"):
    convert.mdlm.load(tmp_path / "last.ckpt")
  params, _ = convert.mdlm.load(tmp_path / "last.ckpt", use_ema=False)
  expected = content["state_dict"]["backbone.vocab_embed.embedding"].numpy()
  np.testing.assert_array_equal(params["embed"]["embedding"], expected)


def weights(path):
  """The weights as bytes, or None where the file is rejected."""
  try:
    tensors = mdlm.open_mdlm(path).tensors.items()
    return [mdlm.read_finite(path, *item).tobytes() for item in tensors]
  except ValueError:
    return None


def test_views_of_one_storage_are_read(tmp_path):
  """Flat buffers, gaps, transposed views, and averages that are the weights."""
  state = checkpoint()["state_dict"]
  flat = torch.cat([t.flatten() for t in state.values()])
  parts = flat.split([t.numel() for t in state.values()])
  views = {k: p.view(t.shape) for (k, t), p in zip(state.items(), parts)}
  name = "backbone.blocks.0.attn_qkv.weight"
  views[name] = torch.stack([views[name].T, views[name].T])[1].T
  assert not views[name].is_contiguous()
  shadow = [t for k, t in views.items() if "inv_freq" not in k]
  content = {"state_dict": views, "ema": {"shadow_params": shadow}}
  torch.save(content, tmp_path / "views.ckpt")
  torch.save(state, tmp_path / "plain.bin")
  expected = weights(tmp_path / "plain.bin")
  assert expected is not None
  assert weights(tmp_path / "views.ckpt") == expected


def test_negated_views_are_rejected(tmp_path):
  state, name = checkpoint()["state_dict"], "backbone.blocks.0.mlp.0.weight"
  state[name] = torch._neg_view(state[name])
  torch.save(state, tmp_path / "view.bin")
  with pytest.raises(ValueError, match=f"{name} is not a plain tensor"):
    convert.mdlm.load(tmp_path / "view.bin")


def test_old_streams_are_rejected(tmp_path):
  path = tmp_path / "pytorch_model.bin"
  state = checkpoint()["state_dict"]
  torch.save(state, path, _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match=r"before PyTorch 1\.6"):
    convert.mdlm.load(path)


def test_a_checkpoint_in_a_folder_does_not_hide_its_config(tmp_path):
  torch.save(checkpoint(), tmp_path / "pytorch_model.bin")
  (tmp_path / "config.json").write_text('{"parameterization": "sedd"}')
  with pytest.raises(ValueError, match="with parameterization = 'sedd'"):
    convert.mdlm.load(tmp_path)


def damage_file(path, draw):
  """Changes a bit, or cuts the end off."""
  damaged = bytearray(path.read_bytes())
  if draw.random() < 0.3:
    del damaged[draw.randrange(len(damaged)) :]
  else:
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
  path.write_bytes(damaged)


def damage_pickle(path, draw):
  """Changes a byte of the pickle, under a valid checksum."""
  with zipfile.ZipFile(path) as archive:
    records = {name: archive.read(name) for name in archive.namelist()}
  (pickled,) = (name for name in records if name.endswith("/data.pkl"))
  damaged = bytearray(records[pickled])
  damaged[draw.randrange(len(damaged))] = draw.randrange(256)
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in {**records, pickled: bytes(damaged)}.items():
      archive.writestr(name, data)


@pytest.mark.parametrize("damage", [damage_file, damage_pickle])
def test_damage_never_loads_other_weights(tmp_path, damage):
  path, draw, rejected = tmp_path / "last.ckpt", random.Random(0), 0
  torch.save(checkpoint(), path)
  whole, good = path.read_bytes(), weights(path)
  assert good is not None
  for _ in range(150):
    path.write_bytes(whole)
    damage(path, draw)
    read = weights(path)
    assert read in (None, good)
    rejected += read is None
  assert rejected > 30
