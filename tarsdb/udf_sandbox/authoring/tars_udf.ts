// tarsdb columnar ABI, version 1, for AssemblyScript (docs/udf-abi.md has the bytes).
//
//   import { argument, tars_abi_v1, tars_alloc, tars_reset } from "./tars_udf";
//   export { tars_abi_v1, tars_alloc, tars_reset };
//   export function length(args: usize, rows: i32): i32 { // length(t TEXT) RETURNS INT
//     const text = argument(args, 0), out = argument(args, 1);
//     for (let row = 0; row < rows; row++) out.set<i32>(row, text.length(row));
//     return 0;
//   }
//
// The arguments come first, the output last. A STRICT function sees no NULL. Build with
// --runtime stub; objects made by `new` live until tars_reset.

export const TARS_BOOL: u32 = 1;
export const TARS_INT16: u32 = 2;
export const TARS_INT32: u32 = 3;
export const TARS_INT64: u32 = 4;
export const TARS_FLOAT32: u32 = 5;
export const TARS_FLOAT64: u32 = 6;
export const TARS_FIXED16: u32 = 7;
export const TARS_UTF8: u32 = 8;
export const TARS_BINARY: u32 = 9;
export const TARS_VEC_F32: u32 = 10;
export const TARS_VEC_F16: u32 = 11;
export const TARS_VEC_I8: u32 = 12;
export const TARS_VEC_BIT: u32 = 13;

export const tars_abi_v1: i32 = 1;

let top: usize = 0;

export function tars_reset(): void {
  top = __heap_base;
}

export function tars_alloc(size: i32): usize {
  const start: usize = ((top == 0 ? __heap_base : top) + 15) & ~15;
  const end: u64 = <u64>start + <u64>(<u32>size);
  if (end > 0xffff0000) return 0;
  const pages = <i32>((end + 0xffff) >> 16);
  const have = memory.size();
  if (pages > have && memory.grow(pages - have) == -1) return 0;
  top = <usize>end;
  return start;
}

// A column's descriptor, at its address.
@unmanaged
export class Column {
  type: u32;
  flags: u32; // bit 0: some rows are NULL; bit 1: one value for all rows
  data: usize;
  data_bytes: u32;
  validity: usize; // 0: no NULLs
  offsets: usize; // TEXT, BLOB, JSON
  width: u32; // bytes a row takes; 0 for TEXT, BLOB, JSON
  parameter: u32; // dimension of vectors, scale of DECIMAL

  // Value `index` of a type of fixed width; of vectors element `row * dimension + i`.
  get<T>(index: i32): T {
    return load<T>(this.data + ((<usize>index) << alignof<T>()));
  }
  set<T>(index: i32, value: T): void {
    store<T>(this.data + ((<usize>index) << alignof<T>()), value);
  }

  isNull(row: i32): bool {
    return this.validity != 0 && ((load<u8>(this.validity + (row >> 3)) >> <u8>(row & 7)) & 1) == 0;
  }
  // Make a row of the output NULL; its bitmap is there before the call.
  setNull(row: i32): void {
    const at = this.validity + (row >> 3);
    store<u8>(at, load<u8>(at) & ~(<u8>1 << <u8>(row & 7)));
  }

  // The bytes of a row of TEXT, BLOB or JSON: where they begin, and how many.
  start(row: i32): usize {
    return this.data + load<i32>(this.offsets + (row << 2));
  }
  length(row: i32): i32 {
    return load<i32>(this.offsets + ((row + 1) << 2)) - load<i32>(this.offsets + (row << 2));
  }

  // Write the output's rows in order: begin with room for all of them, then put each.
  begin(capacity: i32): bool {
    this.data = tars_alloc(capacity);
    return this.data != 0;
  }
  put(row: i32, from: usize, length: i32): void {
    const start = load<i32>(this.offsets + (row << 2));
    memory.copy(this.data + start, from, length);
    store<i32>(this.offsets + ((row + 1) << 2), start + length);
  }
}

@inline
export function argument(args: usize, number: i32): Column {
  return changetype<Column>(args + ((<usize>number) << 5));
}

// Capabilities: what a module uses of these is imported, and must be granted, WITH (allow = ...).
// @ts-ignore: decorator
@external("tars", "log")
export declare function log(text: usize, bytes: i32): void;
// The length of the key's value, which is written to `room` where it fits; -1: there is none.
// @ts-ignore: decorator
@external("tars", "lookup")
export declare function lookup(key: usize, bytes: i32, room: usize, size: i32): i32;
// The bytes of the text's vector, float after float, which is written to `room` where it fits.
// @ts-ignore: decorator
@external("tars", "embed")
export declare function embed(text: usize, bytes: i32, room: usize, size: i32): i32;
