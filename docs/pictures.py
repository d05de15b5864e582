"""Draws the pictures of docs/concepts: python -m docs.pictures.

All numbers are computed here, most with the exact denoiser of a law that can be
enumerated (tests/oracle.py). Panels stand below each other for narrow screens.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from dsl_jax import channel, laws, likelihood, paths, samplers, sphere
from tests import oracle

FOLDER = pathlib.Path(__file__).parent / "concepts" / "pictures"
COLOURS = ["#4051b5", "#d1495b", "#2a9d8f", "#e9a03b", "#6c757d"]
STYLE = {
  "axes.prop_cycle": plt.cycler(color=COLOURS),
  "axes.spines.right": False,
  "axes.spines.top": False,
  "figure.constrained_layout.use": True,
  "font.size": 9,
  "legend.frameon": False,
  "savefig.dpi": 110,
}


def save(figure, name: str) -> None:
  figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})
  plt.close(figure)
  print(f"wrote {name}.png")


def draw_channel() -> None:
  """One token of five in the plane: z/t, and the posterior along the way."""
  angles = 2 * np.pi * np.arange(5) / 5 + 0.3
  table = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), "float32")
  snr = np.append(0, np.geomspace(0.05, 60, 240))
  z, states = jnp.zeros((1, 1, 2)), []
  for i, (t, following) in enumerate(itertools.pairwise(snr)):
    states.append(z[0, 0])
    z = channel.advance(
      jax.random.key(i + 5000),
      z,
      table[None, :1],
      t,
      following,
      clean_snr=100.0,
    )
  states = np.array([*states, z[0, 0]])
  posterior = jax.nn.softmax(states @ table.T, axis=-1)
  figure, (left, right) = plt.subplots(2, 1, figsize=(4.8, 5.8))
  left.add_patch(plt.Circle((0, 0), 1, fill=False, color="#bbbbbb"))
  shown = snr > 2
  estimate = states[shown] / snr[shown, None]
  left.plot(*estimate.T, color="#999999", lw=0.8)
  dots = left.scatter(*estimate.T, c=np.log10(snr[shown]), s=6, cmap="viridis")
  figure.colorbar(dots, ax=left, label="log10 SNR")
  for v, (x, y) in enumerate(np.asarray(table)):
    left.plot(x, y, "o", ms=9, color=COLOURS[v])
    left.annotate("abcde"[v], (1.16 * x, 1.16 * y), ha="center", va="center")
  left.set(aspect="equal", title="z / t approaches the token")
  left.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
  left.axis("off")
  for v in range(5):
    right.plot(snr[1:], posterior[1:, v], color=COLOURS[v], label="abcde"[v])
  right.set(xscale="log", xlabel="SNR t", ylabel="p(token | z)")
  right.set(title="the posterior becomes certain")
  right.legend(ncols=5, fontsize=8, handlelength=1, columnspacing=1)
  save(figure, "channel")


def draw_invariance() -> None:
  """Bayes' rule with an assumed SNR, for unit and for unequal norms."""
  angles = 2 * np.pi * np.arange(4) / 4 + 0.4
  unit = np.stack([np.cos(angles), np.sin(angles)], 1)
  z, snr = 3.0 * unit[0] + np.array([0.6, 1.1]), np.linspace(0, 8, 81)
  figure, axes = plt.subplots(2, 1, figsize=(4.8, 5.0), sharex=True)
  for axis, norms, title in (
    (axes[0], np.ones(4), "all norms 1"),
    (axes[1], np.array([1.0, 0.6, 1.2, 1.4]), "norms 1, 0.6, 1.2, 1.4"),
  ):
    table = unit * norms[:, None]
    log_p = table @ z - snr[:, None] / 2 * norms**2
    posterior = np.asarray(jax.nn.softmax(log_p, axis=-1))
    axis.plot(snr, posterior, lw=2)
    axis.set(ylabel="p(token | z, t), z fixed", title=title)
  axes[1].set(xlabel="SNR assumed in Bayes' rule")
  axes[1].legend("abcd", fontsize=8)
  save(figure, "invariance")


