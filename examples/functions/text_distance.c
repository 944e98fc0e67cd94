/* text_distance(a TEXT, b TEXT) RETURNS INT: Levenshtein distance, in characters. */
#include "tars_udf.h"

/* Decode UTF-8 the database has checked; return the number of characters. */
static u32 decode(const u8 *text, u32 length, u32 *to) {
  u32 count = 0;
  for (u32 i = 0; i < length;) {
    u32 first = text[i++], more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0;
    u32 letter = more ? first & (0x3fu >> more) : first;
    while (more--) letter = letter << 6 | (text[i++] & 0x3f);
    to[count++] = letter;
  }
  return count;
}

static u32 least(u32 a, u32 b, u32 c) {
  u32 d = a < b ? a : b;
  return d < c ? d : c;
}

/* One row of the matrix is kept: line[j] is the distance of the first i letters of a to j of b. */
static u32 distance(const u32 *a, u32 length, const u32 *b, u32 other, u32 *line) {
  for (u32 j = 0; j <= other; j++) line[j] = j;
  for (u32 i = 0; i < length; i++) {
    u32 diagonal = line[0];
    line[0] = i + 1;
    for (u32 j = 0; j < other; j++) {
      u32 above = line[j + 1];
      line[j + 1] = least(above + 1, line[j] + 1, diagonal + (a[i] != b[j]));
      diagonal = above;
    }
  }
  return line[other];
}

static u32 longest(const tars_column *c, u32 rows) {
  u32 most = 0;
  for (u32 row = 0; row < rows; row++)
    if (tars_length(c, row) > most) most = tars_length(c, row);
  return most;
}

TARS_FUNCTION(text_distance) {
  u32 first = longest(&args[0], rows), second = longest(&args[1], rows);
  u32 *a = tars_alloc(4 * first), *b = tars_alloc(4 * second), *line = tars_alloc(4 * second + 4);
  if (!a || !b || !line) return 1;
  i32 *out = tars_data(&args[2]);
  for (u32 row = 0; row < rows; row++) {
    u32 length = decode(tars_bytes(&args[0], row), tars_length(&args[0], row), a);
    u32 other = decode(tars_bytes(&args[1], row), tars_length(&args[1], row), b);
    out[row] = (i32)distance(a, length, b, other, line);
  }
  return 0;
}
