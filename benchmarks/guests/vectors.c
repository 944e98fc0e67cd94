/* Guests of `benchmarks.workloads.sandbox`, with SIMD: what the compiled loops cost, not the database.

   python -m ziglang cc -target wasm32-freestanding -mcpu=generic+simd128 -O2 -nostdlib \
     -Wl,--no-entry -Wl,--export=tars_abi_v1 -Wl,-z,stack-size=65536 -g0 \
     -I tarsdb/udf_sandbox/authoring -o benchmarks/guests/vectors.wasm benchmarks/guests/vectors.c */
#include "tars_udf.h"
#include <wasm_simd128.h>

static v128_t product(const float *a, const float *b, v128_t sum) {
  return wasm_f32x4_add(sum, wasm_f32x4_mul(wasm_v128_load(a), wasm_v128_load(b)));
}

/* dot(a VECTOR(16 n), b VECTOR(16 n)) RETURNS REAL, in four sums of four lanes */
TARS_FUNCTION(dot) {
  const float *a = tars_data(&args[0]), *b = tars_data(&args[1]);
  float *out = tars_data(&args[2]);
  u32 dim = args[0].parameter;
  for (u32 row = 0; row < rows; row++, a += dim, b += dim) {
    v128_t s0 = wasm_f32x4_splat(0), s1 = s0, s2 = s0, s3 = s0;
    for (u32 i = 0; i < dim; i += 16) {
      s0 = product(a + i, b + i, s0);
      s1 = product(a + i + 4, b + i + 4, s1);
      s2 = product(a + i + 8, b + i + 8, s2);
      s3 = product(a + i + 12, b + i + 12, s3);
    }
    v128_t s = wasm_f32x4_add(wasm_f32x4_add(s0, s1), wasm_f32x4_add(s2, s3));
    out[row] = wasm_f32x4_extract_lane(s, 0) + wasm_f32x4_extract_lane(s, 1) +
               wasm_f32x4_extract_lane(s, 2) + wasm_f32x4_extract_lane(s, 3);
  }
  return 0;
}
