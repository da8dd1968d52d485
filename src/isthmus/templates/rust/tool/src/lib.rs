//! An agent with a tool and state. Before it answers, it looks the message up with the host's tool
//! `lookup`, if it was given that; it counts its answers, and tells their number when asked: count.

use isthmus::{abi, call_tool, emit, option_or};
use isthmus::{Agent, ChatMessage, Error, Model, Replay, Result, Sampler, Session};

struct Notes {
    n_answers: u32,
    session: Session,
    sampler: Sampler,
    max_tokens: usize,
}

/// What the model is asked: the message, after what the tool knows about it.
fn question(message: &str) -> Result<String> {
    match call_tool("lookup", message) {
        Ok(facts) => Ok(format!("Facts: {}\n\n{}", String::from_utf8_lossy(&facts), message)),
        Err(Error(abi::ENOENT)) => Ok(message.into()),
        Err(error) => Err(error),
    }
}

impl Agent for Notes {
    fn new() -> Result<Self> {
        Ok(Notes {
            n_answers: 0,
            session: Session::open_by_option(Model::open_by_option()?)?,
            sampler: Sampler::by_option()?,
            max_tokens: option_or("max_tokens", 256)?,
        })
    }

    fn on_message(&mut self, message: &[u8]) -> Result<()> {
        let message = String::from_utf8_lossy(message);
        if message.trim() == "count" {
            return emit(format!("{} answers", self.n_answers));
        }
        let turns = [ChatMessage::new("user", question(&message)?)];
        let tokens = self.session.model.chat_tokens(&turns)?;
        self.session.become_tokens(&tokens)?;
        self.session.generate(&mut self.sampler, self.max_tokens)?;
        self.n_answers += 1;
        Ok(())
    }
}

impl Replay for Notes {
    fn on_replay(&mut self) -> Result<()> {
        self.session.reopen()
    }
}

isthmus::export!(Notes, on_replay);
