/* weighted_l1(a VECTOR(8 n), b VECTOR(8 n)) RETURNS REAL WITH (role = 'metric'): the sum of absolute
   differences, in which the first half of the dimensions counts twice. Compile with SIMD. */
#include "tars_udf.h"
#include <wasm_simd128.h>

static v128_t differences(const float *a, const float *b, u32 count) {
  v128_t sum = wasm_f32x4_splat(0);
  for (u32 i = 0; i < count; i += 4)
    sum = wasm_f32x4_add(
        sum, wasm_f32x4_abs(wasm_f32x4_sub(wasm_v128_load(a + i), wasm_v128_load(b + i))));
  return sum;
}

TARS_FUNCTION(weighted_l1) {
  u32 dim = args[0].parameter, half = dim / 2;
  /* A search passes its query as one value for all rows: then the step is 0. */
  u32 step_a = args[0].flags & 2 ? 0 : dim, step_b = args[1].flags & 2 ? 0 : dim;
  const float *a = tars_data(&args[0]), *b = tars_data(&args[1]);
  float *out = tars_data(&args[2]);
  for (u32 row = 0; row < rows; row++, a += step_a, b += step_b) {
    v128_t heavy = differences(a, b, half), light = differences(a + half, b + half, half);
    v128_t sum = wasm_f32x4_add(wasm_f32x4_add(heavy, heavy), light);
    out[row] = wasm_f32x4_extract_lane(sum, 0) + wasm_f32x4_extract_lane(sum, 1) +
               wasm_f32x4_extract_lane(sum, 2) + wasm_f32x4_extract_lane(sum, 3);
  }
  return 0;
}
