//! What an agent written in Zig is built on: a thin layer over the guest ABI, abi.zig.
//!
//!   messages   message, emit, reply, log
//!   options    option, optionInt, optionFloat
//!   tools      callTool
//!   models     Model: by name, tokens and texts, conversations
//!   sessions   Session: tokens whose KV cache and logits lie in this guest's memory
//!   grammars   Grammar: what a text must follow
//!
//! An agent exports on_message itself: `export fn on_message(nbytes: i32) i32`, and `status` turns
//! an error into the errno that the host takes.

const std = @import("std");
pub const abi = @import("abi.zig");
const session = @import("session.zig");
const model = @import("model.zig");

pub const Session = session.Session;
pub const Grammar = session.Grammar;
pub const Model = model.Model;
pub const Chat = model.Chat;
pub const Sampler = abi.Sampler;

/// Where everything that an agent keeps is allocated.
pub const allocator = std.heap.wasm_allocator;

/// The errno of the ABI, and OutOfMemory, which is ENOMEM.
pub const Error = error{
    EINVAL,
    EFAULT,
    EALIGN,
    EBADF,
    ENOENT,
    EBUSY,
    ECONTEXT,
    ETOKEN,
    ELIMIT,
    ENOTSUP,
    EIO,
    ECANCELED,
    OutOfMemory,
};

const errors = [_]struct { i32, Error }{
    .{ abi.EINVAL, Error.EINVAL },       .{ abi.EFAULT, Error.EFAULT },
    .{ abi.EALIGN, Error.EALIGN },       .{ abi.EBADF, Error.EBADF },
    .{ abi.ENOENT, Error.ENOENT },       .{ abi.ENOMEM, Error.OutOfMemory },
    .{ abi.EBUSY, Error.EBUSY },         .{ abi.ECONTEXT, Error.ECONTEXT },
    .{ abi.ETOKEN, Error.ETOKEN },       .{ abi.ELIMIT, Error.ELIMIT },
    .{ abi.ENOTSUP, Error.ENOTSUP },     .{ abi.EIO, Error.EIO },
    .{ abi.ECANCELED, Error.ECANCELED },
};

/// The value that the host returned, or the error whose errno it negated.
pub fn checked(result: i64) Error!usize {
    if (result >= 0) return @intCast(result);
    for (errors) |it| {
        if (it[0] == -result) return it[1];
    }
    return Error.EIO;
}

/// What on_message returns: 0, or the negated errno of an error.
pub fn status(result: Error!void) i32 {
    result catch |found| {
        for (errors) |it| {
            if (it[1] == found) return -it[0];
        }
        return -abi.EIO;
    };
    return 0;
}

/// Where bytes begin, as the host takes it: an empty slice of Zig's may begin anywhere.
pub fn begin(bytes: []const u8) ?[*]const u8 {
    return if (bytes.len == 0) null else bytes.ptr;
}

/// The same for a buffer to be filled.
pub fn room(bytes: []u8) ?[*]u8 {
    return if (bytes.len == 0) null else bytes.ptr;
}

/// The message, of the length that on_message was given. To be freed.
pub fn message(nbytes: i32) Error![]u8 {
    const bytes = try allocator.alloc(u8, @intCast(nbytes));
    errdefer allocator.free(bytes);
    _ = try checked(abi.message_read(room(bytes), bytes.len));
    return bytes;
}

/// Streams a piece of the answer. Pieces may be cut anywhere, also inside a character.
pub fn emit(piece: []const u8) Error!void {
    _ = try checked(abi.emit(begin(piece), piece.len));
}

/// Sets the answer, in place of all that was emitted.
pub fn reply(answer: []const u8) Error!void {
    _ = try checked(abi.reply(begin(answer), answer.len));
}

/// Writes a line to the actor's log; `level` is one of abi.LOG_…
pub fn log(level: i32, line: []const u8) Error!void {
    _ = try checked(abi.log(@intCast(level), begin(line), line.len));
}

/// Calls a function of the host by name: its result, to be freed. ENOENT if this actor was not
/// given it.
pub fn callTool(name: []const u8, args: []const u8) Error![]u8 {
    const nbytes = try checked(abi.tool_call(name.ptr, name.len, begin(args), args.len));
    const result = try allocator.alloc(u8, nbytes);
    errdefer allocator.free(result);
    _ = try checked(abi.tool_result(room(result), result.len));
    return result;
}

extern "wasi_snapshot_preview1" fn args_sizes_get(n_args: *usize, nbytes: *usize) i32;
extern "wasi_snapshot_preview1" fn args_get(args: [*]usize, bytes: [*]u8) i32;

var arguments: ?[]u8 = null;

/// All arguments, each with a NUL after it; they are read once and kept.
fn readArguments() Error![]u8 {
    if (arguments) |known| return known;
    var n_args: usize = 0;
    var nbytes: usize = 0;
    if (args_sizes_get(&n_args, &nbytes) != 0) return Error.EIO;
    const places = try allocator.alloc(usize, n_args);
    defer allocator.free(places);
    const bytes = try allocator.alloc(u8, nbytes);
    if (args_get(places.ptr, bytes.ptr) != 0) return Error.EIO;
    arguments = bytes;
    return bytes;
}

/// The value of the option `key=value` that the actor was spawned with; the last one counts.
pub fn option(key: []const u8) Error!?[]const u8 {
    var found: ?[]const u8 = null;
    var each = std.mem.splitScalar(u8, try readArguments(), 0);
    while (each.next()) |it| {
        if (it.len > key.len and it[key.len] == '=' and std.mem.startsWith(u8, it, key))
            found = it[key.len + 1 ..];
    }
    return found;
}

fn refused(key: []const u8) Error {
    log(abi.LOG_ERROR, "an option has a value that is not of its type:") catch {};
    log(abi.LOG_ERROR, key) catch {};
    return Error.EINVAL;
}

/// An option that is a whole number, or its default.
pub fn optionInt(comptime T: type, key: []const u8, default: T) Error!T {
    const text = try option(key) orelse return default;
    return std.fmt.parseInt(T, text, 10) catch refused(key);
}

/// An option that is a number, or its default.
pub fn optionFloat(key: []const u8, default: f32) Error!f32 {
    const text = try option(key) orelse return default;
    return std.fmt.parseFloat(f32, text) catch refused(key);
}

/// The host's sampler with the options temperature, top_k, top_p, min_p, repeat_penalty,
/// repeat_last_n and seed. Without a seed the actor's own chance decides.
pub fn samplerByOption() Error!Sampler {
    var seed: i64 = 0;
    _ = try checked(abi.random(@ptrCast(&seed), @sizeOf(i64)));
    return .{
        .temperature = try optionFloat("temperature", 0.7),
        .top_k = try optionInt(u32, "top_k", 40),
        .top_p = try optionFloat("top_p", 0.95),
        .min_p = try optionFloat("min_p", 0.05),
        .repeat_penalty = try optionFloat("repeat_penalty", 1.1),
        .repeat_last_n = try optionInt(u32, "repeat_last_n", 64),
        .rng_state = @bitCast(try optionInt(i64, "seed", seed)),
    };
}
