"""Exact categorical draws from softmax(<h, w_v> + b_v), in slabs of rows.

Gumbel noise for every token of a large vocabulary costs more than the scores
themselves. Two short draws do the same: first the group a token is in, by the
mass of the group, then the token within it. Both factors keep their relative
precision, so that tokens of any f32 probability appear at their rate. Groups
depend on the size of the vocabulary alone, and slabs are whole groups: the
first draw is a running maximum that keeps the scores of the leading group, and
comes out the same however many slabs there are.

For a nucleus a few tokens are drawn, and then the mass of what is more probable
than each is found. The first that the nucleus holds is the draw. If it holds
none, the next are drawn among the tokens more probable than all of them.

Axes here: N tokens, C candidates, R rows of a slab, G groups of S rows each.
"""

import math

import jax
import jax.numpy as jnp

from dsl_jax.core import streamed, truncate

CANDIDATES = 4  # at top_p = 0.9 none is in once in 10,000, by the usual rule


def kept(size: int, chunks: int) -> int:
  """Numbers kept for a token: scores of a slab, or what candidates need."""
  group, run = _groups(size, chunks)
  return max(run, 3 * CANDIDATES * group)  # noise, leading and new scores


def _groups(size, chunks):
  """Rows of a group, about as many as there are groups, and of a slab."""
  group = math.isqrt(size - 1) + 1
  return group, -(-size // (group * chunks)) * group


class Rows:
  """The rows of a vocabulary and their scores, by runs of whole groups.

  Attributes:
    size: V.
    group: rows of a group.
    groups: how many there are; the last may be shorter.
  """

  def __init__(self, h_NM, head_VM, bias_V, chunks):
    self._of, self.size = (h_NM, head_VM, bias_V), len(head_VM)
    self.group, self._run = _groups(self.size, chunks)
    self.groups = -(-self.size // self.group)
    # A single slab is computed once, however often it is gone over.
    self._all = None
    if self._run >= self.size:
      self._all = streamed.scores(h_NM, head_VM, bias_V)

  def over(self, step, carry):
    """Returns the carry that step(carry, first row, scores_NR) leaves."""
    if self._all is not None:
      return step(carry, 0, self._all)
    h, head, bias = self._of

    def one(carry, start, count):
      cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, count)
      return step(carry, start, streamed.scores(h, cut(head), cut(bias)))

    starts = jnp.arange(self.size // self._run, dtype=jnp.int32) * self._run
    each = lambda carry, start: (one(carry, start, self._run), None)
    carry, _ = streamed.scan(each, carry, starts)
    rest = self.size % self._run  # a run of its own: groups keep their rows
    return one(carry, self.size - rest, rest) if rest else carry


def tokens(
  key_N: jax.Array,
  rows: Rows,
  *,
  temperature: jax.Array | float,
  top_p: jax.Array | float,
  strict: bool,
) -> tuple[jax.Array, jax.Array]:
  """Draws tokens after temperature and nucleus truncation.

  Args:
    key_N: a typed random key for every token.
    rows: of the vocabulary.
    temperature: divides the scores; 0 takes the arg-max.
    top_p: nucleus mass in (0, 1], applied after the temperature.
    strict: the nucleus rule of `truncate.dropped`.

  Returns:
    tokens_N, int32, and logp_N, f32, nats, before temperature and truncation.
  """
  # Python numbers decide here, so that plain sampling takes one pass.
  if isinstance(top_p, (int, float)) and top_p >= 1:
    found_N1, score_N1, norm = _draw(key_N, rows, temperature, 1)
    return found_N1[:, 0], _logp(score_N1[:, 0], norm)

  def again(state):
    turn, done_N, token_N, logp_N, least_N = state
    key = jax.vmap(jax.random.fold_in, (0, None))(key_N, turn)
    found_NC, score_NC, norm = _draw(
      key, rows, temperature, CANDIDATES, least_N
    )
    out_NC = outside(
      rows,
      score_NC,
      norm[0],
      temperature=temperature,
      top_p=top_p,
      strict=strict,
    )
    first_N1 = jnp.argmin(out_NC, axis=-1)[:, None]
    pick = lambda x: jnp.take_along_axis(x, first_N1, axis=-1)[:, 0]
    token_N = jnp.where(done_N, token_N, pick(found_NC))
    logp_N = jnp.where(done_N, logp_N, _logp(pick(score_NC), norm))
    # Less probable tokens than one that is out are out.
    least_NC = jnp.where(out_NC, score_NC, least_N[:, None])
    done_N |= ~jnp.all(out_NC, axis=-1)
    return turn + 1, done_N, token_N, logp_N, jnp.max(least_NC, axis=-1)

  N = len(key_N)
  zero, never = jnp.zeros(N), jnp.full(N, truncate.NEVER)
  start = jnp.int32(0), zero > 0, zero.astype(jnp.int32), zero, never
  state = jax.lax.while_loop(lambda s: ~jnp.all(s[1]), again, start)
  return state[2], state[3]


def _draw(key_N, rows, temperature, count, least_N=None):
  """Draws `count` tokens for each position, of scores above least_N if given.

  Returns:
    tokens_NC; score_NC; and the largest score and the sum of
    exp(score - largest) of all tokens, [N].
  """
  keys_NC2 = jax.vmap(lambda key: jax.random.split(key, (count, 2)))(key_N)
  # The default mode draws its noise from 23 bits and loses tails of 1e-7.
  gumbel = lambda key: jax.random.gumbel(key, (rows.groups,), mode="high")
  noise_NCG = jax.vmap(jax.vmap(gumbel))(keys_NC2[..., 0])
  size = rows.group

  def step(carry, start, s_NR):
    before_N, total_N, lead_NC, at_NC, kept_NCS = carry
    top_N, total_N, *_ = streamed.grow(before_N, total_N, s_NR)
    if least_N is not None:
      s_NR = jnp.where(s_NR > least_N[:, None], s_NR, truncate.NEVER)
    padding = (0, 0), (0, -s_NR.shape[1] % size)
    s_NR = jnp.pad(s_NR, padding, constant_values=truncate.NEVER)
    s_NGS = s_NR.reshape(len(s_NR), -1, size)
    gap_NGS = truncate.temper(s_NGS - top_N[:, None, None], temperature)
    mass_NG = jnp.log(jnp.sum(jnp.exp(gap_NGS), axis=-1))
    noisy_NCG = mass_NG[:, None] + jax.lax.dynamic_slice_in_dim(
      noise_NCG, start // size, mass_NG.shape[1], axis=2
    )
    best_NC1 = jnp.argmax(noisy_NCG, axis=-1, keepdims=True)
    lead_NC += truncate.temper(before_N - top_N, temperature)[:, None]
    new_NC = jnp.max(noisy_NCG, axis=-1)
    won_NC = new_NC > lead_NC
    here_NC = start + size * best_NC1[..., 0].astype(jnp.int32)
    best_NCS = jnp.take_along_axis(s_NGS, best_NC1, axis=1)
    return (
      top_N,
      total_N,
      jnp.maximum(new_NC, lead_NC),
      jnp.where(won_NC, here_NC, at_NC),
      jnp.where(won_NC[..., None], best_NCS, kept_NCS),
    )

  N = len(key_N)
  zero_NC = jnp.zeros((N, count))
  start = (
    jnp.full(N, truncate.NEVER),
    jnp.zeros(N),
    zero_NC - jnp.inf,
    zero_NC.astype(jnp.int32),
    jnp.full((N, count, size), truncate.NEVER),
  )
  top_N, total_N, _, at_NC, kept_NCS = rows.over(step, start)
  gap_NCS = kept_NCS - jnp.max(kept_NCS, axis=-1, keepdims=True)
  pick = lambda key, x: jax.random.categorical(key, x, mode="high")
  within_NC = jax.vmap(jax.vmap(pick))(
    keys_NC2[..., 1], truncate.temper(gap_NCS, temperature)
  )
  score_NC = jnp.take_along_axis(kept_NCS, within_NC[..., None], axis=-1)
  found_NC = jnp.minimum(at_NC + within_NC.astype(jnp.int32), rows.size - 1)
  return found_NC, score_NC[..., 0], (top_N, total_N)


def outside(
  rows: Rows,
  score_NC: jax.Array,
  top_N: jax.Array,
  *,
  temperature: jax.Array | float,
  top_p: jax.Array | float,
  strict: bool,
) -> jax.Array:
  """Whether tokens lie outside the nucleus, out_NC, from their scores.

  The most probable never do, also where two passes round scores differently.

  Args:
    rows: of the vocabulary.
    score_NC: of the tokens.
    top_N: largest scores.
    temperature: divides the scores.
    top_p: nucleus mass in (0, 1].
    strict: the nucleus rule of `truncate.dropped`.
  """
  more = jnp.greater_equal if strict else jnp.greater

  def step(carry, _, s_NR):
    total_N, above_CN = carry
    p_NR = jnp.exp(truncate.temper(s_NR - top_N[:, None], temperature))
    over = lambda c_N: jnp.sum(
      jnp.where(more(s_NR, c_N[:, None]), p_NR, 0.0), axis=-1
    )
    above_CN += jax.lax.map(over, score_NC.T)  # one [N, R] array at a time
    return total_N + jnp.sum(p_NR, axis=-1), above_CN

  start = jnp.zeros(len(top_N)), jnp.zeros(score_NC.T.shape)
  total_N, above_CN = rows.over(step, start)
  above_NC = (above_CN / total_N[None]).T
  out_NC = truncate.dropped(above_NC, top_p, strict=strict)
  return out_NC & (score_NC < top_N[:, None])


def _logp(score_N, norm):
  top_N, total_N = norm
  return score_N - top_N - jnp.log(total_N)
