"""Checkpoints as PyTorch writes them, and then damaged."""

import random
import re
import zipfile

import numpy as np
import pytest
import torch

from benchmarks import torch_twin
from dsl_jax import convert
from dsl_jax.convert import source

CFG = torch_twin.Config(11, 8, 1, 2, mask_id=10, cond_dim=6)


def checkpoint():
  """A training checkpoint of a tiny twin."""
  torch.manual_seed(0)
  model = torch_twin.MDLM(CFG)
  ema = torch_twin.EMA(model).state_dict()
  ema["shadow_params"] = [p + torch.rand_like(p) for p in ema["shadow_params"]]
  return {"epoch": 1, "state_dict": model.state_dict(), "ema": ema}


def shadow_mutations(i, bare):
  """Yields changes of the i-th average, and what the error must name."""
  yield lambda shadow: shadow.pop(i), "19 averaged weights for 20 parameters"
  yield lambda shadow: shadow.insert(i, shadow[i] + 1), "21 averaged weights"
  for change in (
    lambda array: array[None],
    lambda array: array.double(),
    lambda array: array.half(),
    lambda array: torch.full_like(array, torch.inf),
  ):
    yield lambda shadow, f=change: shadow.__setitem__(i, f(shadow[i])), bare
  yield lambda shadow: shadow.__setitem__(i, [1.0]), f"ema {i} is not a"
  yield lambda shadow: shadow.__setitem__(i, shadow[i - 1]), "share numbers"


def mutations():
  """Yields wrong checkpoints and what the error must name."""
  names = [name for name, _ in torch_twin.MDLM(CFG).named_parameters()]
  for i, name in enumerate(names):
    for change, named in shadow_mutations(i, name.removeprefix("backbone.")):
      content = checkpoint()
      change(content["ema"]["shadow_params"])
      yield content, named
    content = checkpoint()
    array = content["state_dict"].pop(name)
    yield content, name
    content["state_dict"][name] = array
    if name != names[-1]:
      yield content, "another order"
    content = checkpoint()
    content["state_dict"][name] = array.int()
    yield content, name.removeprefix("backbone.")
    if array.ndim == 2:  # square ones too: PyTorch keeps the strides
      content["state_dict"][name] = array.T
      yield content, name.removeprefix("backbone.")


def test_every_wrong_checkpoint_is_named(tmp_path):
  path, count = tmp_path / "last.ckpt", 0
  for content, named in mutations():
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
      convert.mdlm.load(path)
    assert re.fullmatch(r".*\.", str(caught.value))
    count += 1
  assert count > 200


@pytest.mark.parametrize(
  "content, named",
  [
    ({"state_dict": 1}, "no dict"),
    ({**checkpoint(), "ema": None}, "holds no list"),
    ({**checkpoint(), "ema": {"shadow_params": 1}}, "holds no list"),
    ({**checkpoint(), "ema": {"shadow_params": []}}, "use_ema=False"),
    (torch.ones(3), "no state dict"),
    (torch_twin.MDLM(CFG), "no state dict"),
  ],
)
def test_other_contents_are_refused(tmp_path, content, named):
  torch.save(content, tmp_path / "last.ckpt")
  with pytest.raises(ValueError, match=named):
    convert.mdlm.load(tmp_path / "last.ckpt")


def test_checkpoint_without_averages_gives_the_raw_weights(tmp_path):
  content = checkpoint()
  del content["ema"]
  torch.save(content, tmp_path / "last.ckpt")
  with pytest.raises(ValueError, match="use_ema=False"):
    convert.mdlm.load(tmp_path / "last.ckpt")
  params, _ = convert.mdlm.load(tmp_path / "last.ckpt", use_ema=False)
  want = content["state_dict"]["backbone.vocab_embed.embedding"].numpy()
  np.testing.assert_array_equal(params["embed"]["embedding"], want)


@pytest.mark.parametrize("new", [True, False])
def test_views_of_one_storage_are_read(tmp_path, new):
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
  options = {"_use_new_zipfile_serialization": new}
  torch.save(content, tmp_path / "views.ckpt", **options)
  torch.save(state, tmp_path / "plain.bin", **options)
  want = outcome(tmp_path / "plain.bin")
  assert want is not None
  assert outcome(tmp_path / "views.ckpt") == want


def test_a_negated_view_is_refused(tmp_path):
  """Its storage holds the opposite of its numbers."""
  state = checkpoint()["state_dict"]
  name = "backbone.blocks.0.mlp.0.weight"
  state[name] = torch._neg_view(state[name])
  torch.save(state, tmp_path / "negated.bin")
  with pytest.raises(ValueError, match=f"{name} is not a plain tensor"):
    convert.mdlm.load(tmp_path / "negated.bin")


def test_transposed_square_is_refused(tmp_path):
  content = checkpoint()
  name = "backbone.blocks.0.attn_out.weight"
  content["state_dict"][name] = content["state_dict"][name].T
  torch.save(content, tmp_path / "last.ckpt")
  with pytest.raises(ValueError, match=f"{name} is a square"):
    convert.mdlm.load(tmp_path / "last.ckpt", use_ema=False)


def test_damaged_streams_never_load_other_shapes(tmp_path):
  path, draw = tmp_path / "pytorch_model.bin", random.Random(0)
  state = checkpoint()["state_dict"]
  torch.save(state, path, _use_new_zipfile_serialization=False)
  whole, good = path.read_bytes(), outcome(path)
  weights = sum(t.numel() * 4 + 8 for t in state.values())
  head = len(whole) - weights
  assert good is not None
  for size in (1, 100, head, head + 9, len(whole) - 1):
    path.write_bytes(whole[:size])
    assert outcome(path) is None
  path.write_bytes(whole + b"x")
  assert outcome(path) is None
  for _ in range(150):
    damaged = bytearray(whole)
    damaged[draw.randrange(head)] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    assert outcome(path) in (None, good)


def outcome(path):
  """The weights as bytes, or None where they are refused."""
  try:
    found = source.open_mdlm(path, True, None, None)
    weights = found.tensors.items()
    return [source.read(path, *item).tobytes() for item in weights]
  except ValueError:
    return None


def test_damaged_bytes_never_load_other_weights(tmp_path):
  path = tmp_path / "last.ckpt"
  torch.save(checkpoint(), path)
  whole, draw = path.read_bytes(), random.Random(0)
  good, refused = outcome(path), 0
  for _ in range(150):
    damaged = bytearray(whole)
    if draw.random() < 0.3:
      del damaged[draw.randrange(len(whole)) :]
    else:
      damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)
    found = outcome(path)
    assert found in (None, good)
    refused += found is None
  assert refused > 75


def test_damaged_pickles_never_load_other_weights(tmp_path):
  """Bytes changed inside the pickle, under a valid checksum."""
  path, other = tmp_path / "last.ckpt", tmp_path / "other.ckpt"
  torch.save(checkpoint(), path)
  good, draw, refused = outcome(path), random.Random(0), 0
  with zipfile.ZipFile(path) as archive:
    records = {name: archive.read(name) for name in archive.namelist()}
  pickled = next(name for name in records if name.endswith("/data.pkl"))
  for _ in range(150):
    damaged = bytearray(records[pickled])
    damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    with zipfile.ZipFile(other, "w") as archive:
      for name, data in {**records, pickled: bytes(damaged)}.items():
        archive.writestr(name, data)
    found = outcome(other)
    assert found in (None, good)
    refused += found is None
  assert refused > 30
