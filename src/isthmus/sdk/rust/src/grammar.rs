//! What a text must follow: a JSON schema, a grammar, a regular expression.

use crate::{abi, checked, Model, Result, Session};

/// A text that follows a grammar, as far as it is. Dropping it closes it.
#[derive(Debug)]
pub struct Grammar(i32);

impl Grammar {
    /// Begins a text. `kind` is one of `abi::GRAMMAR_KIND_…`.
    pub fn open(model: Model, kind: i32, source: &str) -> Result<Self> {
        let (bytes, nbytes) = (source.as_ptr(), source.len());
        checked(unsafe { abi::grammar_open(model.handle, kind as u32, bytes, nbytes) })
            .map(|handle| Grammar(handle as i32))
    }

    /// Masks the logits of what may not come next. False if the text may only end.
    pub fn mask(&mut self, session: &mut Session) -> Result<bool> {
        checked(unsafe { abi::grammar_mask(self.0, session.handle) }).map(|n| n > 0)
    }

    /// Goes on after a token, which becomes part of the text.
    pub fn accept(&mut self, token: i32) -> Result<()> {
        checked(unsafe { abi::grammar_accept(self.0, token) }).map(drop)
    }
}

impl Drop for Grammar {
    fn drop(&mut self) {
        unsafe { abi::grammar_close(self.0) };
    }
}
