//! json_field(j JSON, name TEXT) RETURNS TEXT: a field of a JSON object. Strings without quotes and
//! escapes, other values as they are written; NULL where there is no such field or it is null.
//! The database has checked that the JSON parses.
const tars = @import("tars_udf.zig");
comptime {
    _ = tars;
}

fn skipSpace(text: []const u8, start: usize) usize {
    var at = start;
    while (at < text.len and text[at] <= ' ') at += 1;
    return at;
}

/// The position after the value that begins at `start`.
fn skipValue(text: []const u8, start: usize) usize {
    var at = start;
    var depth: u32 = 0;
    while (at < text.len) : (at += 1) {
        switch (text[at]) {
            '"' => {
                at += 1;
                while (text[at] != '"') at += if (text[at] == '\\') 2 else 1;
                if (depth == 0) return at + 1;
            },
            '{', '[' => depth += 1,
            '}', ']' => {
                if (depth == 0) return at;
                depth -= 1;
                if (depth == 0) return at + 1;
            },
            ',' => if (depth == 0) return at,
            else => {},
        }
    }
    return at;
}

fn hex(text: []const u8) u32 {
    var code: u32 = 0;
    for (text) |digit| code = code << 4 | @as(u32, if (digit <= '9') digit - '0' else (digit | 32) - 'a' + 10);
    return code;
}

fn encode(code: u32, to: []u8) usize {
    const more: u5 = if (code < 0x80) 0 else if (code < 0x800) 1 else if (code < 0x10000) 2 else 3;
    if (more == 0) {
        to[0] = @intCast(code);
        return 1;
    }
    to[0] = @truncate((@as(u32, 0xff00) >> (more + 1)) | code >> (6 * more));
    for (1..more + 1) |i| to[i] = @intCast(0x80 | ((code >> @intCast(6 * (more - i))) & 0x3f));
    return more + 1;
}

/// Write a string's characters without escapes; return how many bytes. A lone surrogate is U+FFFD.
fn unescape(text: []const u8, to: []u8) usize {
    var at: usize = 0;
    var size: usize = 0;
    while (at < text.len) {
        if (text[at] != '\\') {
            to[size] = text[at];
            at += 1;
            size += 1;
            continue;
        }
        const kind = text[at + 1];
        at += 2;
        if (kind != 'u') {
            to[size] = switch (kind) {
                'b' => 8,
                'f' => 12,
                'n' => 10,
                'r' => 13,
                't' => 9,
                else => kind,
            };
            size += 1;
            continue;
        }
        var code = hex(text[at .. at + 4]);
        at += 4;
        if (code & 0xf800 == 0xd800) {
            const paired = code < 0xdc00 and at + 6 <= text.len and text[at] == '\\' and text[at + 1] == 'u';
            const low = if (paired) hex(text[at + 2 .. at + 6]) else 0;
            if (low & 0xfc00 == 0xdc00) {
                code = 0x10000 + ((code & 0x3ff) << 10 | (low & 0x3ff));
                at += 6;
            } else code = 0xfffd;
        }
        size += encode(code, to[size..]);
    }
    return size;
}

fn same(a: []const u8, b: []const u8) bool {
    if (a.len != b.len) return false;
    for (a, b) |x, y| if (x != y) return false;
    return true;
}

/// The text of a field's value, or null. `room` is scratch for names; the last of equal names counts.
fn find(text: []const u8, name: []const u8, room: []u8) ?[]const u8 {
    var at = skipSpace(text, 0);
    if (at >= text.len or text[at] != '{') return null;
    at = skipSpace(text, at + 1);
    var found: ?[]const u8 = null;
    while (text[at] == '"') {
        const after = skipValue(text, at);
        const size = unescape(text[at + 1 .. after - 1], room);
        const start = skipSpace(text, skipSpace(text, after) + 1);
        var stop = skipValue(text, start);
        at = skipSpace(text, stop);
        while (stop > start and text[stop - 1] <= ' ') stop -= 1;
        if (same(room[0..size], name)) found = text[start..stop];
        if (at >= text.len or text[at] != ',') break;
        at = skipSpace(text, at + 1);
    }
    return found;
}

export fn json_field(args: [*]tars.Column, rows: u32) i32 {
    const out = &args[2];
    if (!out.begin(args[0].data_bytes)) return 1;
    const room = (tars.tars_alloc(args[0].data_bytes + 4) orelse return 1)[0 .. args[0].data_bytes + 4];
    for (0..rows) |row| {
        const value = find(args[0].bytes(row), args[1].bytes(row), room) orelse "null";
        if (same(value, "null")) {
            out.setNull(row);
            out.put(row, "");
        } else if (value[0] == '"') {
            const size = unescape(value[1 .. value.len - 1], room);
            out.put(row, room[0..size]);
        } else out.put(row, value);
    }
    return 0;
}
