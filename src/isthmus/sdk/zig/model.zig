//! Models by name, tokens and texts, conversations.

const std = @import("std");
const isthmus = @import("isthmus.zig");
const abi = isthmus.abi;
const allocator = isthmus.allocator;
const checked = isthmus.checked;
const Error = isthmus.Error;

/// What was said so far. It owns the contents; the roles are the caller's.
pub const Chat = struct {
    turns: std.ArrayList(abi.ChatMessage) = .empty,

    /// Adds a turn. Bytes that are not UTF-8 become U+FFFD.
    pub fn say(self: *Chat, role: []const u8, bytes: []const u8) Error!void {
        const content = try wellFormed(bytes);
        errdefer allocator.free(content);
        try self.turns.append(allocator, .{
            .role_ptr = @intFromPtr(role.ptr),
            .role_nbytes = role.len,
            .content_ptr = @intFromPtr(isthmus.begin(content)),
            .content_nbytes = content.len,
        });
    }

    /// Forgets the last turn.
    pub fn takeBack(self: *Chat) void {
        if (self.turns.pop()) |turn| allocator.free(contentOf(turn));
    }

    /// Forgets everything, and frees it.
    pub fn deinit(self: *Chat) void {
        for (self.turns.items) |turn| allocator.free(contentOf(turn));
        self.turns.deinit(allocator);
    }
};

fn contentOf(turn: abi.ChatMessage) []const u8 {
    if (turn.content_nbytes == 0) return "";
    return @as([*]const u8, @ptrFromInt(turn.content_ptr))[0..turn.content_nbytes];
}

/// The text with U+FFFD for each byte that is not UTF-8. To be freed.
fn wellFormed(bytes: []const u8) Error![]u8 {
    var text: std.ArrayList(u8) = .empty;
    errdefer text.deinit(allocator);
    var at: usize = 0;
    while (at < bytes.len) {
        const n = std.unicode.utf8ByteSequenceLength(bytes[at]) catch 1;
        const end = @min(at + n, bytes.len);
        const good = std.unicode.utf8ValidateSlice(bytes[at..end]);
        try text.appendSlice(allocator, if (good) bytes[at..end] else "\u{fffd}");
        at = if (good) end else at + 1;
    }
    return text.toOwnedSlice(allocator);
}

/// An open model; it stays open as long as the actor lives.
pub const Model = struct {
    handle: i32,
    info: abi.ModelInfo,

    /// Opens a model that was given to this actor under a name.
    pub fn open(name: []const u8) Error!Model {
        return of(@intCast(try checked(abi.model_open(name.ptr, name.len))));
    }

    /// The model of a handle, as it is now.
    pub fn of(handle: i32) Error!Model {
        var info: [1]abi.ModelInfo = undefined;
        _ = try checked(abi.model_info(handle, &info));
        return .{ .handle = handle, .info = info[0] };
    }

    /// Opens the model that the option `model` names, by default the one called "default".
    pub fn openByOption() Error!Model {
        return open(try isthmus.option("model") orelse "default");
    }

    pub fn hasChatTemplate(self: Model) bool {
        return self.info.flags & abi.MODEL_CHAT_TEMPLATE != 0;
    }

    /// Token ids of a text, to be freed. `flags` are abi.TOKENIZE_…; PARSE_SPECIAL only for text
    /// of your own.
    pub fn tokenize(self: Model, text: []const u8, flags: u32) Error![]i32 {
        var room = try allocator.alloc(i32, text.len / 2 + 16);
        errdefer allocator.free(room);
        while (true) {
            const cap: u32 = @intCast(room.len);
            const n = try checked(
                abi.tokenize(self.handle, isthmus.begin(text), text.len, flags, room.ptr, cap),
            );
            room = try allocator.realloc(room, n);
            if (n <= cap) return room;
        }
    }

    /// The bytes that tokens stand for, to be freed; those of one may end inside a character.
    pub fn detokenize(self: Model, tokens: []const i32) Error![]u8 {
        var room = try allocator.alloc(u8, 8 * tokens.len);
        errdefer allocator.free(room);
        while (true) {
            const cap = room.len;
            const n_tokens: u32 = @intCast(tokens.len);
            const n = try checked(
                abi.detokenize(self.handle, tokens.ptr, n_tokens, 0, room.ptr, cap),
            );
            room = try allocator.realloc(room, n);
            if (n <= cap) return room;
        }
    }

    /// A conversation as the model was trained on it, up to where the assistant's turn begins. To
    /// be freed.
    pub fn chatTemplate(self: Model, chat: Chat) Error![]u8 {
        var room = try allocator.alloc(u8, 4096);
        errdefer allocator.free(room);
        const n_turns: u32 = @intCast(chat.turns.items.len);
        while (true) {
            const cap = room.len;
            const flags = abi.CHAT_ADD_GENERATION_PROMPT;
            const turns = chat.turns.items.ptr;
            const n = try checked(
                abi.chat_template(self.handle, turns, n_turns, flags, room.ptr, cap),
            );
            room = try allocator.realloc(room, n);
            if (n <= cap) return room;
        }
    }

    /// A conversation as tokens, up to where the assistant's turn begins; to be freed. Nobody can
    /// forge a turn: a content that holds control tokens of the model is refused, and the log
    /// says so. Without a chat template the contents are one document.
    pub fn chatTokens(self: Model, chat: Chat) Error![]i32 {
        const is_chat = self.hasChatTemplate();
        if (is_chat) try self.requirePlain(chat);
        const text = if (is_chat) try self.chatTemplate(chat) else try document(chat);
        defer allocator.free(text);
        const special: u32 = if (is_chat) abi.TOKENIZE_PARSE_SPECIAL else 0;
        const tokens = try self.tokenize(text, special | abi.TOKENIZE_ADD_SPECIAL);
        const twice = tokens.len > 1 and tokens[0] == self.info.token_bos and tokens[1] == tokens[0];
        if (!twice) return tokens;
        defer allocator.free(tokens); // the template writes the token that ADD_SPECIAL adds
        return allocator.dupe(i32, tokens[1..]);
    }

    fn requirePlain(self: Model, chat: Chat) Error!void {
        for (chat.turns.items) |turn| {
            const plain = try self.tokenize(contentOf(turn), 0);
            defer allocator.free(plain);
            const parsed = try self.tokenize(contentOf(turn), abi.TOKENIZE_PARSE_SPECIAL);
            defer allocator.free(parsed);
            if (std.mem.eql(i32, plain, parsed)) continue;
            try isthmus.log(abi.LOG_ERROR, "a message holds control tokens of the model");
            return Error.EINVAL;
        }
    }

    /// Whether a token ends the generation.
    pub fn isEnd(self: Model, token: i32) Error!bool {
        return try checked(abi.token_flags(self.handle, token)) & abi.TOKEN_EOG != 0;
    }
};

/// The contents, one after the other. To be freed.
fn document(chat: Chat) Error![]u8 {
    var text: std.ArrayList(u8) = .empty;
    errdefer text.deinit(allocator);
    for (chat.turns.items) |turn| try text.appendSlice(allocator, contentOf(turn));
    return text.toOwnedSlice(allocator);
}
