/* tarsdb columnar ABI, version 1, for freestanding C (docs/udf-abi.md has the bytes).
   Include it in one source file: it defines the allocator that the database calls.

     #include "tars_udf.h"
     TARS_FUNCTION(length) {                       // length(t TEXT) RETURNS INT
       i32 *out = tars_data(&args[1]);
       for (u32 row = 0; row < rows; row++) out[row] = tars_length(&args[0], row);
       return 0;
     }

   `args` are the arguments and, last, the output. A STRICT function sees no NULL. */
#ifndef TARS_UDF_H
#define TARS_UDF_H

typedef unsigned char u8;
typedef short i16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

_Static_assert(sizeof(void *) == 4, "compile for wasm32");

enum tars_type {
  TARS_BOOL = 1, TARS_INT16 = 2, TARS_INT32 = 3, TARS_INT64 = 4, TARS_FLOAT32 = 5,
  TARS_FLOAT64 = 6, TARS_FIXED16 = 7, TARS_UTF8 = 8, TARS_BINARY = 9, TARS_VEC_F32 = 10,
  TARS_VEC_F16 = 11, TARS_VEC_I8 = 12, TARS_VEC_BIT = 13
};

typedef struct {
  u32 type;      /* enum tars_type */
  u32 flags;     /* bit 0: some rows are NULL */
  u8 *data;      /* values */
  u32 bytes;     /* length of the values */
  u8 *validity;  /* bit row & 7 of byte row >> 3 is set where a row has a value; 0: no NULLs */
  i32 *offsets;  /* TEXT, BLOB, JSON: row i is data[offsets[i]] .. data[offsets[i + 1] - 1] */
  u32 width;     /* bytes a row takes; 0 for TEXT, BLOB, JSON */
  u32 parameter; /* dimension of vectors, scale of DECIMAL */
} tars_column;

_Static_assert(sizeof(tars_column) == 32, "a descriptor is 32 bytes");

#define TARS_EXPORT(name) __attribute__((export_name(name)))
#define TARS_FUNCTION(name) \
  TARS_EXPORT(#name) i32 tars_udf_##name(tars_column *args, u32 rows); \
  i32 tars_udf_##name(tars_column *args, u32 rows)

/* Exported by the linker: -Wl,--export=tars_abi_v1 */
extern const i32 tars_abi_v1;
const i32 tars_abi_v1 = 1;

/* Everything is allocated upwards from the end of the static data and freed at once. */
extern u8 __heap_base;
static u8 *tars_top;

TARS_EXPORT("tars_reset") void tars_reset(void) { tars_top = &__heap_base; }

TARS_EXPORT("tars_alloc") void *tars_alloc(u32 size) {
  u32 start = ((u32)(tars_top ? tars_top : &__heap_base) + 15) & ~15u;
  u32 have = __builtin_wasm_memory_size(0), end = start + size;
  if (end < start || end > 0xffff0000u) return 0;
  u32 pages = (end + 65535) >> 16;
  if (pages > have && __builtin_wasm_memory_grow(0, pages - have) == (__SIZE_TYPE__)-1) return 0;
  tars_top = (u8 *)end;
  return (void *)start;
}

static inline void *tars_data(const tars_column *c) { return c->data; }

static inline i32 tars_is_null(const tars_column *c, u32 row) {
  return c->validity && !(c->validity[row >> 3] >> (row & 7) & 1);
}

/* Make a row of the output NULL; its bitmap is there before the call. */
static inline void tars_set_null(tars_column *out, u32 row) {
  out->validity[row >> 3] &= (u8)~(1u << (row & 7));
}

/* TEXT, BLOB and JSON: a row's bytes are not followed by a zero. */
static inline const u8 *tars_bytes(const tars_column *c, u32 row) {
  return c->data + c->offsets[row];
}
static inline u32 tars_length(const tars_column *c, u32 row) {
  return (u32)(c->offsets[row + 1] - c->offsets[row]);
}

/* Write the output's rows in order: begin with room for the bytes of all of them, put each. */
static inline i32 tars_begin_output(tars_column *out, u32 capacity) {
  out->data = tars_alloc(capacity);
  return out->data ? 0 : 1;
}
static inline u8 *tars_next(tars_column *out, u32 row) { return out->data + out->offsets[row]; }
static inline void tars_put(tars_column *out, u32 row, u32 length) {
  out->offsets[row + 1] = out->offsets[row] + (i32)length;
}

/* Capabilities: what a module uses of these is imported, and must be granted, WITH (allow = ...). */
__attribute__((import_module("tars"), import_name("log"))) void tars_log(const void *text, u32 bytes);
/* The length of the key's value, which is written to `room` where it fits; -1: there is none. */
__attribute__((import_module("tars"), import_name("lookup")))
i32 tars_lookup(const void *key, u32 bytes, void *room, u32 size);
/* The bytes of the text's vector, float after float, which is written to `room` where it fits. */
__attribute__((import_module("tars"), import_name("embed")))
i32 tars_embed(const void *text, u32 bytes, void *room, u32 size);

/* clang may turn loops into calls of these. */
__attribute__((no_builtin)) void *memcpy(void *to, const void *from, __SIZE_TYPE__ size) {
  u8 *a = to;
  const u8 *b = from;
  while (size--) *a++ = *b++;
  return to;
}
__attribute__((no_builtin)) void *memset(void *to, int value, __SIZE_TYPE__ size) {
  u8 *a = to;
  while (size--) *a++ = (u8)value;
  return to;
}

#endif