def draw_likelihood(law: oracle.Oracle) -> None:
  """The area under the mmse curve, and the path bound by number of steps."""
  common = {"denoiser": law.denoiser}
  grid = np.geomspace(0.02, 60, 60)
  tokens = law.sample(seed=1, batch=4096)
  key = jax.random.key(0)
  mmse = np.asarray(
    likelihood.mmse_curve(law.params, key, tokens, snr_grid=grid, **common)
  )
  figure, (left, right) = plt.subplots(2, 1, figsize=(4.8, 5.4))
  left.plot(grid, grid * 3 * mmse / 2, lw=2)
  left.fill_between(grid, grid * 3 * mmse / 2, alpha=0.2)
  left.set(xscale="log", xlabel="SNR t", ylabel="½ t Σ mmse(t), nats")
  left.set(title="the area (over log t) is -log p")
  curve = {"snr_grid": grid, "mmse_curve": mmse}
  counts = np.array([1, 2, 4, 8, 16, 32, 64])
  makers = {
    "geometric": lambda t: paths.geometric(t, 3, snr_min=0.5, snr_max=40.0),
    "equal information": lambda t: paths.information_uniform(t, 3, **curve),
    "masked": lambda t: paths.masked(jax.random.key(t), int(t), 4096, 3),
  }
  bound = jax.jit(
    lambda key, path: likelihood.path_nats(
      law.params, key, tokens, path, clean_snr=100.0, **common
    ).sum(1)
  )
  for name, maker in makers.items():
    nats = [float(bound(key, maker(int(t))).mean()) for t in counts]
    right.plot(counts, nats, "o-", ms=4, label=name)
  right.axhline(law.entropy, color="#999999", ls="--", label="entropy")
  right.set(xscale="log", xlabel="steps T", ylabel="bound, nats")
  right.set(
    xticks=counts, xticklabels=counts, title="the bound of a T-step path"
  )
  right.minorticks_off()
  right.legend(fontsize=8)
  save(figure, "likelihood")


def draw_paths() -> None:
  """Six samplers as pictures of their arrays."""
  length, steps = 24, 24
  key = jax.random.key(3)
  remask = {"kind": "loop", "eta": 0.12}
  arrays = {
    "continuous": paths.geometric(steps, length, snr_min=0.5, snr_max=40.0),
    "masked (MDLM)": paths.masked(key, steps, 1, length),
    "remasking (ReMDM)": paths.remask(key, steps, 1, length, **remask),
    "soft remasking": paths.remask(
      key, steps, 1, length, soft_snr=4.0, **remask
    ),
    "left to right": paths.left_to_right(length),
    "blocks, prompt of 4": paths.hold(
      paths.blocks(
        length,
        block=8,
        inner=paths.geometric(8, 8, snr_min=0.5, snr_max=40.0),
      ),
      np.arange(length) < 4,
    ),
  }
  figure, axes = plt.subplots(
    3, 2, figsize=(4.8, 6.4), sharex=True, sharey=True
  )
  for axis, (name, path) in zip(axes.flat, arrays.items()):
    path = np.asarray(path)
    rows = path[:, 0] if path.ndim == 3 else path
    level = np.log10(np.clip(np.where(np.isinf(rows), 100, rows), 0.3, 100))
    image = axis.imshow(level, aspect="auto", cmap="viridis", vmin=-0.5, vmax=2)
    axis.set_title(name, fontsize=9)
  for axis in axes[:, 0]:
    axis.set_ylabel("step (down)")
  for axis in axes[-1]:
    axis.set_xlabel("position")
  bar = figure.colorbar(image, ax=axes, ticks=[-0.5, 0, 1, 2], shrink=0.5)
  bar.ax.set_yticklabels(["mask", "1", "10", "inf"])
  bar.set_label("SNR")
  save(figure, "paths")


