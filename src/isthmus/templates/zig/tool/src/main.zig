//! An agent with a tool and state. Before it answers, it looks the message up with the host's tool
//! `lookup`, if it was given that; it counts its answers, and tells their number when asked: count.

const std = @import("std");
const isthmus = @import("isthmus");
const allocator = isthmus.allocator;

const Notes = struct {
    n_answers: u32 = 0,
    session: isthmus.Session,
    sampler: isthmus.Sampler,
    max_tokens: u32,

    /// Reads the options and opens the session.
    fn init() isthmus.Error!Notes {
        return .{
            .max_tokens = try isthmus.optionInt(u32, "max_tokens", 256),
            .sampler = try isthmus.samplerByOption(),
            .session = try isthmus.Session.openByOption(try isthmus.Model.openByOption()),
        };
    }

    /// Streams the model's answer to a question.
    fn answer(self: *Notes, asked: []const u8) isthmus.Error!void {
        var chat: isthmus.Chat = .{};
        defer chat.deinit();
        try chat.say("user", asked);
        const tokens = try self.session.model.chatTokens(chat);
        defer allocator.free(tokens);
        try self.session.become(tokens);
        allocator.free(try self.session.generate(&self.sampler, self.max_tokens));
        self.n_answers += 1;
    }
};

var agent: ?Notes = null;

/// What the model is asked: the message, after what the tool knows about it.
fn question(message: []const u8) isthmus.Error![]u8 {
    const facts = isthmus.callTool("lookup", message) catch |found| {
        if (found != isthmus.Error.ENOENT) return found;
        return allocator.dupe(u8, message);
    };
    defer allocator.free(facts);
    return std.mem.concat(allocator, u8, &.{ "Facts: ", facts, "\n\n", message });
}

fn handle(nbytes: i32) isthmus.Error!void {
    const message = try isthmus.message(nbytes);
    defer allocator.free(message);
    if (agent == null) agent = try Notes.init();
    const notes = &agent.?;
    if (std.mem.eql(u8, message, "count")) {
        var text: [32]u8 = undefined;
        const said = std.fmt.bufPrint(&text, "{d} answers", .{notes.n_answers});
        return isthmus.emit(said catch unreachable);
    }
    const asked = try question(message);
    defer allocator.free(asked);
    try notes.answer(asked);
}

export fn on_message(nbytes: i32) i32 {
    return isthmus.status(handle(nbytes));
}

/// Another model: the next message reads all that was said.
export fn on_replay() i32 {
    if (agent) |*it| return isthmus.status(it.session.reopen());
    return 0;
}
