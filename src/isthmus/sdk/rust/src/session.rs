//! Sequences of tokens whose KV cache and logits lie in this guest's memory.

use alloc::alloc::{alloc, dealloc, Layout};
use alloc::vec::Vec;

#[cfg(doc)]
use crate::Replay;
use crate::{abi, actor, checked, Error, Model, Result, Sampler};

const ALIGNMENT: usize = 4096;

/// One sequence of tokens. It owns the bytes in which its KV cache and logits lie; dropping it
/// closes it and frees them.
#[derive(Debug)]
pub struct Session {
    pub model: Model,
    pub handle: i32,
    /// Tokens that it can hold.
    pub n_ctx: u32,
    bytes: *mut u8,
    layout: Layout,
    tokens: Vec<i32>,
}

impl Session {
    /// Opens a session of `n_ctx` tokens, in memory of its own.
    pub fn open(model: Model, n_ctx: u32) -> Result<Self> {
        let nbytes = unsafe { abi::session_nbytes(model.handle, n_ctx) };
        let nbytes = usize::try_from(nbytes).map_err(|_| Error(-nbytes as i32))?;
        let layout =
            Layout::from_size_align(nbytes, ALIGNMENT).map_err(|_| Error(abi::ENOMEM))?;
        let bytes = unsafe { alloc(layout) };
        if bytes.is_null() {
            return Err(Error(abi::ENOMEM));
        }
        match checked(unsafe { abi::session_open(model.handle, n_ctx, bytes, nbytes) }) {
            Ok(handle) => {
                let (handle, tokens) = (handle as i32, Vec::new());
                Ok(Session { model, handle, n_ctx, bytes, layout, tokens })
            }
            Err(error) => {
                unsafe { dealloc(bytes, layout) };
                Err(error)
            }
        }
    }

    /// Opens a session of the option `n_ctx`; by default what the model knows, up to 2,048.
    pub fn open_by_option(model: Model) -> Result<Self> {
        Session::open(model, actor::option_or("n_ctx", model.info.n_ctx_train.min(2048))?)
    }

    /// For [`Replay`]: opens the session anew, empty, which the host closed because its model is
    /// another one now.
    pub fn reopen(&mut self) -> Result<()> {
        self.handle = 0; // only its memory is left
        let model = Model::of(self.model.handle)?;
        *self = Session::open(model, self.n_ctx.min(model.info.n_ctx_train))?;
        Ok(())
    }

    /// The tokens that it holds.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Appends tokens, many at a time. On an error the session is as it was.
    pub fn prefill(&mut self, tokens: &[i32]) -> Result<()> {
        checked(unsafe { abi::prefill(self.handle, tokens.as_ptr(), tokens.len() as u32) })?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Appends one token. On an error the session is as it was.
    pub fn decode(&mut self, token: i32) -> Result<()> {
        checked(unsafe { abi::decode(self.handle, token) })?;
        self.tokens.push(token);
        Ok(())
    }

    /// Forgets all tokens after the first `n_tokens`; all of them if the model takes none back.
    pub fn keep(&mut self, n_tokens: usize) -> Result<usize> {
        let mut n = n_tokens;
        let mut kept = checked(unsafe { abi::truncate(self.handle, n as u32) });
        if kept == Err(Error(abi::ENOTSUP)) {
            n = 0;
            kept = checked(unsafe { abi::truncate(self.handle, 0) });
        }
        kept?;
        self.tokens.truncate(n);
        Ok(n)
    }

    /// Makes the session hold exactly these tokens, with logits after them. It computes only what
    /// follows the tokens that it has in common with them.
    pub fn become_tokens(&mut self, tokens: &[i32]) -> Result<()> {
        if tokens.len() > self.n_ctx as usize {
            return Err(Error(abi::ECONTEXT));
        }
        let last = tokens.len().saturating_sub(1); // one is computed anew: logits follow it
        let common = self.tokens.iter().zip(&tokens[..last]).take_while(|(a, b)| a == b).count();
        let kept = self.keep(common)?;
        self.prefill(&tokens[kept..])
    }

    /// The logits, in place: one for each token of the vocabulary.
    pub fn logits(&mut self) -> Result<&mut [f32]> {
        let address = unsafe { abi::logits(self.handle) };
        let address = usize::try_from(address).map_err(|_| Error(-address as i32))?;
        let n_vocab = self.model.info.n_vocab as usize;
        // Safety: the host says that n_vocab logits lie there, in bytes that the session owns.
        Ok(unsafe { core::slice::from_raw_parts_mut(address as *mut f32, n_vocab) })
    }

    /// Draws the next token. Does not append it.
    pub fn sample(&mut self, sampler: &mut Sampler) -> Result<i32> {
        checked(unsafe { abi::sample(self.handle, sampler) }).map(|token| token as i32)
    }

    /// Streams a token's text to the caller, and appends it to `text` and the token to the session.
    /// False, and nothing happened, if the token ends the generation.
    pub fn emit_token(&mut self, token: i32, text: &mut Vec<u8>) -> Result<bool> {
        let before = text.len();
        let mut room = 32;
        loop {
            text.resize(before + room, 0);
            let at = text[before..].as_mut_ptr();
            let found = checked(unsafe { abi::emit_token(self.handle, token, at, room) });
            match found.map(|need| need as usize) {
                Ok(need) if need <= room => {
                    text.truncate(before + need);
                    self.tokens.push(token);
                    return Ok(true);
                }
                Ok(need) if need != abi::EMIT_END as usize => room = need,
                ended => {
                    text.truncate(before);
                    return ended.map(|_| false);
                }
            }
        }
    }

    /// Draws, emits and appends up to `max_tokens` tokens, until the model ends its turn or the
    /// caller wants no more. Returns their bytes.
    pub fn generate(&mut self, sampler: &mut Sampler, max_tokens: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        for _ in 0..max_tokens {
            let token = self.sample(sampler)?;
            match self.emit_token(token, &mut text) {
                Ok(false) | Err(Error(abi::ECANCELED)) => break,
                more => more?,
            };
        }
        Ok(text)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.handle == 0 || unsafe { abi::session_close(self.handle) } == 0 {
            unsafe { dealloc(self.bytes, self.layout) };
        }
    }
}
