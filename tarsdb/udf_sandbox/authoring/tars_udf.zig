//! tarsdb columnar ABI, version 1, for Zig (docs/udf-abi.md has the bytes).
//!
//!     const tars = @import("tars_udf.zig");
//!     comptime { _ = tars; } // exports the allocator that the database calls
//!     export fn length(args: [*]tars.Column, rows: u32) i32 { // length(t TEXT) RETURNS INT
//!         const out = args[1].values(i32, rows);
//!         for (0..rows) |row| out[row] = @intCast(args[0].bytes(row).len);
//!         return 0;
//!     }
//!
//! The arguments come first, the output last. A STRICT function sees no NULL.

pub const TARS_BOOL: u32 = 1;
pub const TARS_INT16: u32 = 2;
pub const TARS_INT32: u32 = 3;
pub const TARS_INT64: u32 = 4;
pub const TARS_FLOAT32: u32 = 5;
pub const TARS_FLOAT64: u32 = 6;
pub const TARS_FIXED16: u32 = 7;
pub const TARS_UTF8: u32 = 8;
pub const TARS_BINARY: u32 = 9;
pub const TARS_VEC_F32: u32 = 10;
pub const TARS_VEC_F16: u32 = 11;
pub const TARS_VEC_I8: u32 = 12;
pub const TARS_VEC_BIT: u32 = 13;

pub const Column = extern struct {
    type: u32,
    flags: u32, // bit 0: some rows are NULL; bit 1: one value for all rows
    data: [*]u8,
    data_bytes: u32,
    validity: ?[*]u8, // null: no NULLs
    offsets: ?[*]i32, // TEXT, BLOB, JSON
    width: u32, // bytes a row takes; 0 for TEXT, BLOB, JSON
    parameter: u32, // dimension of vectors, scale of DECIMAL

    /// Values of a type of fixed width; of vectors `rows` times the dimension of them.
    pub fn values(self: Column, comptime T: type, count: usize) []T {
        return @as([*]T, @ptrCast(@alignCast(self.data)))[0..count];
    }

    pub fn isNull(self: Column, row: usize) bool {
        const bits = self.validity orelse return false;
        return bits[row >> 3] >> @as(u3, @intCast(row & 7)) & 1 == 0;
    }

    /// Make a row of the output NULL; its bitmap is there before the call.
    pub fn setNull(self: Column, row: usize) void {
        self.validity.?[row >> 3] &= ~(@as(u8, 1) << @as(u3, @intCast(row & 7)));
    }

    /// The bytes of a row of TEXT, BLOB or JSON.
    pub fn bytes(self: Column, row: usize) []const u8 {
        const places = self.offsets.?;
        return self.data[@intCast(places[row])..@intCast(places[row + 1])];
    }

    /// Write the output's rows in order: begin with room for all of them, then put each.
    pub fn begin(self: *Column, capacity: u32) bool {
        self.data = tars_alloc(capacity) orelse return false;
        return true;
    }

    pub fn put(self: *Column, row: usize, text: []const u8) void {
        const places = self.offsets.?;
        const start: usize = @intCast(places[row]);
        @memcpy(self.data[start..][0..text.len], text);
        places[row + 1] = @intCast(start + text.len);
    }
};

/// Capabilities: what a module uses of these is imported, and must be granted, WITH (allow = ...).
pub extern "tars" fn log(text: [*]const u8, bytes: u32) void;
/// The length of the key's value, which is written to `room` where it fits; -1: there is none.
pub extern "tars" fn lookup(key: [*]const u8, bytes: u32, room: [*]u8, size: u32) i32;
/// The bytes of the text's vector, which is written to `room` where it fits.
pub extern "tars" fn embed(text: [*]const u8, bytes: u32, room: [*]f32, size: u32) i32;

comptime {
    if (@sizeOf(Column) != 32) @compileError("compile for wasm32: a descriptor is 32 bytes");
}

export const tars_abi_v1: i32 = 1;

extern var __heap_base: u8;
var top: u32 = 0;

export fn tars_reset() void {
    top = @intFromPtr(&__heap_base);
}

pub export fn tars_alloc(size: u32) ?[*]u8 {
    const start = ((if (top == 0) @intFromPtr(&__heap_base) else top) + 15) & ~@as(u32, 15);
    const end = @as(u64, start) + size;
    if (end > 0xffff0000) return null;
    const pages: u32 = @intCast((end + 65535) >> 16);
    const have: u32 = @intCast(@wasmMemorySize(0));
    if (pages > have and @wasmMemoryGrow(0, pages - have) == -1) return null;
    top = @intCast(end);
    return @ptrFromInt(start);
}
