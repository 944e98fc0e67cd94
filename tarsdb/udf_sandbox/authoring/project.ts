// NAME(t TEXT) RETURNS INT: how many words a text has. build.sh compiles it, NAME.sql loads it.
import { argument, tars_abi_v1, tars_alloc, tars_reset } from "./tars_udf";
export { tars_abi_v1, tars_alloc, tars_reset };

function countWords(start: usize, length: i32): i32 {
  let count = 0, inside = false;
  for (let i = 0; i < length; i++) {
    const letter = load<u8>(start + i) > 32;
    if (letter && !inside) count++;
    inside = letter;
  }
  return count;
}

export function NAME(args: usize, rows: i32): i32 {
  const text = argument(args, 0), out = argument(args, 1);
  for (let row = 0; row < rows; row++) out.set<i32>(row, countWords(text.start(row), text.length(row)));
  return 0;
}
