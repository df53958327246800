// x_k = a_k x_{k-1} + b_k along time, for one complex mode per thread, as (re, im) planes.
//
// A threadgroup takes MODES neighbouring modes (x: one coalesced read per time step) times CHUNKS pieces of time (y).
// Each piece is run from zero, the pieces are composed in threadgroup memory, and each is run again from its true start.
//
//   FIXED     a is (M,), else (rows, L, M)
//   REVERSE   time runs from right to left
//   ADJOINT   the coefficient is the conjugate of the one visited before, conj(a_{k-1}): the recurrence of gradients
//   RESETS    where resets (rows, L) is true, the state before that step counts as zero
//
// b and x are (rows, L, M); start (rows, M); sizes = (L, M).

const uint L = sizes[0], M = sizes[1];
const uint lane = thread_position_in_threadgroup.x, chunk = thread_position_in_threadgroup.y;
const uint groups = (M + MODES - 1) / MODES;
const uint row = threadgroup_position_in_grid.x / groups;
const uint m = (threadgroup_position_in_grid.x % groups) * MODES + lane;
const uint length = (L + CHUNKS - 1) / CHUNKS;
const uint first = min(chunk * length, L), last = min(first + length, L);
// Threads past the last mode repeat its work, so that all reach the barrier; they write nothing.
const uint mode = min(m, M - 1);
const uint rows = row * L;

threadgroup float product_re[CHUNKS * MODES], product_im[CHUNKS * MODES];
threadgroup float piece_re[CHUNKS * MODES], piece_im[CHUNKS * MODES];

float x_re = 0, x_im = 0, p_re = 1, p_im = 0;

#define PTD_STEP(s)                                                          \
  const uint k = REVERSE ? L - 1 - (s) : (s);                                \
  /* The first step of an adjoint run has no coefficient: nothing precedes. */ \
  const uint from = ADJOINT && (s) > 0 ? (REVERSE ? k + 1 : k - 1) : k;      \
  const bool cut = (RESETS && resets[rows + from]) || (ADJOINT && (s) == 0); \
  const uint at = FIXED ? mode : (rows + from) * M + mode;                   \
  const float a_r = cut ? 0.0f : a_re[at];                                   \
  const float a_i = cut ? 0.0f : (ADJOINT ? -a_im[at] : a_im[at]);           \
  const uint here = (rows + k) * M + mode;                                   \
  const float moved = a_r * x_re - a_i * x_im + b_re[here];                  \
  x_im = a_r * x_im + a_i * x_re + b_im[here];                               \
  x_re = moved;

for (uint s = first; s < last; ++s) {
  PTD_STEP(s)
  const float grown = a_r * p_re - a_i * p_im;
  p_im = a_r * p_im + a_i * p_re;
  p_re = grown;
}
const uint own = chunk * MODES + lane;
product_re[own] = p_re;
product_im[own] = p_im;
piece_re[own] = x_re;
piece_im[own] = x_im;
threadgroup_barrier(mem_flags::mem_threadgroup);

x_re = start_re[row * M + mode];
x_im = start_im[row * M + mode];
for (uint c = lane; c < own; c += MODES) {
  const float moved = product_re[c] * x_re - product_im[c] * x_im + piece_re[c];
  x_im = product_re[c] * x_im + product_im[c] * x_re + piece_im[c];
  x_re = moved;
}
for (uint s = first; s < last; ++s) {
  PTD_STEP(s)
  if (m < M) {
    out_re[here] = x_re;
    out_im[here] = x_im;
  }
}
#undef PTD_STEP
