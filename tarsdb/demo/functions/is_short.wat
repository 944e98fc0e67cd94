;; is_short(n BIGINT) RETURNS BOOLEAN: a bare scalar export, no memory and no ABI.
;; True for lengths from 1 to 80, what fits one line.
(module
  (func (export "is_short") (param $n i64) (result i32)
    (i32.and
      (i64.ge_s (local.get $n) (i64.const 1))
      (i64.le_s (local.get $n) (i64.const 80)))))
