// The names of Metal that the kernels use, in CUDA.

typedef unsigned int uint;

#define threadgroup __shared__
#define threadgroup_barrier(scope) __syncthreads()
#define thread_position_in_threadgroup threadIdx
#define threadgroup_position_in_grid blockIdx

__device__ inline float simd_sum(float part) {
  for (int distance = 16; distance > 0; distance /= 2) {
    part += __shfl_xor_sync(0xffffffffu, part, distance);
  }
  return part;
}
