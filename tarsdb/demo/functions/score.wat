;; score(distance REAL, length BIGINT) RETURNS DOUBLE: rerank a search result.
;; Similarity (1 - distance) damped for very short and very long texts:
;; (1 - d) * n / (n + 40) * 1 / (1 + n / 4000).
(module
  (func (export "score") (param $distance f32) (param $length i64) (result f64)
    (local $n f64)
    (local.set $n (f64.convert_i64_s (local.get $length)))
    (f64.div
      (f64.mul
        (f64.sub (f64.const 1) (f64.promote_f32 (local.get $distance)))
        (f64.div (local.get $n) (f64.add (local.get $n) (f64.const 40))))
      (f64.add (f64.const 1) (f64.div (local.get $n) (f64.const 4000))))))
