// y_k = Re sum_n c_n x_{k,n} with x_k = a x_{k-1} + w u_k: one single-input, single-output system per channel.
//
// A SIMD group of 32 lanes runs one channel over one piece of time, EACH modes per lane, states in registers: u is read,
// y is written, and nothing else. CHUNKS pieces are composed as in diagonal_scan.
//
// u and y are (rows, L) with rows = batch * H; a, w and c (H, N); start and end (rows, N); resets (batch, L);
// sizes = (L, H, N).

const uint L = sizes[0], H = sizes[1], N = sizes[2];
const uint lane = thread_position_in_threadgroup.x, chunk = thread_position_in_threadgroup.y;
const uint row = threadgroup_position_in_grid.x, channel = row % H, batch = row / H;
const uint length = (L + CHUNKS - 1) / CHUNKS;
const uint first = min(chunk * length, L), last = min(first + length, L);

threadgroup float product_re[CHUNKS * EACH * 32], product_im[CHUNKS * EACH * 32];
threadgroup float piece_re[CHUNKS * EACH * 32], piece_im[CHUNKS * EACH * 32];

float a_r[EACH], a_i[EACH], w_r[EACH], w_i[EACH], c_r[EACH], c_i[EACH];
float x_r[EACH], x_i[EACH], p_r[EACH], p_i[EACH];
for (uint j = 0; j < EACH; ++j) {
  const uint n = j * 32 + lane;
  const bool real = n < N;  // the lanes past the last mode carry zeros
  const uint at = channel * N + min(n, N - 1);
  a_r[j] = real ? a_re[at] : 0.0f;
  a_i[j] = real ? a_im[at] : 0.0f;
  w_r[j] = real ? w_re[at] : 0.0f;
  w_i[j] = real ? w_im[at] : 0.0f;
  c_r[j] = real ? c_re[at] : 0.0f;
  c_i[j] = real ? c_im[at] : 0.0f;
  x_r[j] = x_i[j] = p_i[j] = 0;
  p_r[j] = 1;
}

#define PTD_STEP(k, j)                                                       \
  const float before_r = cut ? 0.0f : x_r[j], before_i = cut ? 0.0f : x_i[j]; \
  x_r[j] = a_r[j] * before_r - a_i[j] * before_i + w_r[j] * u_k;             \
  x_i[j] = a_r[j] * before_i + a_i[j] * before_r + w_i[j] * u_k;

for (uint k = first; k < last; ++k) {
  const bool cut = RESETS && resets[batch * L + k];
  const float u_k = u[row * L + k];
  for (uint j = 0; j < EACH; ++j) {
    PTD_STEP(k, j)
    const float grown = a_r[j] * p_r[j] - a_i[j] * p_i[j];
    p_i[j] = cut ? 0.0f : a_r[j] * p_i[j] + a_i[j] * p_r[j];
    p_r[j] = cut ? 0.0f : grown;
  }
}
for (uint j = 0; j < EACH; ++j) {
  const uint own = (chunk * EACH + j) * 32 + lane;
  product_re[own] = p_r[j];
  product_im[own] = p_i[j];
  piece_re[own] = x_r[j];
  piece_im[own] = x_i[j];
}
threadgroup_barrier(mem_flags::mem_threadgroup);

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
}

// Lane s keeps sample s of 32, so that y is written in one go.
for (uint block = first; block < last; block += 32) {
  float kept = 0;
  const uint count = min(last - block, uint(32));
  for (uint s = 0; s < count; ++s) {
    const uint k = block + s;
    const bool cut = RESETS && resets[batch * L + k];
    const float u_k = u[row * L + k];
    float part = 0;
    for (uint j = 0; j < EACH; ++j) {
      PTD_STEP(k, j)
      part += c_r[j] * x_r[j] - c_i[j] * x_i[j];
    }
    const float total = simd_sum(part);
    kept = lane == s ? total : kept;
  }
  if (lane < count) {
    y[row * L + block + lane] = kept;
  }
}
// The pieces after the end of time are empty and hold the final state too.
if (chunk == CHUNKS - 1) {
  for (uint j = 0; j < EACH; ++j) {
    const uint n = j * 32 + lane;
    if (n < N) {
      end_re[row * N + n] = x_r[j];
      end_im[row * N + n] = x_i[j];
    }
  }
}
#undef PTD_STEP
