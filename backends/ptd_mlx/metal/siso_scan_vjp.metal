// The gradients of siso_scan. With g the gradient that reaches x_k from later steps (g_end after the last one):
//
//   l = g + conj(c) gy_k,   gu_k = Re(conj(w) l),   gw += u_k l,   gc += gy_k conj(x_k),   ga += conj(x_{k-1}) l,
//   g = conj(a) l           (zero, and nothing for ga, across a reset)
//
// States are not stored: each piece of time is run forward once more, which leaves the states at the edges of blocks of
// 32 samples, and then block by block from right to left with the states of one block in thread memory.
//
// Axes as in siso_scan; edge is (rows, blocks, N) scratch; ga, gw and gc are (rows, CHUNKS, N), to be summed.

const uint L = sizes[0], H = sizes[1], N = sizes[2];
const uint lane = thread_position_in_threadgroup.x, chunk = thread_position_in_threadgroup.y;
const uint row = threadgroup_position_in_grid.x, channel = row % H, batch = row / H;
const uint blocks = (L + 31) / 32, share = (blocks + CHUNKS - 1) / CHUNKS;
const uint first = min(chunk * share, blocks), last = min(first + share, blocks);

threadgroup float product_re[CHUNKS * EACH * 32], product_im[CHUNKS * EACH * 32];
threadgroup float piece_re[CHUNKS * EACH * 32], piece_im[CHUNKS * EACH * 32];
threadgroup float back_re[CHUNKS * EACH * 32], back_im[CHUNKS * EACH * 32];

float a_r[EACH], a_i[EACH], w_r[EACH], w_i[EACH], c_r[EACH], c_i[EACH];
float x_r[EACH], x_i[EACH], p_r[EACH], p_i[EACH], g_r[EACH], g_i[EACH];
for (uint j = 0; j < EACH; ++j) {
  const uint n = j * 32 + lane;
  const bool real = n < N;
  const uint at = channel * N + min(n, N - 1);
  a_r[j] = real ? a_re[at] : 0.0f;
  a_i[j] = real ? a_im[at] : 0.0f;
  w_r[j] = real ? w_re[at] : 0.0f;
  w_i[j] = real ? w_im[at] : 0.0f;
  c_r[j] = real ? c_re[at] : 0.0f;
  c_i[j] = real ? c_im[at] : 0.0f;
  x_r[j] = x_i[j] = p_i[j] = g_r[j] = g_i[j] = 0;
  p_r[j] = 1;
}

#define PTD_FORWARD(j)                                                        \
  const float before_r = cut ? 0.0f : x_r[j], before_i = cut ? 0.0f : x_i[j]; \
  x_r[j] = a_r[j] * before_r - a_i[j] * before_i + w_r[j] * u_k;              \
  x_i[j] = a_r[j] * before_i + a_i[j] * before_r + w_i[j] * u_k;

#define PTD_BACKWARD(j)                                                     \
  const float l_r = g_r[j] + c_r[j] * gy_k, l_i = g_i[j] - c_i[j] * gy_k;   \
  g_r[j] = cut ? 0.0f : a_r[j] * l_r + a_i[j] * l_i;                        \
  g_i[j] = cut ? 0.0f : a_r[j] * l_i - a_i[j] * l_r;

// Every piece from zero, forward and backward, with the product of its coefficients.
const uint begin = min(first * 32, L), end = min(last * 32, L);
for (uint k = begin; k < end; ++k) {
  const bool cut = RESETS && resets[batch * L + k];
  const float u_k = u[row * L + k];
  for (uint j = 0; j < EACH; ++j) {
    PTD_FORWARD(j)
    const float grown = a_r[j] * p_r[j] - a_i[j] * p_i[j];
    p_i[j] = cut ? 0.0f : a_r[j] * p_i[j] + a_i[j] * p_r[j];
    p_r[j] = cut ? 0.0f : grown;
  }
}
for (uint k = end; k > begin; --k) {
  const bool cut = RESETS && resets[batch * L + k - 1];
  const float gy_k = gy[row * L + k - 1];
  for (uint j = 0; j < EACH; ++j) {
    PTD_BACKWARD(j)
  }
}
for (uint j = 0; j < EACH; ++j) {
  const uint own = (chunk * EACH + j) * 32 + lane;
  product_re[own] = p_r[j];
  product_im[own] = p_i[j];
  piece_re[own] = x_r[j];
  piece_im[own] = x_i[j];
  back_re[own] = g_r[j];
  back_im[own] = g_i[j];
}
threadgroup_barrier(mem_flags::mem_threadgroup);

