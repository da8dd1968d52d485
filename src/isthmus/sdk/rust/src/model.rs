//! Models by name, tokens and texts, chat templates.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{abi, actor, checked, Error, Level, Result};

/// An open model. Copies of it are the same handle; it stays open as long as the actor lives.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub handle: i32,
    pub info: abi::ModelInfo,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
}

impl ChatMessage {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        ChatMessage { role: role.into(), content: content.into() }
    }
}

impl Model {
    /// Opens a model that was given to this actor under a name.
    pub fn open(name: &str) -> Result<Self> {
        Model::of(checked(unsafe { abi::model_open(name.as_ptr(), name.len()) })? as i32)
    }

    /// The model of a handle, as it is now.
    pub(crate) fn of(handle: i32) -> Result<Self> {
        let mut info = abi::ModelInfo::default();
        checked(unsafe { abi::model_info(handle, &mut info) })?;
        Ok(Model { handle, info })
    }

    /// Opens the model that the option `model` names, by default the one called "default".
    pub fn open_by_option() -> Result<Self> {
        Model::open(&actor::option("model").unwrap_or_else(|| "default".into()))
    }

    pub fn has_chat_template(&self) -> bool {
        self.info.flags & abi::MODEL_CHAT_TEMPLATE as u32 != 0
    }

    /// Token ids of a text. `flags` are `abi::TOKENIZE_…`; PARSE_SPECIAL only for text of your own.
    pub fn tokenize(&self, text: &str, flags: i32) -> Result<Vec<i32>> {
        filled(text.len() / 2 + 16, |room, cap| unsafe {
            let bytes = text.as_ptr();
            abi::tokenize(self.handle, bytes, text.len(), flags as u32, room, cap as u32)
        })
    }

    /// The bytes that tokens stand for; those of one may end inside a character.
    pub fn detokenize(&self, tokens: &[i32]) -> Result<Vec<u8>> {
        filled(8 * tokens.len(), |room, cap| unsafe {
            let n = tokens.len() as u32;
            abi::detokenize(self.handle, tokens.as_ptr(), n, 0, room, cap)
        })
    }

    /// A conversation as the model was trained on it, up to where the assistant's turn begins.
    pub fn chat_template(&self, messages: &[ChatMessage]) -> Result<String> {
        let turns: Vec<abi::ChatMessage> = messages.iter().map(raw).collect();
        let nbytes: usize = turns.iter().map(|it| it.content_nbytes + 64).sum();
        let text = filled(nbytes + 1024, |room, cap| unsafe {
            let flags = abi::CHAT_ADD_GENERATION_PROMPT as u32;
            abi::chat_template(self.handle, turns.as_ptr(), turns.len() as u32, flags, room, cap)
        })?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A conversation as tokens, up to where the assistant's turn begins. Nobody can forge a turn:
    /// a content that holds control tokens of the model is refused, and the log says so. Without a
    /// chat template the contents are one document.
    pub fn chat_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<i32>> {
        let special = abi::TOKENIZE_PARSE_SPECIAL | abi::TOKENIZE_ADD_SPECIAL;
        if !self.has_chat_template() {
            let text: String = messages.iter().map(|it| it.content.as_str()).collect();
            return self.tokenize(&text, abi::TOKENIZE_ADD_SPECIAL);
        }
        for it in messages {
            let parsed = self.tokenize(&it.content, abi::TOKENIZE_PARSE_SPECIAL)?;
            if parsed != self.tokenize(&it.content, 0)? {
                actor::log(Level::Error, "a message holds control tokens of the model")?;
                return Err(Error(abi::EINVAL));
            }
        }
        let mut tokens = self.tokenize(&self.chat_template(messages)?, special)?;
        if tokens.len() > 1 && tokens[0] == self.info.token_bos && tokens[1] == tokens[0] {
            tokens.remove(0); // the template writes the token that ADD_SPECIAL adds
        }
        Ok(tokens)
    }

    /// Whether a token ends the generation.
    pub fn is_end(&self, token: i32) -> Result<bool> {
        let flags = checked(unsafe { abi::token_flags(self.handle, token) })?;
        Ok(flags & abi::TOKEN_EOG as u32 != 0)
    }
}

fn raw(message: &ChatMessage) -> abi::ChatMessage {
    abi::ChatMessage {
        role_ptr: message.role.as_ptr() as usize,
        role_nbytes: message.role.len(),
        content_ptr: message.content.as_ptr() as usize,
        content_nbytes: message.content.len(),
    }
}

/// A buffer that a call has filled; with more room, and once more, if the first was too small.
pub(crate) fn filled<T: Copy + Default>(
    cap: usize,
    call: impl Fn(*mut T, usize) -> i32,
) -> Result<Vec<T>> {
    let mut room = alloc::vec![T::default(); cap];
    loop {
        let n = checked(call(room.as_mut_ptr(), room.len()))? as usize;
        let fits = n <= room.len();
        room.resize(n, T::default());
        if fits {
            return Ok(room);
        }
    }
}
