//! CREATE AGGREGATE FUNCTION geometric_mean(x DOUBLE) RETURNS DOUBLE: exp of the mean of logarithms.
//! NULL for a group of no rows; a number that is not positive fails the statement.
const tars = @import("tars_udf.zig");
comptime {
    _ = tars;
}

const State = extern struct { logarithms: f64, count: u64 };

export fn geometric_mean_state_size() u32 {
    return @sizeOf(State);
}

export fn geometric_mean_init(states: [*]State, groups: u32) i32 {
    for (states[0..groups]) |*state| state.* = .{ .logarithms = 0, .count = 0 };
    return 0;
}

export fn geometric_mean_step(states: [*]State, numbers: [*]const u32, args: [*]tars.Column, rows: u32) i32 {
    for (args[0].values(f64, rows), numbers[0..rows]) |x, number| {
        if (!(x > 0)) return 2;
        states[number].logarithms += @log(x);
        states[number].count += 1;
    }
    return 0;
}

export fn geometric_mean_final(states: [*]State, groups: u32, out: *tars.Column) i32 {
    const results = out.values(f64, groups);
    for (states[0..groups], 0..) |state, group| {
        if (state.count == 0) {
            out.setNull(group);
        } else {
            results[group] = @exp(state.logarithms / @as(f64, @floatFromInt(state.count)));
        }
    }
    return 0;
}
