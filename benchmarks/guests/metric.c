/* The metric of `benchmarks.workloads.sandbox`, with SIMD.

   python -m ziglang cc -target wasm32-freestanding -mcpu=generic+simd128 -O2 -nostdlib \
     -Wl,--no-entry -Wl,--export=tars_abi_v1 -Wl,-z,stack-size=65536 -g0 \
     -I tarsdb/udf_sandbox/authoring -o benchmarks/guests/metric.wasm benchmarks/guests/metric.c */
#include "tars_udf.h"
#include <wasm_simd128.h>

#define CONSTANT 2 /* of flags: one vector, which stands for all rows */

static v128_t squares(const float *a, const float *b, v128_t sum) {
  v128_t d = wasm_f32x4_sub(wasm_v128_load(a), wasm_v128_load(b));
  return wasm_f32x4_add(sum, wasm_f32x4_mul(d, d));
}

/* squared(a VECTOR(16 n), b VECTOR(16 n)) RETURNS REAL: squared Euclidean distance */
TARS_FUNCTION(squared) {
  const float *a = tars_data(&args[0]), *b = tars_data(&args[1]);
  float *out = tars_data(&args[2]);
  u32 dim = args[0].parameter;
  u32 next_a = args[0].flags & CONSTANT ? 0 : dim, next_b = args[1].flags & CONSTANT ? 0 : dim;
  for (u32 row = 0; row < rows; row++, a += next_a, b += next_b) {
    v128_t s0 = wasm_f32x4_splat(0), s1 = s0, s2 = s0, s3 = s0;
    for (u32 i = 0; i < dim; i += 16) {
      s0 = squares(a + i, b + i, s0);
      s1 = squares(a + i + 4, b + i + 4, s1);
      s2 = squares(a + i + 8, b + i + 8, s2);
      s3 = squares(a + i + 12, b + i + 12, s3);
    }
    v128_t s = wasm_f32x4_add(wasm_f32x4_add(s0, s1), wasm_f32x4_add(s2, s3));
    out[row] = wasm_f32x4_extract_lane(s, 0) + wasm_f32x4_extract_lane(s, 1) +
               wasm_f32x4_extract_lane(s, 2) + wasm_f32x4_extract_lane(s, 3);
  }
  return 0;
}
