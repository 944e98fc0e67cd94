;; A small text module in the columnar ABI (docs/udf-abi.md):
;;   vowels(t TEXT) RETURNS INT            ASCII vowels
;;   lev(a TEXT, b TEXT) RETURNS INT       Levenshtein distance in bytes (two rows of Wagner-Fischer)
;;   shout(t TEXT) RETURNS TEXT            ASCII letters in upper case
;; A descriptor is 32 bytes: type 0, flags 4, data 8, data bytes 12, validity 16, offsets 20,
;; width 24, parameter 28. Arguments come first, the output last.
(module
  (memory (export "memory") 1)
  (global (export "tars_abi_v1") i32 (i32.const 1))
  (global $top (mut i32) (i32.const 1024))

  ;; Hand out memory from the bottom up; tars_reset takes everything back.
  (func $alloc (export "tars_alloc") (param $size i32) (result i32)
    (local $start i32) (local $end i64)
    (local.set $start (global.get $top))
    (local.set $end (i64.add (i64.extend_i32_u (local.get $start))
                             (i64.extend_i32_u (local.get $size))))
    (local.set $end (i64.and (i64.add (local.get $end) (i64.const 15)) (i64.const -16)))
    (if (i64.gt_u (local.get $end) (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)))
      (then
        (if (i32.eq
              (memory.grow
                (i32.wrap_i64
                  (i64.sub (i64.shr_u (i64.add (local.get $end) (i64.const 65535)) (i64.const 16))
                           (i64.extend_i32_u (memory.size)))))
              (i32.const -1))
          (then (return (i32.const 0))))))
    (global.set $top (i32.wrap_i64 (local.get $end)))
    (local.get $start))

  (func (export "tars_reset") (global.set $top (i32.const 1024)))

  ;; Address of the bytes of row $row of the column described at $desc, and their length.
  (func $text (param $desc i32) (param $row i32) (result i32 i32)
    (local $offsets i32) (local $from i32)
    (local.set $offsets (i32.add (i32.load offset=20 (local.get $desc))
                                 (i32.shl (local.get $row) (i32.const 2))))
    (local.set $from (i32.load (local.get $offsets)))
    (i32.add (i32.load offset=8 (local.get $desc)) (local.get $from))
    (i32.sub (i32.load offset=4 (local.get $offsets)) (local.get $from)))

  (func $is_vowel (param $c i32) (result i32)
    ;; a e i o u are bits 1 5 9 15 21 of the letter's number
    (local.set $c (i32.sub (i32.or (local.get $c) (i32.const 32)) (i32.const 96)))
    (i32.and
      (i32.lt_u (local.get $c) (i32.const 32))
      (i32.shr_u (i32.const 0x208222) (local.get $c))))

  (func (export "vowels") (param $desc i32) (param $rows i32) (result i32)
    (local $row i32) (local $at i32) (local $end i32) (local $count i32) (local $out i32)
    (local.set $out (i32.load offset=40 (local.get $desc)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
        (call $text (local.get $desc) (local.get $row))
        (local.set $end)
        (local.set $at)
        (local.set $end (i32.add (local.get $at) (local.get $end)))
        (local.set $count (i32.const 0))
        (block $text_end
          (loop $next_byte
            (br_if $text_end (i32.ge_u (local.get $at) (local.get $end)))
            (local.set $count
              (i32.add (local.get $count) (call $is_vowel (i32.load8_u (local.get $at)))))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br $next_byte)))
        (i32.store (i32.add (local.get $out) (i32.shl (local.get $row) (i32.const 2)))
                   (local.get $count))
        (local.set $row (i32.add (local.get $row) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  ;; One row of distances in $line, updated in place; 4 bytes a cell.
  (func $distance (param $a i32) (param $n i32) (param $b i32) (param $m i32) (param $line i32)
                  (result i32)
    (local $i i32) (local $j i32) (local $diagonal i32) (local $above i32) (local $left i32)
    (local $best i32) (local $cell i32)
    (loop $first
      (i32.store (i32.add (local.get $line) (i32.shl (local.get $j) (i32.const 2)))
                 (local.get $j))
      (local.set $j (i32.add (local.get $j) (i32.const 1)))
      (br_if $first (i32.le_u (local.get $j) (local.get $m))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
        (local.set $diagonal (local.get $i))
        (local.set $left (i32.add (local.get $i) (i32.const 1)))
        (i32.store (local.get $line) (local.get $left))
        (local.set $j (i32.const 0))
        (block $line_end
          (loop $next_cell
            (br_if $line_end (i32.ge_u (local.get $j) (local.get $m)))
            (local.set $cell (i32.add (local.get $line)
              (i32.shl (i32.add (local.get $j) (i32.const 1)) (i32.const 2))))
            (local.set $above (i32.load (local.get $cell)))
            (local.set $best
              (i32.add (local.get $diagonal)
                (i32.ne (i32.load8_u (i32.add (local.get $a) (local.get $i)))
                        (i32.load8_u (i32.add (local.get $b) (local.get $j))))))
            (if (i32.lt_u (i32.add (local.get $above) (i32.const 1)) (local.get $best))
              (then (local.set $best (i32.add (local.get $above) (i32.const 1)))))
            (if (i32.lt_u (i32.add (local.get $left) (i32.const 1)) (local.get $best))
              (then (local.set $best (i32.add (local.get $left) (i32.const 1)))))
            (i32.store (local.get $cell) (local.get $best))
            (local.set $left (local.get $best))
            (local.set $diagonal (local.get $above))
            (local.set $j (i32.add (local.get $j) (i32.const 1)))
            (br $next_cell)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (i32.load (i32.add (local.get $line) (i32.shl (local.get $m) (i32.const 2)))))

  (func (export "lev") (param $desc i32) (param $rows i32) (result i32)
    (local $row i32) (local $out i32) (local $mark i32) (local $line i32)
    (local $a i32) (local $n i32) (local $b i32) (local $m i32)
    (local.set $out (i32.load offset=72 (local.get $desc)))
    (local.set $mark (global.get $top))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $row) (local.get $rows)))
        (call $text (local.get $desc) (local.get $row))
        (local.set $n)
        (local.set $a)
        (call $text (i32.add (local.get $desc) (i32.const 32)) (local.get $row))
        (local.set $m)
        (local.set $b)
        (global.set $top (local.get $mark))
        (local.set $line
          (call $alloc (i32.shl (i32.add (local.get $m) (i32.const 1)) (i32.const 2))))
        (if (i32.eqz (local.get $line)) (then (return (i32.const 1))))
        (i32.store (i32.add (local.get $out) (i32.shl (local.get $row) (i32.const 2)))
          (call $distance (local.get $a) (local.get $n) (local.get $b) (local.get $m)
                          (local.get $line)))
        (local.set $row (i32.add (local.get $row) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  ;; The output has the offsets of the input: copy them, then the bytes.
  (func (export "shout") (param $desc i32) (param $rows i32) (result i32)
    (local $offsets i32) (local $size i32) (local $from i32) (local $to i32) (local $c i32)
    (local.set $offsets (i32.load offset=20 (local.get $desc)))
    (memory.copy (i32.load offset=52 (local.get $desc)) (local.get $offsets)
                 (i32.shl (i32.add (local.get $rows) (i32.const 1)) (i32.const 2)))
    (local.set $size (i32.load offset=12 (local.get $desc)))
    (local.set $from (i32.load offset=8 (local.get $desc)))
    (local.set $to (call $alloc (local.get $size)))
    (if (i32.eqz (local.get $to)) (then (return (i32.const 1))))
    (i32.store offset=40 (local.get $desc) (local.get $to))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $size)))
        (local.set $c (i32.load8_u (local.get $from)))
        (i32.store8 (local.get $to)
          (i32.sub (local.get $c)
            (i32.shl (i32.lt_u (i32.sub (local.get $c) (i32.const 97)) (i32.const 26))
                     (i32.const 5))))
        (local.set $from (i32.add (local.get $from) (i32.const 1)))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (local.set $size (i32.sub (local.get $size) (i32.const 1)))
        (br $next)))
    (i32.const 0)))