// What truly enters this piece: the state from the left, the gradient from the right.
for (uint j = 0; j < EACH; ++j) {
  const uint n = j * 32 + lane;
  x_r[j] = n < N ? start_re[row * N + n] : 0.0f;
  x_i[j] = n < N ? start_im[row * N + n] : 0.0f;
  for (uint c = 0; c < chunk; ++c) {
    const uint at = (c * EACH + j) * 32 + lane;
    const float moved = product_re[at] * x_r[j] - product_im[at] * x_i[j] + piece_re[at];
    x_i[j] = product_re[at] * x_i[j] + product_im[at] * x_r[j] + piece_im[at];
    x_r[j] = moved;
  }
  g_r[j] = n < N ? gend_re[row * N + n] : 0.0f;
  g_i[j] = n < N ? gend_im[row * N + n] : 0.0f;
  for (uint c = CHUNKS - 1; c > chunk; --c) {
    const uint at = (c * EACH + j) * 32 + lane;
    const float moved = product_re[at] * g_r[j] + product_im[at] * g_i[j] + back_re[at];
    g_i[j] = product_re[at] * g_i[j] - product_im[at] * g_r[j] + back_im[at];
    g_r[j] = moved;
  }
}

for (uint block = first; block < last; ++block) {
  for (uint j = 0; j < EACH; ++j) {
    const uint n = j * 32 + lane;
    if (n < N) {
      edge_re[(row * blocks + block) * N + n] = x_r[j];
      edge_im[(row * blocks + block) * N + n] = x_i[j];
    }
  }
  for (uint k = block * 32; k < min(block * 32 + 32, L); ++k) {
    const bool cut = RESETS && resets[batch * L + k];
    const float u_k = u[row * L + k];
    for (uint j = 0; j < EACH; ++j) {
      PTD_FORWARD(j)
    }
  }
}

float ga_r[EACH], ga_i[EACH], gw_r[EACH], gw_i[EACH], gc_r[EACH], gc_i[EACH];
for (uint j = 0; j < EACH; ++j) {
  ga_r[j] = ga_i[j] = gw_r[j] = gw_i[j] = gc_r[j] = gc_i[j] = 0;
}
for (uint block = last; block > first; --block) {
  const uint left = (block - 1) * 32, count = min(L - left, uint(32));
  // states[s + 1] is x at left + s, states[0] the one before.
  float states_r[33][EACH], states_i[33][EACH];
  for (uint j = 0; j < EACH; ++j) {
    const uint n = j * 32 + lane;
    states_r[0][j] = x_r[j] = n < N ? edge_re[(row * blocks + block - 1) * N + n] : 0.0f;
    states_i[0][j] = x_i[j] = n < N ? edge_im[(row * blocks + block - 1) * N + n] : 0.0f;
  }
  for (uint s = 0; s < count; ++s) {
    const bool cut = RESETS && resets[batch * L + left + s];
    const float u_k = u[row * L + left + s];
    for (uint j = 0; j < EACH; ++j) {
      PTD_FORWARD(j)
      states_r[s + 1][j] = x_r[j];
      states_i[s + 1][j] = x_i[j];
    }
  }
  float kept = 0;
  for (uint s = count; s > 0; --s) {
    const uint k = left + s - 1;
    const bool cut = RESETS && resets[batch * L + k];
    const float u_k = u[row * L + k], gy_k = gy[row * L + k];
    float part = 0;
    for (uint j = 0; j < EACH; ++j) {
      PTD_BACKWARD(j)
      const float before_r = cut ? 0.0f : states_r[s - 1][j], before_i = cut ? 0.0f : states_i[s - 1][j];
      ga_r[j] += before_r * l_r + before_i * l_i;
      ga_i[j] += before_r * l_i - before_i * l_r;
      gw_r[j] += u_k * l_r;
      gw_i[j] += u_k * l_i;
      gc_r[j] += gy_k * states_r[s][j];
      gc_i[j] -= gy_k * states_i[s][j];
      part += w_r[j] * l_r + w_i[j] * l_i;
    }
    const float total = simd_sum(part);
    kept = lane == s - 1 ? total : kept;
  }
  if (lane < count) {
    gu[row * L + left + lane] = kept;
  }
}

for (uint j = 0; j < EACH; ++j) {
  const uint n = j * 32 + lane;
  if (n < N) {
    const uint at = (row * CHUNKS + chunk) * N + n;
    ga_re[at] = ga_r[j];
    ga_im[at] = ga_i[j];
    gw_re[at] = gw_r[j];
    gw_im[at] = gw_i[j];
    gc_re[at] = gc_r[j];
    gc_im[at] = gc_i[j];
    if (chunk == 0) {
      gstart_re[row * N + n] = g_r[j];
      gstart_im[row * N + n] = g_i[j];
    }
  }
}
#undef PTD_FORWARD
#undef PTD_BACKWARD
