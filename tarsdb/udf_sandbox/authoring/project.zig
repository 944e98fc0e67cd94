//! NAME(t TEXT) RETURNS INT: how many words a text has. build.sh compiles it, NAME.sql loads it.
const tars = @import("tars_udf.zig");
comptime {
    _ = tars;
}

fn countWords(text: []const u8) i32 {
    var count: i32 = 0;
    var inside = false;
    for (text) |byte| {
        const letter = byte > ' ';
        if (letter and !inside) count += 1;
        inside = letter;
    }
    return count;
}

export fn NAME(args: [*]tars.Column, rows: u32) i32 {
    const out = args[1].values(i32, rows);
    for (0..rows) |row| out[row] = countWords(args[0].bytes(row));
    return 0;
}
