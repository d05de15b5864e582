"""What the values of a config may be, key by key."""

from collections.abc import Mapping

from dsl_jax.runtime import errors


def check(flat: Mapping[str, object]) -> None:
  """Checks values by their dotted keys.

  Args:
    flat: {"train.steps": 10, ...}, every key of a config.

  Raises:
    errors.UserError: names the key, its value and the mend.
  """
  for names, allowed, mend in _RULES:
    for name in names.split():
      if not allowed(flat[name]):
        raise errors.UserError(f"{name} is {flat[name]!r}; {mend}.")
  for name, value in flat.items():
    if type(value) is int and value >= 2**32:
      raise errors.UserError(f"{name} is {value}; use one below 2**32.")
  for name, words in _WORDS.items():
    if flat[name] not in words:
      raise errors.UserError(
        f"{name} is {flat[name]!r}" + errors.nearest(flat[name], words)
      )
  if flat["train.batch_size"] % flat["train.microbatches"]:
    raise errors.UserError(
      f"train.microbatches is {flat['train.microbatches']}; it must divide "
      f"train.batch_size, which is {flat['train.batch_size']}."
    )
  if flat["eval.snr_min"] >= flat["eval.snr_max"]:
    raise errors.UserError(
      f"eval.snr_min is {flat['eval.snr_min']}; it must be below "
      f"eval.snr_max, which is {flat['eval.snr_max']}."
    )


_HUGE = 1e30  # float32 holds it, and its inverse
_RULES = (
  (
    "train.steps train.batch_size train.microbatches train.steps_per_call "
    "train.log_every train.eval_batches train.profile_steps "
    "train.keep eval.batch_size eval.sequences eval.draws eval.samples "
    "sample.steps sample.num sample.batch_size sample.block",
    lambda v: v >= 1,
    "use at least 1",
  ),
  (
    "train.checkpoint_every",
    lambda v: v >= 2,
    "use at least 2, which saves every step",
  ),
  (
    "sample.num sample.batch_size eval.batch_size eval.sequences eval.draws "
    "eval.samples eval.snr_points",
    lambda v: v <= 10**7,
    "use at most 10,000,000",
  ),
  ("train.steps_per_call", lambda v: v <= 1000, "use at most 1,000"),
  (
    "data.length eval.snr_points",
    lambda v: v >= 2,
    "use at least 2",
  ),
  (
    "seed data.seed sample.seed mesh.rows train.profile_at "
    "optim.warmup_steps train.eval_every "
    "train.max_minutes optim.weight_decay sample.temperature "
    "sample.remasks sample.remask_snr",
    lambda v: 0 <= v < 2**32,
    "use 0 or more, below 2**32",
  ),
  (
    "clean_snr optim.learning_rate optim.eps optim.clip_norm "
    "optim.converter_lr_scale optim.beta_lr_scale eval.snr_min eval.snr_max "
    "sample.snr_min sample.snr_max",
    lambda v: 1 / _HUGE <= v <= _HUGE,
    "use a positive number that float32 holds",
  ),
  (
    "law.mu",
    lambda v: abs(v) <= 20,
    "use the logarithm of an SNR, -20 to 20",
  ),
  (
    "law.sigma",
    lambda v: 0 <= v <= 10,
    "use a deviation of log SNR, 0 to 10",
  ),
  (
    "optim.b1 optim.b2 optim.ema_decay",
    lambda v: 0 <= v < 1,
    "use a number in [0, 1)",
  ),
  (
    "law.endpoint_share sample.noise sample.eta sample.continuous_share "
    "sample.commit eval.suspicion",
    lambda v: 0 <= v <= 1,
    "use a number in [0, 1]",
  ),
  ("sample.top_p", lambda v: 0 < v <= 1, "use a probability in (0, 1]"),
  (
    "mesh.data mesh.fsdp mesh.model",
    lambda v: v == -1 or v >= 1,
    "use a number of devices, or -1 for what is left",
  ),
)
_WORDS = {
  "optim.mu_dtype": ("float32", "bfloat16"),
  "optim.schedule": ("constant", "cosine"),
  "sample.integrator": ("mean", "sample", "heun"),
}
