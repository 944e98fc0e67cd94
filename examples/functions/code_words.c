/* code_words(body TEXT) RETURNS TABLE (first INT, behind INT, term TEXT) WITH (role = 'tokenizer'):
   the words of prose and of identifiers, in lower case: parseHTTPDate, parse_http_date and
   "parse HTTP date" give the same three. Bytes beyond ASCII count as small letters. */
#include "tars_udf.h"

enum kind { OTHER, DIGIT, SMALL, CAPITAL };

static enum kind kind_of(u8 byte) {
  if (byte >= 'A' && byte <= 'Z') return CAPITAL;
  if ((byte >= 'a' && byte <= 'z') || byte >= 0x80) return SMALL;
  return byte >= '0' && byte <= '9' ? DIGIT : OTHER;
}

/* A word ends before a capital that follows a small letter or digit (parseDate), and before the
   last of several capitals that a small letter follows (HTTPDate). */
static u32 word_end(const u8 *text, u32 from, u32 length) {
  u32 at = from + 1;
  for (; at < length; at++) {
    enum kind last = kind_of(text[at - 1]), here = kind_of(text[at]);
    if (here == OTHER) break;
    if (here != CAPITAL) continue;
    if (last != CAPITAL) break;
    if (at + 1 < length && kind_of(text[at + 1]) == SMALL) break;
  }
  return at;
}

TARS_FUNCTION(code_words) {
  const tars_column *body = &args[0];
  i32 *counts = tars_data(&args[1]);
  u32 most = body->bytes; /* no word is empty */
  i32 *first = tars_alloc(most * 4), *behind = tars_alloc(most * 4);
  i32 *offsets = tars_alloc((most + 1) * 4);
  if (!first || !behind || !offsets || tars_begin_output(&args[4], most)) return 1;
  i32 found = 0, used = 0;
  offsets[0] = 0;
  for (u32 row = 0; row < rows; row++) {
    const u8 *text = tars_bytes(body, row);
    u32 length = tars_length(body, row);
    for (u32 at = 0; at < length;) {
      if (kind_of(text[at]) == OTHER) {
        at++;
        continue;
      }
      u32 end = word_end(text, at, length);
      first[found] = (i32)at;
      behind[found] = (i32)end;
      for (; at < end; at++)
        args[4].data[used++] = kind_of(text[at]) == CAPITAL ? text[at] | 0x20 : text[at];
      offsets[++found] = used;
      counts[row]++;
    }
  }
  args[2].data = (u8 *)first;
  args[3].data = (u8 *)behind;
  args[4].offsets = offsets;
  return 0;
}
