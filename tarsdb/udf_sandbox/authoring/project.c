/* NAME(t TEXT) RETURNS INT: how many words a text has. build.sh compiles it, NAME.sql loads it. */
#include "tars_udf.h"

static u32 countWords(const u8 *text, u32 length) {
  u32 count = 0, inside = 0;
  for (u32 i = 0; i < length; i++) {
    u32 letter = text[i] > ' ';
    count += letter & !inside;
    inside = letter;
  }
  return count;
}

TARS_FUNCTION(NAME) {
  i32 *out = tars_data(&args[1]);
  for (u32 row = 0; row < rows; row++)
    out[row] = (i32)countWords(tars_bytes(&args[0], row), tars_length(&args[0], row));
  return 0;
}
