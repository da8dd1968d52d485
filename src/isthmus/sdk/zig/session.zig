//! Sequences of tokens whose KV cache and logits lie in this guest's memory, and grammars.

const std = @import("std");
const isthmus = @import("isthmus.zig");
const abi = isthmus.abi;
const allocator = isthmus.allocator;
const checked = isthmus.checked;
const Error = isthmus.Error;
const Model = isthmus.Model;

const wasm_page = 65_536;

/// Memory of sessions that were closed, for those that are opened later: linear memory never
/// shrinks.
var closed: std.ArrayList([]u8) = .empty;

/// Whole pages of linear memory, at a multiple of 64 KiB.
fn takePages(nbytes: usize) Error![]u8 {
    for (closed.items, 0..) |pages, at| {
        if (pages.len >= nbytes) return closed.swapRemove(at);
    }
    const n_pages = (nbytes + wasm_page - 1) / wasm_page;
    const grown = @wasmMemoryGrow(0, n_pages);
    if (grown < 0) return Error.OutOfMemory;
    const first: usize = @intCast(grown);
    return @as([*]u8, @ptrFromInt(first * wasm_page))[0 .. n_pages * wasm_page];
}

/// One sequence of tokens. It owns the bytes in which its KV cache and logits lie.
pub const Session = struct {
    model: Model,
    handle: i32,
    n_ctx: u32,
    bytes: []u8,
    tokens: std.ArrayList(i32) = .empty,

    /// Opens a session of n_ctx tokens, in memory of its own.
    pub fn open(model: Model, n_ctx: u32) Error!Session {
        const nbytes = try checked(abi.session_nbytes(model.handle, n_ctx));
        const bytes = try takePages(nbytes);
        errdefer closed.append(allocator, bytes) catch {};
        const handle = try checked(abi.session_open(model.handle, n_ctx, bytes.ptr, bytes.len));
        return .{ .model = model, .handle = @intCast(handle), .n_ctx = n_ctx, .bytes = bytes };
    }

    /// Opens a session of the option n_ctx; by default what the model knows, up to 2,048.
    pub fn openByOption(model: Model) Error!Session {
        const usual = @min(model.info.n_ctx_train, 2048);
        return open(model, try isthmus.optionInt(u32, "n_ctx", usual));
    }

    /// For on_replay: opens the session anew, empty, which the host closed because its model is
    /// another one now.
    pub fn reopen(self: *Session) Error!void {
        self.tokens.deinit(allocator);
        try closed.append(allocator, self.bytes);
        const model = try Model.of(self.model.handle);
        self.* = try open(model, @min(self.n_ctx, model.info.n_ctx_train));
    }

    /// Closes the session; its memory serves later ones.
    pub fn close(self: *Session) Error!void {
        _ = try checked(abi.session_close(self.handle));
        self.tokens.deinit(allocator);
        try closed.append(allocator, self.bytes);
    }

    /// Appends tokens, many at a time. On an error the session is as it was.
    pub fn prefill(self: *Session, tokens: []const i32) Error!void {
        try self.tokens.ensureUnusedCapacity(allocator, tokens.len);
        _ = try checked(abi.prefill(self.handle, tokens.ptr, @intCast(tokens.len)));
        self.tokens.appendSliceAssumeCapacity(tokens);
    }

    /// Appends one token. On an error the session is as it was.
    pub fn decode(self: *Session, token: i32) Error!void {
        try self.tokens.ensureUnusedCapacity(allocator, 1);
        _ = try checked(abi.decode(self.handle, token));
        self.tokens.appendAssumeCapacity(token);
    }

    /// Forgets all tokens after the first n; all of them if the model takes none back. Returns how
    /// many are left.
    pub fn keep(self: *Session, n: usize) Error!usize {
        var left = n;
        _ = checked(abi.truncate(self.handle, @intCast(n))) catch |found| {
            if (found != Error.ENOTSUP) return found;
            left = 0;
            _ = try checked(abi.truncate(self.handle, 0));
        };
        self.tokens.shrinkRetainingCapacity(left);
        return left;
    }

    /// Makes the session hold exactly these tokens, with logits after them. It computes only what
    /// follows the tokens that both have in common.
    pub fn become(self: *Session, tokens: []const i32) Error!void {
        if (tokens.len > self.n_ctx) return Error.ECONTEXT; // before anything is lost
        const held = self.tokens.items;
        var n: usize = 0;
        while (n < held.len and n + 1 < tokens.len and held[n] == tokens[n]) n += 1;
        const kept = try self.keep(n);
        try self.prefill(tokens[kept..]);
    }

    /// The logits, in place: one for each token of the vocabulary.
    pub fn logits(self: *Session) Error![]f32 {
        const address = try checked(abi.logits(self.handle));
        return @as([*]f32, @ptrFromInt(address))[0..self.model.info.n_vocab];
    }

    /// Draws the next token. Does not append it.
    pub fn sample(self: *Session, sampler: *abi.Sampler) Error!i32 {
        return @intCast(try checked(abi.sample(self.handle, @ptrCast(sampler))));
    }

    /// Draws, emits and appends up to max_tokens tokens, until the model ends its turn or the
    /// caller wants no more. Returns their bytes, to be freed.
    pub fn generate(self: *Session, sampler: *abi.Sampler, max_tokens: u32) Error![]u8 {
        var text: std.ArrayList(u8) = .empty;
        errdefer text.deinit(allocator);
        for (0..max_tokens) |_| {
            const token = try self.sample(sampler);
            const more = self.emitToken(token, &text) catch |found| {
                if (found == Error.ECANCELED) break;
                return found;
            };
            if (!more) break;
        }
        return text.toOwnedSlice(allocator);
    }

    /// Streams a token's text to the caller, and appends it to a text and the token to the session.
    /// False, and nothing happened, if the token ends the generation.
    pub fn emitToken(self: *Session, token: i32, text: *std.ArrayList(u8)) Error!bool {
        var need: usize = 32;
        try self.tokens.ensureUnusedCapacity(allocator, 1);
        while (true) {
            try text.ensureUnusedCapacity(allocator, need);
            const room = text.unusedCapacitySlice();
            need = try checked(abi.emit_token(self.handle, token, room.ptr, room.len));
            if (need == abi.EMIT_END) return false;
            if (need > room.len) continue;
            text.items.len += need;
            self.tokens.appendAssumeCapacity(token);
            return true;
        }
    }
};

/// A text that follows a grammar, as far as it is.
pub const Grammar = struct {
    handle: i32,

    /// Begins a text. `kind` is one of abi.GRAMMAR_KIND_…
    pub fn open(model: Model, kind: u32, source: []const u8) Error!Grammar {
        const found = abi.grammar_open(model.handle, kind, source.ptr, source.len);
        return .{ .handle = @intCast(try checked(found)) };
    }

    /// Masks the logits of what may not come next. False if the text may only end.
    pub fn mask(self: Grammar, session: Session) Error!bool {
        return try checked(abi.grammar_mask(self.handle, session.handle)) > 0;
    }

    /// Goes on after a token, which becomes part of the text.
    pub fn accept(self: Grammar, token: i32) Error!void {
        _ = try checked(abi.grammar_accept(self.handle, token));
    }

    pub fn close(self: Grammar) void {
        _ = abi.grammar_close(self.handle);
    }
};