def draw_samplers(law: oracle.Oracle, batch: int = 8_000) -> None:
  """Distance between samples and the law, by number of network calls."""
  grid = np.geomspace(0.05, 15, 40)
  mmse = likelihood.mmse_curve(
    law.params,
    jax.random.key(0),
    law.sample(seed=1, batch=2048),
    denoiser=law.denoiser,
    snr_grid=grid,
  )
  curve = {"snr_grid": grid, "mmse_curve": np.asarray(mmse)}
  none = np.zeros((batch, 3), bool)
  names = {"masked": "mean", "geometric": "mean", "equal information": "mean"}
  names["equal information, Heun"] = "heun"
  figure, axis = plt.subplots(figsize=(4.8, 3.2))
  for name, integrator in names.items():
    distances, counts = [], [2, 4, 8, 16]
    for calls in counts:
      steps = calls // 2 + 1 if integrator == "heun" else calls
      if name == "masked":
        path = paths.masked(jax.random.key(calls), steps, batch, 3)
      elif name == "geometric":
        path = paths.geometric(steps, 3, snr_min=2.0, snr_max=12.0)
      else:
        path = paths.information_uniform(steps, 3, **curve)
      tokens = samplers.generate(
        law.params,
        jax.random.key(calls + 1),
        paths.hold(path, none),
        denoiser=law.denoiser,
        clean_snr=100.0,
        integrator=integrator,
      )
      distances.append(law.distance(tokens))
    axis.plot(counts, distances, "o-", ms=4, label=name)
  exact = np.mean([law.distance(law.sample(s, batch)) for s in range(4)])
  axis.axhline(exact, color="#999999", ls="--", label="exact samples")
  axis.set(xscale="log", yscale="log", xlabel="network calls (at most)")
  axis.set(ylabel="total variation to the law", xticks=counts)
  axis.set_xticklabels(counts)
  axis.minorticks_off()
  axis.legend(fontsize=8)
  save(figure, "samplers")


def draw_training_law() -> None:
  """What SNRs training draws, and where a token becomes readable."""
  snr = np.geomspace(0.03, 130, 80)
  figure, (left, right) = plt.subplots(2, 1, figsize=(4.8, 5.4))
  for name, law in (
    ("log-normal(1.4, 0.55)", laws.lognormal(1.4, 0.55)),
    ("endpoint, smoothed", laws.endpoint(100.0)),
  ):
    draws = np.asarray(law(jax.random.key(0), (20_000, 32))).reshape(-1)
    weights = np.full(draws.shape, 1 / len(draws))
    left.hist(draws, snr, weights=weights, alpha=0.55, label=name)
  left.set(xscale="log", xlabel="SNR t", ylabel="share of tokens")
  left.set(title="the law of training, text8")
  left.legend(fontsize=8, loc="upper left")
  snr = np.geomspace(0.3, 130, 28)
  for V, D in ((27, 16), (1024, 32), (50_257, 64)):
    rng = np.random.default_rng(V)
    table = np.asarray(sphere.unit_rows(rng.standard_normal((V, D), "float32")))
    tokens = rng.integers(0, V, 200)
    noise = rng.standard_normal((200, D), "float32")
    states = [t * table[tokens] + np.sqrt(t) * noise for t in snr]
    correct = [np.mean((z @ table.T).argmax(1) == tokens) for z in states]
    right.plot(snr, correct, label=f"V = {V:,}, D = {D}")
  right.set(xscale="log", xlabel="SNR t", ylabel="share read correctly")
  right.set(title="one token alone, random table")
  right.legend(fontsize=8)
  save(figure, "training_law")


if __name__ == "__main__":
  FOLDER.mkdir(exist_ok=True)
  small_law = oracle.make()
  with plt.rc_context(STYLE):
    draw_channel()
    draw_invariance()
    draw_likelihood(small_law)
    draw_paths()
    draw_samplers(oracle.make(5, 3, 5, seed=1, peak=2.5))
    draw_training_law()
