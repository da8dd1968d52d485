//! An agent that talks with a model. Each message is what the user says next.

const isthmus = @import("isthmus");

const Hello = struct {
    chat: isthmus.Chat = .{},
    session: isthmus.Session,
    sampler: isthmus.Sampler,
    max_tokens: u32,

    /// Reads the options and opens the session.
    fn init() isthmus.Error!Hello {
        return .{
            .max_tokens = try isthmus.optionInt(u32, "max_tokens", 256),
            .sampler = try isthmus.samplerByOption(),
            .session = try isthmus.Session.openByOption(try isthmus.Model.openByOption()),
        };
    }

    /// Streams the model's answer to the conversation as it is, and adds it.
    fn answer(self: *Hello) isthmus.Error!void {
        const tokens = try self.session.model.chatTokens(self.chat);
        defer isthmus.allocator.free(tokens);
        try self.session.become(tokens);
        const text = try self.session.generate(&self.sampler, self.max_tokens);
        defer isthmus.allocator.free(text);
        try self.chat.say("assistant", text);
    }
};

var agent: ?Hello = null;

fn handle(nbytes: i32) isthmus.Error!void {
    const message = try isthmus.message(nbytes);
    defer isthmus.allocator.free(message);
    if (agent == null) agent = try Hello.init();
    const hello = &agent.?;
    try hello.chat.say("user", message);
    errdefer hello.chat.takeBack(); // what failed was not said
    try hello.answer();
}

export fn on_message(nbytes: i32) i32 {
    return isthmus.status(handle(nbytes));
}

/// Another model: the next message reads all that was said.
export fn on_replay() i32 {
    if (agent) |*it| return isthmus.status(it.session.reopen());
    return 0;
}
