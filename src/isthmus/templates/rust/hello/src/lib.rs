//! An agent that talks with a model. Each message is what the user says next.

use isthmus::{option_or, Agent, ChatMessage, Model, Replay, Result, Sampler, Session};

struct Hello {
    turns: Vec<ChatMessage>,
    session: Session,
    sampler: Sampler,
    max_tokens: usize,
}

impl Hello {
    /// Streams the model's answer to the conversation as it is.
    fn answer(&mut self) -> Result<Vec<u8>> {
        let tokens = self.session.model.chat_tokens(&self.turns)?;
        self.session.become_tokens(&tokens)?;
        self.session.generate(&mut self.sampler, self.max_tokens)
    }
}

impl Agent for Hello {
    fn new() -> Result<Self> {
        Ok(Hello {
            turns: Vec::new(),
            session: Session::open_by_option(Model::open_by_option()?)?,
            sampler: Sampler::by_option()?,
            max_tokens: option_or("max_tokens", 256)?,
        })
    }

    fn on_message(&mut self, message: &[u8]) -> Result<()> {
        self.turns.push(ChatMessage::new("user", String::from_utf8_lossy(message)));
        let answer = self.answer().map_err(|error| {
            self.turns.pop(); // what failed was not said
            error
        })?;
        self.turns.push(ChatMessage::new("assistant", String::from_utf8_lossy(&answer)));
        Ok(())
    }
}

impl Replay for Hello {
    fn on_replay(&mut self) -> Result<()> {
        self.session.reopen()
    }
}

isthmus::export!(Hello, on_replay);
